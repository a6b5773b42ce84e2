"""``torchkeep show`` on files that `tk.save` wrote: what they know, and what damage looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.cli import main


@pytest.fixture
def model(tmp_path):
    """A saved model with a tie, a frozen block and a buffer that is saved."""
    net = nn.ModuleDict(
        {
            "embed": nn.Embedding(10, 4),
            "layers": nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))),
            "head": nn.Linear(4, 10, bias=False),
        }
    )
    tk.tie(net, "embed.weight", "head.weight")
    net["layers"][2].requires_grad_(requires_grad=False)
    path = str(tmp_path / "net.safetensors")
    tk.save(net, path)
    return path


def shown_names(text):
    return [line.split()[0] for line in text.split("\n\n")[0].splitlines()[1:]]


def test_a_saved_model_shows_kinds_ties_and_what_is_frozen(model, capsys):
    """Blocks that train differently stay apart; a tie is one line; parameters and buffers are totalled apart."""
    assert main(["show", model]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["embed.weight"].endswith("parameter  tied to head.weight")
    assert " x2 " in lines["layers[0:2].0.weight"]
    assert lines["layers.2.0.weight"].endswith("parameter  frozen")
    assert lines["layers[0:2].1.running_mean"].endswith("buffer")
    totals = text.split("\n\n")[1].splitlines()
    assert totals == [
        "13 parameters: 124 elements, 496 B (96 trainable, 28 frozen)",
        "9 buffers: 27 elements, 120 B",
        "among them: 1 tied (counted once)",
    ]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("head.weight", ["embed.weight"]),
        ("@Linear & :frozen", ["layers.2.0.weight", "layers.2.0.bias"]),
        (":buffer & **.num_batches_tracked", ["layers[0:3].1.num_batches_tracked"]),
        (":tied", ["embed.weight"]),
    ],
)
def test_selectors_know_what_the_file_knows(model, capsys, selector, expected):
    """Aliases, classes, kinds and states select on the file as on the live model."""
    assert main(["show", model, selector]) == 0
    assert sorted(shown_names(capsys.readouterr().out)) == sorted(expected)


def test_every_line_pastes_back(model, capsys):
    """Each name in the listing, given as the selector, lists the same line again."""
    main(["show", model])
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.split("\n\n")[0].splitlines()[1:]}
    for name, cells in rows.items():
        assert main(["show", model, name]) == 0
        (again,) = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
        assert again.split() == cells


def test_json_has_all_that_is_known(model, capsys):
    """Kinds, trainability, classes and aliases are in the document, and totals for each kind."""
    assert main(["show", model, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    row = next(row for row in document["rows"] if row["name"] == "embed.weight")
    assert (row["kind"], row["trainable"], row["module_type"], row["aliases"]) == (
        "parameter",
        True,
        "Embedding",
        ["head.weight"],
    )
    totals = document["totals"]
    assert (totals["parameters"]["numel"], totals["buffers"]["numel"], totals["frozen"]["numel"]) == (124, 27, 28)
    assert (totals["tied"], totals["unknown"]["tensors"]) == (1, 0)


def test_a_flipped_bit_in_the_header_ends_with_3(model, capsys):
    """The header's digest catches any change in what the listing would show."""
    content = bytearray(Path(model).read_bytes())
    content[content.index(b"embed")] ^= 1
    Path(model).write_bytes(content)
    assert main(["show", model]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "net.safetensors" in shown.err


def test_a_flipped_bit_in_a_tensor_is_found_by_stats(model, capsys):
    """--stats reads and verifies: it names the damaged tensor and ends with 3; other tensors can still be read."""
    content = bytearray(Path(model).read_bytes())
    content[-1] ^= 1
    Path(model).write_bytes(content)
    assert main(["show", model]) == 0
    capsys.readouterr()
    codes = {}
    for row in tk.params(model):
        codes[row.name] = main(["show", model, row.name, "--stats"])
        shown = capsys.readouterr()
        assert (codes[row.name] == 0) == (shown.err == "")
        if codes[row.name]:
            assert row.name in shown.err
            assert shown.out == ""
    assert sorted(set(codes.values())) == [0, 3]
    assert list(codes.values()).count(3) == 1


def test_what_is_no_model_shows_too(tmp_path, capsys):
    """Nested values saved with tk.save are listed by their paths."""
    path = str(tmp_path / "extras.safetensors")
    tk.save({"mean": torch.zeros(64), "steps": [torch.ones(2), torch.ones(2)], "epoch": 3}, path)
    assert main(["show", path]) == 0
    assert sorted(shown_names(capsys.readouterr().out)) == ["mean", "steps[0:2]"]
