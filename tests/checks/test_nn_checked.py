"""Every block of `torchkeep.nn` passes every check, in the strictest declaration that fits it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.planting import floats
from torchkeep import nn as blocks

EVERY_DTYPE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STRICT = tk.Declare(batch_dim=0, dtypes=EVERY_DTYPE)
ROWS = (floats(3, 5),)
IMAGES = (floats(2, 3, 4, 5),)

CASES = {
    "Centering": (lambda: blocks.Centering(-1), ROWS, STRICT),
    "Centering-of-several": (lambda: blocks.Centering((-1, -2)), IMAGES, STRICT),
    "Centering-over-the-batch": (
        lambda: blocks.Centering(0),
        ROWS,
        tk.Declare(batch_dim=None, dtypes=EVERY_DTYPE),
    ),
    "FixedLinear": (lambda: blocks.FixedLinear(5, 4), ROWS, STRICT),
    "MLP": (lambda: blocks.MLP([5, 7, 2], "gelu", "layer", dropout=0.2), ROWS, STRICT),
    "MLP-batch-norm": (lambda: blocks.MLP([5, 7, 2], norm="batch"), ROWS, STRICT),
    "MLP-rms-activated": (lambda: blocks.MLP([5, 3, 3], "prelu", "rms", activate_last=True), ROWS, STRICT),
    "Parallel-sum": (lambda: blocks.Parallel([nn.Linear(5, 4), blocks.FixedLinear(5, 4)]), ROWS, STRICT),
    "Parallel-concatenate": (
        lambda: blocks.Parallel({"wide": nn.Linear(5, 4), "thin": nn.Linear(5, 1)}, "concatenate"),
        ROWS,
        STRICT,
    ),
    "Permute": (lambda: blocks.Permute(0, 2, 3, 1), IMAGES, STRICT),
    "Pick": (lambda: nn.Sequential(nn.GRU(5, 4, batch_first=True), blocks.Pick(0)), (floats(2, 3, 5),), STRICT),
    "Repeat": (lambda: blocks.Repeat(lambda: nn.Linear(5, 5), 3), ROWS, STRICT),
    "Repeat-of-a-module": (lambda: blocks.Repeat(nn.Linear(5, 5), 2), ROWS, STRICT),
    "Repeat-shared": (lambda: blocks.Repeat(nn.Linear(5, 5), 2, shared=True), ROWS, STRICT),
    "Residual": (lambda: blocks.Residual(nn.Sequential(nn.Linear(5, 5), blocks.Scale(5, 1e-2))), ROWS, STRICT),
    "Residual-with-shortcut": (lambda: blocks.Residual(nn.Linear(5, 2), nn.Linear(5, 2)), ROWS, STRICT),
    "Scale": (lambda: blocks.Scale(5, 0.5), ROWS, STRICT),
}


def test_no_block_is_forgotten():
    """Each public block has a case of its name."""
    assert {name.partition("-")[0] for name in CASES} == set(blocks.__all__)


@pytest.mark.parametrize("name", CASES)
def test_block_behaves(name):
    """No check fails or warns."""
    make, args, declare = CASES[name]
    report = tk.check(make, *args, declare=declare)
    assert report.ok, str(report)
    assert not report.warned, str(report)
