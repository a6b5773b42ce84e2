"""Every check is proven able to fail, by two planted faults or more, and able to pass."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.broken_tools import OPT_IN_FAULTS
from checks.planting import floats
from torchkeep.checks.registry import all_checks

FAMILIES = [path.stem for path in sorted(Path(__file__).parent.glob("broken_*.py"))]


def test_every_check_has_two_planted_faults():
    """No check is without two layers that it must catch, and there are eighty or more in all."""
    planted = Counter(fault.check for family in FAMILIES for fault in import_module(f"checks.{family}").FAULTS)
    planted.update(name for name, _ in OPT_IN_FAULTS)
    assert {name: planted[name] for name in all_checks() if planted[name] < 2} == {}
    assert planted.total() >= 80


class _Cubes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2


class WellMade(nn.Module):
    """Has what each check looks at: ties, constants, a hand-written backward, buffers of both kinds, dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("ramp", torch.linspace(0.5, 1, 4), persistent=False)
        self.register_buffer("draw", torch.randn(4))

    def forward(self, x):
        x = self.dropout(self.second(self.first(x) * self.ramp))
        return _Cubes.apply(self.norm(x).tanh()) + self.draw


@pytest.fixture(scope="module")
def passed():
    """Names of the checks that a well-made layer passes, without a single failure."""
    report = tk.check(WellMade, floats(5, 4))
    assert report.ok, report
    return {one.name for one in report.passed}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, one in all_checks().items()
        if one.family in ("gradients", "state", "tools") and not one.opt_in
    ],
)
def test_every_check_can_pass(passed, name):
    """A well-made layer passes each check of gradients, state and tools."""
    assert name in passed
