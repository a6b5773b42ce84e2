"""Checks of the gradients family: each planted fault is caught, at its line, and nothing fails beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.broken_gradients import FAULTS, Detaches, HalfGradient, TimesZero
from checks.planting import Planted, assert_caught, floats


@pytest.mark.parametrize("planted", FAULTS, ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)


def test_declared_stop_is_no_fault():
    """A parameter that is detached on purpose passes once it is declared."""
    declare = tk.Declare(stop_gradient="scale")
    for layer in (Detaches, TimesZero):
        assert tk.check(layer, floats(3, 4), declare=declare, only=["severed_gradient"]).passed


def test_the_way_it_is_cut_is_told():
    """The message says what cut the gradient, and the fix says what to do."""
    (result,) = tk.check(Detaches(), floats(3, 4), only=["severed_gradient"]).failed
    assert ".detach() cuts it off" in result.message
    assert "stop_gradient" in result.fix


def test_an_expected_straight_through_gradient_is_no_failure():
    """A backward that is wrong on purpose is listed in `expected`, with its reason."""
    report = tk.check(HalfGradient, floats(3, 4), expected={"custom_backward": "half on purpose"})
    assert report.ok
    assert report["custom_backward"].status == "expected failure"
    assert "half on purpose" in report["custom_backward"].message


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


class RightBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return Squares.apply(self.inner(x)).relu()


def test_a_right_backward_passes():
    """A hand-written backward that is right passes, kinks around it or not."""
    assert tk.check(RightBackward, floats(3, 4), only=["custom_backward"]).passed


class DeadUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        nn.init.constant_(self.inner.bias, -1e4)

    def forward(self, x):
        return self.inner(x).relu()


def test_dead_units_and_a_single_key_are_no_fault():
    """A zero gradient where nothing changes the output (dead units, attention to one key) is no fault."""
    assert tk.check(DeadUnits, floats(3, 4), only=["severed_gradient", "unused_parameter"]).ok
    attention = tk.check(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True), *[floats(3, 1, 4)] * 3, only=["unused_parameter"]
    )
    assert attention.passed


@pytest.mark.parametrize(
    ("layer", "inputs", "reason"),
    [
        (nn.ReLU, (torch.arange(3),), "nothing that the layer holds or is given is floating point"),
        (lambda: nn.Embedding(4, 2).requires_grad_(requires_grad=False), (torch.arange(3),), "nothing that"),
    ],
)
def test_without_anything_to_differentiate_it_does_not_apply(layer, inputs, reason):
    """A layer of whole numbers has no gradients to check, and the report says so."""
    report = tk.check(layer, *inputs, only=["severed_gradient"])
    assert reason in report["severed_gradient"].message
    assert not report.ok
