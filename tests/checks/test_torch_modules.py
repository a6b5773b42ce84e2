"""No check fails on PyTorch's own modules, in the configurations that PyTorch tests them in.

Some configurations of each module are checked each time; all of them (1,800, being products of options: 857 of
LinearCrossEntropyLoss, 105 of CrossEntropyLoss, some 64 of each part of Transformer) with the tests marked `long`.
Checks that are opt-in are left out.
"""

from __future__ import annotations

import pytest
import torch

from checks.module_db import configurations, infos, share
from torchkeep.checks.running import check

MOST = 6
SHARES = 4

BY_DESIGN = {
    ("nn.CTCLoss", "expanded_inputs"): "for some expanded targets torch gives another loss",
    ("nn.LocalResponseNorm", "transposed_inputs"): "it calls view on inputs with three spatial dimensions",
    ("nn.MultiheadAttention", "fully_masked_inputs"): "softmax over nothing is NaN there",
    ("nn.Transformer", "fully_masked_inputs"): "its attention is MultiheadAttention",
    ("nn.TransformerDecoderLayer", "fully_masked_inputs"): "its attention is MultiheadAttention",
}
"""What real modules really do, and why it is expected."""


@pytest.fixture(autouse=True, scope="module")
def _listed():
    """Leave out everything where PyTorch's list is not to be had."""
    pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
    try:
        infos()
    except ImportError as absent:
        pytest.skip(f"PyTorch's list of modules is private, and not there: {absent}")


@pytest.fixture(autouse=True)
def _one_thread():
    """Run tiny operations on one thread: starting others takes longer than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_quiet(found):
    """Assert that no configuration fails a check but those listed above."""
    alarms = []
    for one in found:
        report = check(one.make, *one.args, kwargs=one.kwargs)
        if any((one.module, result.name) not in BY_DESIGN for result in report.failed):
            alarms.append(f"{one.module} {one.make.args} {one.make.keywords}\n{report}")
    assert not alarms, "\n\n".join(alarms)


@pytest.mark.parametrize("part", range(SHARES))
def test_no_check_fails(part):
    """Of some configurations of each module, none fails."""
    assert_quiet(share(part, SHARES, MOST))


@pytest.mark.long
@pytest.mark.parametrize("part", range(SHARES))
def test_no_check_fails_in_any_configuration(part):
    """Of all configurations, none fails."""
    assert_quiet(share(part, SHARES))


def test_there_are_many():
    """Over two hundred configurations are checked each time, and far more where all are."""
    assert len(share(0, 1, MOST)) > 200
    assert len(share(0, 1)) > 1000


@pytest.mark.parametrize(("name", "found"), BY_DESIGN)
def test_expecting_silences_it(name, found):
    """What a module does by design is silenced by `expected`, and nothing else fails in that configuration."""
    for one in configurations(name):
        if check(one.make, *one.args, kwargs=one.kwargs, only=[found]).failed:
            report = check(one.make, *one.args, kwargs=one.kwargs, expected={found: BY_DESIGN[name, found]})
            assert report.ok
            assert report[found].status == "expected failure"
            return
    pytest.fail(f"no configuration of {name} fails {found}")
