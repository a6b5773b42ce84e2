"""Each planted fault against sound numbers is caught by its check, at its line, and nothing fails beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.broken_numbers import FAULTS
from checks.planting import Planted, assert_caught, floats


@pytest.mark.parametrize("planted", FAULTS, ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)


class Grouped(nn.Module):
    """Normalises in float32, then uses an operation that has no kernel for float64, as Mixtral does."""

    def forward(self, x):
        normed = (x.float() / (x.float().square().mean(-1, keepdim=True) + 1).sqrt()).to(x.dtype)
        if normed.dtype == torch.float64:
            raise RuntimeError("Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double")
        return normed


def test_an_operation_without_a_kernel_is_no_hard_coded_dtype():
    """Where torch itself lacks float64, that is a capability: a warning of float64, and no failure."""
    report = tk.check(Grouped, floats(3, 4))
    assert report.ok, str(report)
    assert "float64" in {result.name for result in report.warned}
