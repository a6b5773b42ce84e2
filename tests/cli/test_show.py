"""``torchkeep show``: what it lists, as text and as JSON, and what it does not need for that."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from torchkeep import __version__
from torchkeep.cli import main


@pytest.fixture
def model(tmp_path):
    """A file with two equal blocks, an odd name and a scalar."""
    path = tmp_path / "model.safetensors"
    blocks = {f"blocks.{i}.{leaf}": np.ones((2, 3), np.float32) for i in range(2) for leaf in ("q", "k")}
    save_file({**blocks, "odd name": np.zeros((), np.int64)}, path)
    return str(path)


def run_child(*arguments, code="from torchkeep.cli import main; sys.exit(main())", **options):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", f"import sys; {code}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def test_blocks_are_folded_and_totals_added_up(model, capsys):
    """The whole text of a listing."""
    assert main(["show", model]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert sorted(shown.out.splitlines()) == sorted(
        [
            "name           count  shape   dtype    elements  size",
            "blocks[0:2].k     x2  2x3     float32        12  48 B",
            "blocks[0:2].q     x2  2x3     float32        12  48 B",
            "'odd name'            scalar  int64           1   8 B",
            "",
            "5 tensors: 25 elements, 104 B",
        ]
    )


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("blocks[0:2].q", ["blocks[0:2].q"]),
        ("blocks[1].**", ["blocks.1.k", "blocks.1.q"]),
        ("'odd name'", ["'odd name'"]),
        ("[ndim=2] - *.0.*", ["blocks.1.k", "blocks.1.q"]),
    ],
)
def test_a_selector_narrows_the_listing(model, capsys, selector, expected):
    """Only what is selected is shown, under names that select it again in the whole file."""
    assert main(["show", model, selector]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    assert sorted(line.split("  ")[0].strip() for line in lines) == expected


def test_json_holds_every_field_of_every_row(model, capsys):
    """The document is one JSON value, its rows are not folded, and its fields are those of docs/cli.md."""
    assert main(["show", model, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in document.pop("rows")}
    assert sorted(rows) == ["blocks.0.k", "blocks.0.q", "blocks.1.k", "blocks.1.q", "odd name"]
    assert rows["blocks.1.q"] == {
        "name": "blocks.1.q",
        "kind": None,
        "persistent": True,
        "shape": [2, 3],
        "dtype": "float32",
        "device": "cpu",
        "numel": 6,
        "nbytes": 24,
        "trainable": None,
        "module_type": None,
        "aliases": [],
        "plain": [],
    }
    none = {"tensors": 0, "numel": 0, "nbytes": 0}
    every = {"tensors": 5, "numel": 25, "nbytes": 104}
    assert document == {
        "torchkeep": __version__,
        "schema": 1,
        "source": model,
        "selector": None,
        "totals": {
            "tensors": every,
            "parameters": none,
            "buffers": none,
            "unknown": every,
            "trainable": none,
            "frozen": none,
            "tied": 0,
            "lazy": 0,
            "not_persistent": 0,
        },
    }


def test_json_of_a_selection_says_what_was_selected(model, capsys):
    """The document names the selector, and its rows and totals are those of the selection."""
    assert main(["show", model, "blocks[0].*", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["selector"] == "blocks[0].*"
    assert sorted(row["name"] for row in document["rows"]) == ["blocks.0.k", "blocks.0.q"]
    assert document["totals"]["tensors"]["numel"] == 12


def test_lines_of_a_selection_span_nothing_that_was_left_out(model, capsys):
    """What the selector leaves out is in no line's slice, so that lines paste back on the whole file."""
    save_file({f"b.{i}.w": np.ones(2 if i == 1 else 3, np.float32) for i in range(4)}, model)
    assert main(["show", model, "[shape=3]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["b.0.w", "b[2:4].w"]


def test_an_empty_file_of_tensors_is_no_error(tmp_path, capsys):
    """A file without tensors is listed as such, in both forms."""
    path = str(tmp_path / "none.safetensors")
    save_file({}, path)
    assert main(["show", path]) == 0
    assert capsys.readouterr().out == "no tensors\n"
    assert main(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_json_of_a_path_that_is_no_text(tmp_path):
    """A file whose name is not UTF-8 is listed, and the document is still valid JSON."""
    path = os.fsencode(tmp_path) + b"/\xff.safetensors"
    save_file({"a": np.zeros(2)}, os.fsdecode(tmp_path / "a"))
    os.rename(tmp_path / "a", path)  # noqa: PTH104 - pathlib takes no bytes
    run = run_child("show", path, "--json")
    assert run.returncode == 0
    assert json.loads(run.stdout)["source"].endswith("/\\udcff.safetensors")


@pytest.mark.parametrize("extra", [[], ["--json"], ["blocks.*.q"]])
def test_listing_imports_nothing_slow(model, extra):
    """Listing a file, selected or not, imports neither torch nor anything else that takes long."""
    slow = "{'torch', 'numpy', 'safetensors', 'rich', 'rapidfuzz', 'torchkeep.tensors', 'torchkeep.tables'}"
    code = (
        f"from torchkeep.cli import main; code = main(); print({slow} & set(sys.modules), file=sys.stderr);"
        "sys.exit(code)"
    )
    run = run_child("show", model, *extra, code=code)
    assert (run.returncode, run.stderr.strip()) == (0, b"set()")


def test_the_module_runs_as_the_command(model, capsys):
    """``python -m torchkeep`` prints what the command prints."""
    main(["show", model])
    run = subprocess.run(
        [sys.executable, "-m", "torchkeep", "show", model], capture_output=True, text=True, check=True
    )
    assert run.stdout == capsys.readouterr().out


class _Counting(io.RawIOBase):
    """A file that remembers what each write brought."""

    def __init__(self):
        self.pieces = []

    def writable(self):
        return True

    def write(self, data):
        self.pieces.append(bytes(data))
        return len(data)


def test_thousands_of_rows_leave_in_one_piece(tmp_path, monkeypatch):
    """A long listing reaches the operating system as a single write, the whole of it."""
    path = str(tmp_path / "many.safetensors")
    save_file({f"n{i}.w": np.zeros(i % 7, np.float32) for i in range(3_000)}, path)
    raw = _Counting()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"))
    assert main(["show", path]) == 0
    (piece,) = raw.pieces
    assert piece.count(b"\n") == 3_003
    assert b"\x1b" not in piece


def test_names_that_the_terminal_can_not_spell_are_escaped(tmp_path):
    """Where stdout knows only ASCII, other letters are written as escapes instead of failing."""
    path = str(tmp_path / "chinese.safetensors")
    save_file({"层.权重": np.zeros(1, np.float32)}, path)
    run = run_child("show", path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0
    assert b"\\u5c42.\\u6743\\u91cd" in run.stdout


@pytest.mark.usefixtures("capsys")
def test_the_collector_runs_again_afterwards(model):
    """Called from Python, the command leaves garbage collection as it was."""
    assert main(["show", model]) == 0
    assert gc.isenabled()
    gc.disable()
    try:
        assert main(["show", model]) == 0
        assert not gc.isenabled()
    finally:
        gc.enable()
