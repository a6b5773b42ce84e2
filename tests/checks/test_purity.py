"""Each planted fault against purity is caught by its check, at its line, and nothing fails beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.broken_purity import FAULTS
from checks.planting import Planted, assert_caught, floats


@pytest.mark.parametrize("planted", FAULTS, ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)


class Caches(nn.Module):
    """Makes a buffer that state_dict leaves out in the first call, as the ALiBi of x-transformers does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x):
        if self.bias is None:
            self.register_buffer("bias", -torch.arange(x.shape[-1]).to(x), persistent=False)
        return x + self.bias


class Counts(Caches):
    """Makes one that state_dict keeps."""

    def forward(self, x):
        self.register_buffer("bias", torch.ones(x.shape[-1]))
        return x + self.bias


def test_a_cache_is_a_warning_and_a_new_entry_of_state_dict_a_failure():
    """What forward makes fails only where it changes what state_dict holds."""
    cached = tk.check(Caches, floats(3, 4), only=["state_unchanged"])["state_unchanged"]
    kept = tk.check(Counts, floats(3, 4), only=["state_unchanged"])["state_unchanged"]
    assert (cached.status, cached.tensor) == ("warned", "bias")
    assert "state_dict leaves out" in cached.message
    assert (kept.status, kept.tensor) == ("failed", "bias")
