"""Faults in parts of models and in their wiring are caught, by one check each."""

from __future__ import annotations

import pytest

from checks.broken_models import FAULTS as MODELS
from checks.broken_wiring import FAULTS as WIRING
from checks.planting import Planted, assert_caught


@pytest.mark.parametrize("planted", [*MODELS, *WIRING], ids=str)
def test_planted_fault_is_caught(planted: Planted):
    """The check that is responsible says what is wrong and where, and no other check fails with it."""
    assert_caught(planted)
