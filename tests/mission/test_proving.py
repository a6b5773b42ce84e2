"""A custom layer is proved before it is trained, and other people's files are read without running them."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import torchkeep as tk


class Severed(nn.Module):
    """A weight that forward reads through ``.data``, so that it never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 20)
        self.weight = nn.Parameter(torch.randn(20, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) @ self.weight.data


class Forgetful(nn.Module):
    """A constant that forward needs and no state_dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 20)
        self.constant = [torch.rand(20)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.constant[0]


@pytest.mark.parametrize(
    ("layer", "check", "tensor"),
    [(Severed, "severed_gradient", "weight"), (Forgetful, "unregistered_tensor", "constant")],
)
def test_what_fails_silently_is_found_and_named_once(layer, check, tensor):
    """The check that fits fails, names the tensor and the fix, and no other fails beside it."""
    report = tk.check(layer, torch.rand(4, 20))
    assert [result.name for result in report.failed] == [check]
    assert tensor in report[check].tensor
    assert report[check].fix


def test_a_good_layer_passes():
    """A plain layer behaves, and says so."""
    report = tk.check(lambda: nn.Linear(20, 3), torch.rand(4, 20))
    assert report.ok
    report.raise_for_failures()


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("this ran",)


def test_files_of_torch_are_read_without_running_them(tmp_path, capsys):
    """A checkpoint of torch.save gives its tensors; one that asks for code is refused, and nothing runs."""
    net = nn.Linear(4, 3)
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "good.pt")
    other = nn.Linear(4, 3)
    tk.load_into(other, tmp_path / "good.pt", rename={"model.": ""})
    assert torch.equal(other.weight, net.weight)

    torch.save({"model": net.state_dict(), "trap": Trap()}, tmp_path / "bad.pt", pickle_module=pickle)
    with pytest.raises(tk.errors.UnsafeFileError, match="print"):
        tk.load(tmp_path / "bad.pt")
    assert "this ran" not in capsys.readouterr().out
