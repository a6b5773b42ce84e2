"""Checks of the state family: each planted fault is caught, at its line, and nothing fails beside it."""

from __future__ import annotations

import pytest

import torchkeep as tk
from checks.broken_carrying import FAULTS as CARRYING
from checks.broken_state import FAULTS, InLambda
from checks.planting import Planted, assert_caught, floats


@pytest.mark.parametrize("planted", [*FAULTS, *CARRYING], ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)


def test_a_closure_is_looked_into():
    """A constant in the closure of a lambda is found; that the lambda can't be pickled is another fault."""
    report = tk.check(InLambda, floats(3, 4))
    assert report["unregistered_tensor"].tensor == "closure of act: table"
    assert {result.name for result in report.failed} == {"unregistered_tensor", "pickle"}
