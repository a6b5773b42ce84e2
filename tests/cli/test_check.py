"""``torchkeep check``: layers from the shell."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from torchkeep.cli import main

SOURCE = """
import torch
from torch import nn

def make():
    print("made")
    return nn.Linear(20, 4)

class Severed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(20))
    def forward(self, x):
        return x * self.scale.data

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 8)
    def forward(self, ids, *, mask):
        return self.table(ids) * mask.unsqueeze(-1)

instance = nn.Linear(20, 4)
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module of one's own in the current folder; its name is another in each test, since imports last."""
    name = f"layers_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize(
    ("factory", "inputs"),
    [
        ("make", ["2,20"]),
        ("instance", ["2,20:float32"]),
        ("Masked", ["2,20:int64:100", "mask=2,20:bool"]),
    ],
)
def test_a_layer_that_behaves_ends_with_0(module, capsys, factory, inputs):
    """The report is on stdout, what the layer prints is not, and the code is 0."""
    arguments = [part for text in inputs for part in ("--input", text)]
    assert main(["check", f"{module}:{factory}", *arguments, "--only", "severed_gradient"]) == 0
    shown = capsys.readouterr()
    assert "behaves: 1 passed" in shown.out
    assert "made" not in shown.out


def test_a_layer_that_does_not_behave_ends_with_1(module, capsys):
    """The check, the tensor and the line of source are in the JSON document, and the code is 1."""
    arguments = ["--input", "2,20", "--only", "severed_gradient", "--only", "pickle", "--json"]
    assert main(["check", f"{module}:Severed", *arguments]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["target"] == f"{module}:Severed"
    by_name = {result["name"]: result for result in document["results"]}
    assert by_name["severed_gradient"]["tensor"] == "scale"
    assert by_name["severed_gradient"]["where"].endswith(f"{module}.py:14")
    assert by_name["pickle"]["status"] == "passed"


def test_a_run_in_which_no_check_applies_ends_with_1(module, capsys):
    """A layer that nothing was said about was not checked."""
    assert main(["check", f"{module}:instance", "--input", "2,20", "--only", "fresh_state_dict"]) == 1
    assert "was not checked: no check applied" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "arguments", "code", "expected"),
    [
        ("{}", [], 2, "PKG.MODULE:FACTORY"),
        ("{}:make", ["--input", "2x20"], 2, "SHAPE"),
        ("{}:make", ["--input", "2,20:int65"], 2, "no dtype"),
        ("{}:mak", ["--input", "2,20"], 3, "the nearest: make"),
        ("{}_missing:make", ["--input", "2,20"], 3, "can't import"),
        ("{}:make", ["--input", "2,30"], 3, "does not run on the inputs given (args[0] (2, 30) torch.float32)"),
        ("{}:make", ["--input", "2,20", "--only", "sever_gradient"], 2, "the nearest: severed_gradient"),
        ("{}:make", ["--input", "2,20", "--skip", "sever_gradient"], 2, "the nearest: severed_gradient"),
    ],
)
def test_what_can_not_be_done_is_said(module, capsys, target, arguments, code, expected):  # noqa: PLR0917 - pytest passes them by name
    """Usage ends with 2, what can't be imported or run with 3; the sentence is on stderr."""
    assert main(["check", target.format(module), *arguments]) == code
    shown = capsys.readouterr()
    assert expected in shown.err
    assert shown.out == ""


def test_help_needs_no_torch():
    """Only running a check imports torch."""
    code = (
        "import sys; from torchkeep.cli import main; main(['check', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
