"""Whatever a broken layer does, the checks leave it, its inputs and everything global as they found them."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from checks.broken_numbers import FAULTS as NUMBERS
from checks.broken_purity import FAULTS as PURITY
from checks.broken_samples import FAULTS as SAMPLES
from torchkeep.checks.nested import tensors
from torchkeep.checks.running import check

if TYPE_CHECKING:
    from checks.planting import Planted


def globally():
    """Return what a layer might change for everyone, in values that compare."""
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is meant
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        sys.gettrace(),
    )


def held(layer):
    """Return all that a layer holds, by value."""
    return {
        "state": {name: tensor.tolist() for name, tensor in layer.state_dict().items()},
        "gradients": {name: parameter.grad for name, parameter in layer.named_parameters()},
        "trainable": {name: parameter.requires_grad for name, parameter in layer.named_parameters()},
        "modes": {name: module.training for name, module in layer.named_modules()},
        "hooks": {
            name: [len(value) for key, value in vars(module).items() if key.endswith("_hooks")]
            for name, module in layer.named_modules()
        },
        "attributes": {
            name: {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")}
            for name, module in layer.named_modules()
        },
    }


@pytest.mark.parametrize("planted", [*PURITY, *SAMPLES, *NUMBERS], ids=str)
def test_nothing_of_the_callers_changes(planted: Planted):
    """An instance, its inputs, the random states and the settings are after all checks what they were before."""
    layer = planted.make().train()
    given = {path: tensor.tolist() for path, tensor in tensors((planted.args, planted.kwargs))}
    # The first use of a generator may set it up; what counts is what the checks change.
    before = held(layer), globally()
    check(layer, *planted.args, kwargs=planted.kwargs, declare=planted.declare)
    assert (held(layer), globally()) == before
    assert {path: tensor.tolist() for path, tensor in tensors((planted.args, planted.kwargs))} == given


def test_a_tracing_function_stays():
    """A debugger's or a coverage tool's tracing function is back after lines were looked for."""
    planted = next(one for one in PURITY if one.check == "inputs_unchanged")

    def trace(*_):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        report = check(planted.make, *planted.args)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert report["inputs_unchanged"].where
