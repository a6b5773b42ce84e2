"""Checks keep still about layers that are sound, of unusual kinds and as declared."""

from __future__ import annotations

import pytest

from checks.sound_layers import SOUND
from torchkeep.checks.running import check


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.make.__name__)
def test_sound_layer_passes(case):
    """No check fails or warns."""
    report = check(case.make, *case.args, kwargs=case.kwargs, declare=case.declare)
    assert report.ok, str(report)
    assert not report.warned, str(report)


def test_each_check_passes_somewhere():
    """No check of these families is one that never says yes."""
    passed = set()
    for case in SOUND:
        report = check(case.make, *case.args, kwargs=case.kwargs, declare=case.declare)
        passed.update(result.name for result in report.passed)
    from torchkeep.checks.registry import all_checks

    mine = {one.name for one in all_checks().values() if one.family in ("purity", "samples", "numbers")}
    assert mine - passed == {"declared_dtypes"}  # the blocks of torchkeep.nn pass that one
