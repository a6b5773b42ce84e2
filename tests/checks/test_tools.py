"""Checks of the tools family: each planted fault is caught, and nothing fails beside it."""

from __future__ import annotations

import pytest
from torch import nn

import torchkeep as tk
from checks.broken_tools import FAULTS, OPT_IN_FAULTS
from checks.planting import Planted, assert_caught, floats


@pytest.mark.parametrize("planted", FAULTS, ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)


@pytest.mark.parametrize(("name", "layer"), OPT_IN_FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_opt_in_checks_catch_their_faults(name, layer):
    """The slow checks catch theirs when they are named."""
    report = tk.check(layer, floats(3, 4), only=[name])
    assert report[name].status == "failed", report


def test_opt_in_checks_pass_and_run_only_when_named():
    """A plain layer passes them, and without a name they are no part of the report."""
    make = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # noqa: E731 - a factory in a line
    named = tk.check(make, floats(3, 4), only=["graph_breaks", "vmap"])
    assert [result.name for result in named.passed] == ["graph_breaks", "vmap"]
    usual = {result.name for result in tk.check(make, floats(3, 4)).results}
    assert not usual & {"graph_breaks", "vmap"}
