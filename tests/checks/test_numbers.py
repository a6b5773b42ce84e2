"""Each planted fault against sound numbers is caught by its check, at its line, and nothing fails beside it."""

from __future__ import annotations

import pytest

from checks.broken_numbers import FAULTS
from checks.planting import Planted, assert_caught


@pytest.mark.parametrize("planted", FAULTS, ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)
