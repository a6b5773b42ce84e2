"""Promises 10 to 12: parameters get the values that the rules say, all of them, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk


def make_net():
    """Three linear layers, wide enough for their moments to be measured."""
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))


def test_10_every_weight_normal_and_every_bias_zero():
    """Linear weights come from N(0, 0.01), biases are 0, and the same seed gives the same bits."""
    net, again = make_net(), make_net()
    rules = {"@Linear & **.weight": tk.init.normal(0, 0.01), "@Linear & **.bias": tk.init.zeros()}
    tk.initialize(net, rules, seed=1)
    tk.initialize(again, rules, seed=1)
    weights = torch.cat([p.flatten() for p in tk.params(net).select("**.weight").tensors()])
    assert abs(weights.mean()) < 3e-4
    assert abs(weights.std() - 0.01) < 3e-4
    assert all(not bias.any() for bias in tk.params(net).select("**.bias").tensors())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_11_every_weight_a_constant():
    """Every weight is exactly 1."""
    net = make_net()
    tk.initialize(net, {"**.weight": tk.init.constant(1), "**.bias": tk.init.zeros()})
    assert all((weight == 1).all() for weight in tk.params(net).select("**.weight").tensors())


def test_12_the_first_layer_xavier_and_the_third_forty_two():
    """Each layer follows its own rule; what no rule names is kept only because a rule says so."""
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rules = {"**": tk.init.keep(), "0.weight": tk.init.xavier_uniform(), "4.weight": tk.init.constant(42)}
    plan = tk.initialize(net, rules)
    bound = (6 / (128 + 256)) ** 0.5
    assert net[0].weight.abs().max() <= bound
    assert net[0].weight.abs().max() > 0.99 * bound
    assert (net[4].weight == 42).all()
    assert torch.equal(net[2].weight, before["2.weight"])
    assert all(name in str(plan) for name in ("0.weight", "xavier_uniform", "4.weight", "constant"))


def test_nothing_is_left_to_silence():
    """A parameter that no rule claims and a rule that names nothing are errors before anything is touched."""
    net = make_net()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(tk.TorchkeepError, match="bias"):
        tk.initialize(net, {"**.weight": tk.init.zeros()})
    with pytest.raises(tk.TorchkeepError, match="wieght"):
        tk.initialize(net, {"**": tk.init.zeros(), "**.wieght": tk.init.ones()})
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
