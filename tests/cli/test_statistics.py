"""``torchkeep show --stats``: what is in the tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from torchkeep.cli import main


@pytest.fixture
def model(tmp_path):
    """A file with known values, two of them not finite."""
    path = str(tmp_path / "model.safetensors")
    save_file({"a.0.w": np.float32([1, 2, 3, 0, np.nan, np.inf]), "a.1.w": np.zeros((2, 3), np.float32)}, path)
    return path


def test_statistics_stand_on_a_line_for_each_tensor(model, capsys):
    """Nothing is folded, every number stands under its header, totals follow."""
    assert main(["show", model, "--stats"]) == 0
    head, first, second, _, totals = capsys.readouterr().out.splitlines()
    assert head.split()[:10] == ["name", "shape", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf"]
    assert first.split()[:10] == ["a.0.w", "6", "1.5", "1.118", "0", "3", "3.742", "1", "1", "1"]
    assert second.split()[:10] == ["a.1.w", "2x3", "0", "0", "0", "0", "0", "6", "0", "0"]
    assert totals == "2 tensors: 12 elements, 48 B"


def test_json_holds_the_statistics_of_each_row(model, capsys):
    """With --json each row has its statistics under ``stats``, and the selector chooses the rows."""
    assert main(["show", model, "a[0].w", "--stats", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["name"], row["numel"]) == ("a.0.w", 6)
    stats = row["stats"]
    assert sorted(stats) == ["histogram", "inf", "max", "mean", "min", "nan", "norm", "note", "std", "zeros"]
    assert (stats["mean"], stats["min"], stats["max"], stats["zeros"], stats["nan"]) == (1.5, 0, 3, 1, 1)
    assert sum(stats["histogram"]["counts"]) == 4
    assert len(stats["histogram"]["edges"]) == len(stats["histogram"]["counts"]) + 1


@pytest.mark.parametrize(("arguments", "code"), [(["b.*"], 1), (["a.["], 2), (["@Linear"], 2)])
def test_selectors_end_as_they_do_without_statistics(model, capsys, arguments, code):
    """No match and unusable selectors have the exit codes that they have without --stats."""
    assert main(["show", model, *arguments, "--stats"]) == code
    assert main(["show", model, *arguments]) == code
    assert capsys.readouterr().out == ""


def test_a_missing_file_ends_with_3(tmp_path, capsys):
    """A source that is not there is told as without --stats."""
    assert main(["show", str(tmp_path / "missing"), "--stats"]) == 3
    assert capsys.readouterr().err.startswith("torchkeep: can't open ")
