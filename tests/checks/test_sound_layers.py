"""Checks keep still about layers that are sound, of unusual kinds and as declared."""

from __future__ import annotations

import warnings

import pytest

from checks.sound_layers import SOUND
from checks.sound_models import MODELS
from checks.sound_wiring import WIRING
from torchkeep.checks.registry import all_checks
from torchkeep.checks.running import check


def _report(case):
    with warnings.catch_warnings():
        # Making TorchScript and nested tensors warns that they are deprecated, or a prototype.
        warnings.simplefilter("ignore")
        return check(case.make, *case.args, kwargs=case.kwargs, declare=case.declare)


@pytest.mark.parametrize("case", [*SOUND, *MODELS, *WIRING], ids=lambda case: case.make.__name__)
def test_sound_layer_passes(case):
    """No check fails, and none warns but those that the case allows."""
    report = _report(case)
    assert report.ok, str(report)
    assert {result.name for result in report.warned} <= set(case.warns), str(report)


def test_each_check_passes_somewhere():
    """No check of these families is one that never says yes."""
    passed = {result.name for case in SOUND for result in _report(case).passed}
    mine = {one.name for one in all_checks().values() if one.family in ("purity", "samples", "numbers")}
    assert mine - passed == {"declared_dtypes"}  # the blocks of torchkeep.nn pass that one
