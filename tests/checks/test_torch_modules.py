"""No check fails on PyTorch's own modules, in the configurations that PyTorch tests them in.

Left out: of modules with more than `MOST` configurations, all but that many, taken evenly (they are products of
options: 857 of LinearCrossEntropyLoss, 105 of CrossEntropyLoss, some 64 of each part of Transformer), and what the
checks that are opt-in would say.
"""

from __future__ import annotations

import functools

import pytest
import torch

from torchkeep.checks.running import check

MOST = 10
SHARES = 4

BY_DESIGN = {
    ("nn.LocalResponseNorm", "transposed_inputs"): "it calls view on inputs with three spatial dimensions",
    ("nn.MultiheadAttention", "fully_masked_inputs"): "softmax over nothing is NaN there",
    ("nn.Transformer", "fully_masked_inputs"): "its attention is MultiheadAttention",
    ("nn.TransformerDecoderLayer", "fully_masked_inputs"): "its attention is MultiheadAttention",
}
"""What real modules really do, and why it is expected."""

IN_FLOAT64 = ("nn.FractionalMaxPool2d", "nn.FractionalMaxPool3d")
"""Modules whose configurations hold float64 tensors."""


def _module_db():
    """Import PyTorch's list; that alone forbids setting backend flags in the whole process, which is undone."""
    pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
    flag = "__allow_nonbracketed_mutation_flag"
    before = getattr(torch.backends, flag)
    try:
        from torch.testing._internal.common_modules import module_db
    except ImportError as absent:
        pytest.skip(f"PyTorch's list of modules is private, and not there: {absent}")
    finally:
        setattr(torch.backends, flag, before)
    return {info.name: info for info in module_db}


@functools.cache
def configurations(name):
    """Return (factory, positional inputs, keyword inputs) of a module, at most `MOST`."""
    info = _module_db()[name]
    dtype = torch.float64 if name in IN_FLOAT64 else torch.float32
    torch.manual_seed(0)
    every = list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False))
    chosen = every[:: -(-len(every) // MOST) or 1]
    return [
        (
            functools.partial(info.module_cls, *one.constructor_input.args, **one.constructor_input.kwargs),
            one.forward_input.args,
            one.forward_input.kwargs,
        )
        for one in chosen
    ]


@pytest.fixture(autouse=True)
def _one_thread():
    """Run tiny operations on one thread: starting others takes longer than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("share", range(SHARES))
def test_no_check_fails(share):
    """Of a share of the modules, no configuration fails a check but those listed above."""
    alarms = []
    for name in list(_module_db())[share::SHARES]:
        for factory, args, kwargs in configurations(name):
            report = check(factory, *args, kwargs=kwargs)
            if any((name, result.name) not in BY_DESIGN for result in report.failed):
                alarms.append(f"{name} {factory.args} {factory.keywords}\n{report}")
    assert not alarms, "\n\n".join(alarms)


def test_there_are_many():
    """The shares together are over two hundred configurations."""
    assert sum(len(configurations(name)) for name in _module_db()) > 200


@pytest.mark.parametrize(("name", "found"), BY_DESIGN)
def test_expecting_silences_it(name, found):
    """What a module does by design is silenced by `expected`, and nothing else fails in that configuration."""
    for factory, args, kwargs in configurations(name):
        if check(factory, *args, kwargs=kwargs, only=[found]).failed:
            report = check(factory, *args, kwargs=kwargs, expected={found: BY_DESIGN[name, found]})
            assert report.ok
            assert report[found].status == "expected failure"
            return
    pytest.fail(f"no configuration of {name} fails {found}")
