"""Tables of files: listed from the header, tensors read one by one and verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from torchkeep.errors import (
    DamageError,
    FormatError,
    MissingFieldError,
    MissingFileError,
    NoMatchError,
    TableError,
)


@pytest.fixture
def path(tmp_path):
    """A file that another library wrote."""
    found = tmp_path / "net.safetensors"
    state = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2), "1.weight": torch.zeros(0, 3)}
    save_file(state, found)
    return found


def test_a_file_lists_and_reads_its_tensors(path):
    """Rows come from the header; a tensor is read when asked for, by str and by path object alike."""
    for source in (path, str(path)):
        table = tk.params(source)
        assert sorted((row.name, row.shape, row.dtype) for row in table) == [
            ("0.bias", (2,), "float32"),
            ("0.weight", (2, 3), "float32"),
            ("1.weight", (0, 3), "float32"),
        ]
        assert table["0.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert table["1.weight"].shape == (0, 3)
        assert [t.numel() for t in table.tensors()] == [row.numel for row in table]
        assert table.numel == 8
        assert "3 tensors" in str(table)


def test_selecting_in_a_file(path):
    """Names and fields select; what the file does not know is an error; two tables of one file combine."""
    table = tk.params(path)
    assert table.select("[0].weight").names() == ["0.weight"]
    assert len(tk.params(path, "*.weight") | tk.params(str(path), "*.bias")) == 3
    with pytest.raises(MissingFieldError):
        table.select("@Linear")
    with pytest.raises(NoMatchError, match=r"`0\.weight`"):
        table["0.wieght"]
    with pytest.raises(TableError, match="only the parameters of a live module"):
        table.freeze()


def test_statistics_of_a_file(path):
    """Statistics read each tensor in turn."""
    stats = tk.params(path).stats()
    assert stats["0.weight"].mean == 2.5
    assert stats["1.weight"].note == "no elements"


def test_a_file_that_changed_is_not_read_as_what_it_was(path):
    """A file cut short or replaced after it was listed is an error, by lookup and by reading all."""
    table = tk.params(path)
    assert table["0.bias"].tolist() == [1, 1]
    save_file({"0.bias": torch.zeros(5)}, path)
    with pytest.raises(FormatError, match="changed"):
        table.tensors()
    with pytest.raises(FormatError, match="changed"):
        table["0.bias"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FormatError):
        table.stats()


def test_a_file_of_ours_knows_ties_kinds_and_classes(tmp_path):
    """What tk.save wrote of a module selects as the module does, and any name of a tie reads it."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    tk.save(net, tmp_path / "net.safetensors")
    live, table = tk.params(net), tk.params(tmp_path / "net.safetensors")
    for expression in ("**", ":buffer", "@Linear", ":tied", "[-1].*", ":param & [ndim=1]"):
        assert table.select(expression).names() == live.select(expression).names()
    assert torch.equal(table["2.weight"], net[0].weight)
    assert (table.numel, table.buffer_numel) == (live.numel, live.buffer_numel)


def test_damage_names_the_tensor_and_spares_the_others(tmp_path):
    """A flipped bit is found when its tensor is read, not before, by lookup, tensors and statistics alike."""
    path = tmp_path / "state.safetensors"
    tk.save({"a": torch.zeros(8), "b": torch.full((8,), 7.0)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.tensor(7.0).numpy().tobytes() * 8)] ^= 1
    path.write_bytes(raw)
    table = tk.params(path)
    assert table["a"].tolist() == [0.0] * 8
    for read in (lambda: table["b"], table.tensors, table.stats):
        with pytest.raises(DamageError) as caught:
            read()
        assert caught.value.tensor == "b"


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a directory, an empty file and an unknown format are told apart."""
    with pytest.raises(MissingFileError):
        tk.params(tmp_path / "missing.safetensors")
    with pytest.raises(MissingFileError):
        tk.params(Path("missing.pt"))  # a path object is a path, whatever it looks like
    with pytest.raises(FormatError, match="holds no model"):
        tk.params(tmp_path)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with pytest.raises(FormatError, match="empty"):
        tk.params(empty)
    with pytest.raises(MissingFileError):
        tk.params("missing.pth")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FormatError, match="zip"):
        tk.params(str(tmp_path / "model.pt"))
