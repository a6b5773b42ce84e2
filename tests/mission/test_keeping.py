"""Promises 16 and 17: what is saved comes back as it was, in any process, into any fresh instance."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchkeep as tk


class MLP(nn.Module):
    """A hidden and an output layer, with dropout that eval mode must switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 256)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(F.relu(self.hidden(x))))


def test_16_a_tensor_comes_back(tmp_path):
    """One tensor, saved and loaded."""
    x = torch.arange(4)
    tk.save(x, tmp_path / "x.safetensors")
    back = tk.load(tmp_path / "x.safetensors")
    assert torch.equal(back, x)
    assert back.dtype == x.dtype


def test_16_a_list_of_tensors_comes_back(tmp_path):
    """A list stays a list, in order."""
    x, y = torch.arange(4), torch.zeros(4)
    tk.save([x, y], tmp_path / "xy.safetensors")
    back = tk.load(tmp_path / "xy.safetensors")
    assert type(back) is list
    assert torch.equal(back[0], x)
    assert torch.equal(back[1], y)


def test_16_a_dict_from_strings_to_tensors_comes_back(tmp_path):
    """A dict stays a dict, and any safetensors reader sees the same tensors."""
    from safetensors.torch import load_file

    mine = {"x": torch.arange(4), "y": torch.zeros(4)}
    tk.save(mine, tmp_path / "mine.safetensors")
    for back in (tk.load(tmp_path / "mine.safetensors"), load_file(tmp_path / "mine.safetensors")):
        assert type(back) is dict
        assert list(back) == ["x", "y"]
        assert all(torch.equal(back[name], value) for name, value in mine.items())


def test_17_a_models_parameters_give_a_fresh_instance_the_same_output(tmp_path):
    """Saved, loaded into a fresh instance in eval mode: equal output, bit for bit."""
    net, clone = MLP(), MLP()
    x = torch.randn(2, 20)
    tk.save(net, tmp_path / "mlp.safetensors")
    report = tk.load_into(clone, tmp_path / "mlp.safetensors")
    assert torch.equal(clone.eval()(x), net.eval()(x))
    assert "4" in str(report)


def test_17_the_command_line_shows_what_was_saved(tmp_path):
    """`torchkeep show` lists the saved parameters from another process, without importing torch."""
    tk.save(MLP(), tmp_path / "mlp.safetensors")
    program = "import sys; from torchkeep.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", program, "show", str(tmp_path / "mlp.safetensors"), "hidden.*"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "hidden.weight" in shown.stdout
    assert "output.weight" not in shown.stdout


def test_a_flipped_bit_is_never_loaded(tmp_path):
    """One bit changed on the disk is named with its tensor, and the model is as it was."""
    path = tmp_path / "mlp.safetensors"
    net = MLP()
    tk.save(net, path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(tk.TorchkeepError, match=r"hidden|output"):
        tk.load(path)
