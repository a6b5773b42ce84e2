"""Every block of `tk.nn` passes every check, without a single warning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.planting import floats

BLOCKS = {
    "MLP": (lambda: tk.nn.MLP([4, 8, 8, 3], norm="layer", dropout=0.1), (floats(5, 4),)),
    "Centering": (tk.nn.Centering, (floats(5, 4),)),
    "FixedLinear": (lambda: tk.nn.FixedLinear(4, 3), (floats(5, 4),)),
    "Parallel": (lambda: tk.nn.Parallel([nn.Linear(4, 3), nn.Linear(4, 3)]), (floats(5, 4),)),
    "Permute": (lambda: tk.nn.Permute(0, 2, 1), (floats(5, 4, 3),)),
    "Pick": (lambda: nn.Sequential(nn.LSTM(4, 3, batch_first=True), tk.nn.Pick(0)), (floats(5, 2, 4),)),
    "Repeat": (lambda: tk.nn.Repeat(lambda: nn.Linear(4, 4), 3), (floats(5, 4),)),
    "Residual": (lambda: tk.nn.Residual(nn.Linear(4, 4)), (floats(5, 4),)),
    "Scale": (lambda: tk.nn.Scale(4), (floats(5, 4),)),
}


def test_every_block_is_here():
    """A block that is added is checked as well."""
    assert set(BLOCKS) == set(tk.nn.__all__)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_behaves(name):
    """Nothing fails and nothing is warned of; gradients and the state_dict, where there are any, were checked."""
    make, inputs = BLOCKS[name]
    report = tk.check(make, *inputs)
    assert report.ok, report
    assert not report.warned, report
    assert isinstance(make(), torch.nn.Module)
    assert "deepcopy" in {one.name for one in report.passed}
