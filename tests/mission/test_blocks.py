"""Promises 1 to 4, 14 and 15: whatever a user composes is seen, built and computed right."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import torchkeep as tk


class HiddenAndOutput(nn.Module):
    """A block of a hidden and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 256)
        self.output = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(F.relu(self.hidden(x)))


class MySequential(nn.Module):
    """A container written by a user, which keeps its blocks in ``_modules`` itself."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self._modules[str(index)] = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self._modules.values():
            x = block(x)
        return x


class FixedHidden(nn.Module):
    """A constant random weight, one layer used twice, and a loop whose length depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = tk.nn.FixedLinear(20, 20, seed=3)
        self.linear = nn.Linear(20, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        x = F.relu(self.constant(x) + 1)
        x = self.linear(x)
        while x.abs().sum() > 1:
            x = x / 2
        return x.sum()


class Nested(nn.Module):
    """A block made of a Sequential and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.linear = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.net(x))


class ScaledLinear(nn.Module):
    """A custom layer with parameters of its own."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, units))
        self.bias = nn.Parameter(torch.randn(units))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x @ self.weight + self.bias)


def test_01_a_custom_block_is_seen_whole():
    """A block of a hidden and an output layer shows its four parameters, its shapes, and computes."""
    net = HiddenAndOutput()
    x = torch.rand(2, 20)
    assert tk.params(net).names() == ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]
    assert tk.params(net).numel == sum(p.numel() for p in net.parameters())
    shown = str(tk.tree(net, x))
    assert "HiddenAndOutput" in shown
    assert net(x).shape == (2, 10)


def test_02_a_container_that_the_user_wrote_is_seen_like_sequential():
    """Blocks stored straight in ``_modules`` have the names and the output that nn.Sequential gives."""
    layers = [nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 10)]
    mine, theirs = MySequential(*layers), nn.Sequential(*layers)
    x = torch.rand(2, 20)
    assert tk.params(mine).names() == tk.params(theirs).names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(mine(x), theirs(x))
    assert tk.params(mine).select("[0:2].weight").names() == ["0.weight"]


def test_03_a_constant_is_kept_and_not_trained_whatever_the_forward_does(tmp_path):
    """The random weight gets no gradient, is saved with the rest, and the value-dependent loop can be shown."""
    net = FixedHidden()
    constant = net.constant.weight.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.rand(2, 20)).backward()
    optimizer.step()
    assert torch.equal(net.constant.weight, constant)
    assert tk.params(net).select(":trainable").names() == ["linear.weight", "linear.bias"]
    assert "eval" in str(tk.tree(net, torch.rand(2, 20)))

    tk.save(net, tmp_path / "net.safetensors")
    other = FixedHidden()
    with torch.no_grad():
        other.constant.weight.zero_()
    tk.load_into(other, tmp_path / "net.safetensors")
    x = torch.rand(3, 20)
    assert torch.equal(other.constant.weight, constant)
    assert torch.equal(net(x), other(x))


def test_04_blocks_nest_and_mix_with_sequential():
    """Names run through every level, and one selector reaches a level wherever it stands."""
    net = nn.Sequential(Nested(), nn.Linear(16, 20), FixedHidden())
    assert net(torch.rand(2, 20)).shape == ()
    assert tk.params(net).select("0.net[0:3].weight").names() == ["0.net.0.weight", "0.net.2.weight"]
    assert tk.params(net).select("@FixedHidden > linear.*").names() == ["2.linear.weight", "2.linear.bias"]


def test_14_a_layer_without_parameters_centres():
    """Centering takes the mean away over the features, leaves the batch alone, and has nothing to train."""
    layer = tk.nn.Centering()
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 60.0]])
    assert torch.equal(layer(x), torch.tensor([[-1.0, 0.0, 1.0], [-20.0, -10.0, 30.0]]))
    assert len(tk.params(layer)) == 0
    net = nn.Sequential(nn.Linear(8, 128), tk.nn.Centering())
    assert net(torch.rand(4, 8)).mean(dim=-1).abs().max() < 1e-6


def test_15_a_custom_layer_works_alone_and_inside_sequential():
    """A layer with its own parameters is seen, initialised and trained the same in both settings."""
    alone = ScaledLinear(5, 3)
    assert [row.shape for row in tk.params(alone)] == [(5, 3), (3,)]
    assert alone(torch.rand(2, 5)).shape == (2, 3)
    net = nn.Sequential(ScaledLinear(64, 8), ScaledLinear(8, 1))
    tk.initialize(net, {"**.weight": tk.init.normal(0, 0.1), "**.bias": tk.init.zeros()})
    assert net(torch.rand(2, 64)).shape == (2, 1)
    assert tk.params(net).select("@ScaledLinear").names() == ["0.weight", "0.bias", "1.weight", "1.bias"]
