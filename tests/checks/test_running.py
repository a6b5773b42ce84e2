"""Running checks: what layers and inputs they take, how results are reported, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from unittest import SkipTest

import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.planting import floats
from torchkeep.checks.registry import all_checks
from torchkeep.checks.running import CheckWarning
from torchkeep.errors import CheckError, ChecksFailedError, LayerCallError, NoMatchError, UnknownCheckError


class Severed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(floats(4))

    def forward(self, x):
        return x * self.scale.detach()


@dataclass
class Both:
    total: torch.Tensor
    parts: tuple[torch.Tensor, None]


class Nested(nn.Module):
    """Takes a list, a dict and a keyword; gives a dataclass in a dict."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, xs, options, *, ids, flag=True):
        total = self.inner(xs[0] + xs[1]) * options["gain"] + ids.unsqueeze(-1)
        return {"both": Both(total if flag else -total, (total.mean(1), None)), "count": len(xs), "none": None}


def test_nested_inputs_and_outputs():
    """Lists, dicts, keywords, whole numbers, dataclasses, tuples and None go in and out."""
    args = ([floats(3, 4), floats(3, 4, seed=1)], {"gain": floats(3, 1)})
    report = tk.check(Nested, *args, kwargs={"ids": torch.arange(3), "flag": False})
    assert report.ok, report
    assert {"severed_gradient", "deepcopy", "pickle", "functional_call"} <= {one.name for one in report.passed}


def test_a_fault_in_nested_outputs_is_found():
    """What hides two containers deep is compared as well."""

    class Hides(Nested):
        def forward(self, xs, options, *, ids):
            out = super().forward(xs, options, ids=ids)
            out["both"].parts = (torch.rand(3), None)
            return out

    args = ([floats(3, 4), floats(3, 4, seed=1)], {"gain": floats(3, 1)})
    (result,) = tk.check(Hides, *args, kwargs={"ids": torch.arange(3)}, only=["eval_determinism"]).failed
    assert result.tensor == "output['both'].parts[0]"


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (nn.ReLU, (floats(3, 4),)),
        (lambda: nn.Embedding(7, 4), (torch.tensor([1, 5, 2]),)),
        (lambda: nn.EmbeddingBag(7, 4), (torch.tensor([[1, 5], [2, 2]]),)),
        (lambda: nn.Bilinear(4, 3, 2), (floats(5, 4), floats(5, 3))),
        (lambda: nn.LSTM(4, 3, num_layers=2, batch_first=True), (floats(2, 5, 4),)),
        (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU()), (floats(2, 5),)),
        (nn.CrossEntropyLoss, (floats(4, 3), torch.tensor([0, 2, 1, 1]))),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (floats(2, 4),)),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), (floats(2, 4),)),
        (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), (floats(2, 4),)),
        (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (floats(2, 3, 8), floats(2, 4, 8))),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()), (floats(2, 3, 8, 8),)),
    ],
)
def test_torchs_own_layers_behave(make, inputs):
    """Layers without parameters, of whole numbers, lazy, parametrized, recurrent: none is blamed for anything."""
    report = tk.check(make, *inputs)
    assert report.ok, report
    blamed = [one for one in report.warned if one.family in ("gradients", "state", "tools")]
    assert not blamed


def test_a_tied_embedding_behaves():
    """One weight in two places is no fault, and its tie survives."""

    def make():
        net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
        net[2].weight = net[0].weight
        return net

    report = tk.check(make, torch.tensor([[1, 5], [2, 2]]))
    assert report.ok, report
    assert report["ties_survive"].status == "passed"


@tk.block
class Remembering(nn.Module):
    def __init__(self, inner, shift):
        super().__init__()
        self.inner = inner
        self.width = int(shift.numel())

    def forward(self, x):
        return self.inner(x) * self.width


def test_what_a_block_remembers_is_not_hidden():
    """Constructor arguments that `tk.block` remembers are neither hidden modules nor unregistered tensors."""
    report = tk.check(lambda: Remembering(nn.Linear(4, 4), torch.ones(3)), floats(3, 4))
    assert report.ok, report
    assert {"hidden_module", "unregistered_tensor"} <= {one.name for one in report.passed}


def test_an_instance_is_checked_without_fresh_ones():
    """What needs a factory is not applicable, and says what to give."""
    report = tk.check(nn.Linear(4, 4), floats(3, 4))
    assert report.ok
    assert "give a function" in report["fresh_state_dict"].message


def test_inputs_that_do_not_fit_are_the_calls_fault():
    """The layer's own error is the cause, and the sentence shows the shapes."""
    with pytest.raises(
        LayerCallError, match=r"Linear does not run on the inputs given \(args\[0\] \(3, 5\)"
    ) as caught:
        tk.check(lambda: nn.Linear(4, 4), floats(3, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (nn.LazyLinear(3), "is still lazy"),
        (lambda: 3, "it made int"),
        (3, "found int"),
        (nn.Linear, "the factory raised TypeError"),
    ],
)
def test_what_is_no_layer_is_refused(given, sentence):
    """A lazy instance, something else, and factories that make none or raise: a sentence for each."""
    with pytest.raises(CheckError, match=sentence):
        tk.check(given, floats(3, 4))


def test_a_factory_must_make_new_instances():
    """A factory that returns one instance again and again is told so."""
    layer = nn.Linear(4, 4)
    with pytest.raises(CheckError, match="same instance again"):
        tk.check(lambda: layer, floats(3, 4))


def test_names_of_checks_and_declarations_must_exist():
    """A misspelt check, and a selector that selects nothing, are errors with the nearest names."""
    with pytest.raises(UnknownCheckError, match="the nearest: severed_gradient"):
        tk.check(Severed, floats(3, 4), only=["severed_gradients"])
    with pytest.raises(NoMatchError, match="scale"):
        tk.check(Severed, floats(3, 4), declare=tk.Declare(stop_gradient="scales"))


def test_expected_failures_are_kept_honest():
    """An expected failure is none; a pass that was expected to fail is one."""
    report = tk.check(
        Severed, floats(3, 4), expected={"severed_gradient": "on purpose"}, only=["severed_gradient"]
    )
    assert report.ok
    assert report["severed_gradient"].status == "expected failure"
    report = tk.check(nn.ReLU, floats(3, 4), expected={"deepcopy": "it had a lock"}, only=["deepcopy"])
    assert not report.ok
    assert report["deepcopy"].status == "unexpectedly passed"


def test_a_run_in_which_nothing_applied_is_a_failure():
    """A report without one check that applied is not ok, and raises."""
    report = tk.check(nn.Linear(4, 4), floats(3, 4), only=["fresh_state_dict"])
    assert not report.ok
    with pytest.raises(ChecksFailedError, match="no check applied"):
        report.raise_for_failures()


def test_a_report_says_all_and_is_json():
    """Text and JSON name the check, the tensor, the line, what was seen and what to do."""
    report = tk.check(Severed, floats(3, 4))
    with pytest.raises(ChecksFailedError) as caught:
        report.raise_for_failures()
    (result,) = report.failed
    for part in ("FAILED", "severed_gradient", "scale", result.where, result.message, result.fix, "Severed"):
        assert part in str(caught.value)
    document = json.loads(json.dumps(report.to_json()))
    assert document["ok"] is False
    assert [one["name"] for one in document["results"]] == [one.name for one in report.results]


def test_cases_are_one_test_a_check():
    """Cases fail, skip and warn as the check does, and are called by its name."""
    cases = {case.__name__: case for case in tk.check_cases(Severed, floats(3, 4), skip=["bfloat16"])}
    usual = {name for name, one in all_checks().items() if not one.opt_in}
    assert set(cases) == usual - {"bfloat16"}
    cases["deepcopy"]()
    with pytest.raises(ChecksFailedError, match="scale"):
        cases["severed_gradient"]()
    with pytest.raises(SkipTest, match="no tensor has several names"):
        cases["ties_survive"]()

    class Cuts(nn.Linear):
        def forward(self, x):
            return super().forward(x.detach())

    (case,) = tk.check_cases(lambda: Cuts(4, 4), floats(3, 4), only=["severed_gradient"])
    with pytest.warns(CheckWarning, match="severed_gradient"):
        case()


def test_an_error_is_told_once():
    """A layer that raises in training mode fails one check; the others say where it was told."""

    class OnlyEval(nn.Linear):
        def forward(self, x):
            if self.training:
                raise ValueError("not for training")
            return super().forward(x)

    layer = OnlyEval(4, 4).eval()
    report = tk.check(layer, floats(3, 4))
    assert len(report.failed) == 1, report
    assert "not for training" in report.failed[0].message
    assert any("what it raised in" in one.message for one in report.not_applicable)


def test_a_bug_in_a_check_is_not_blamed_on_the_layer(monkeypatch):
    """What a check itself raises comes out as it is."""
    from torchkeep.checks import probing
    from torchkeep.checks.families.gradients import flowing

    def broken(*_args):
        raise KeyError("ours")

    code = broken.__code__.replace(co_filename=probing.__file__)
    monkeypatch.setattr(flowing, "flow_of", type(broken)(code, {}))
    with pytest.raises(KeyError):
        tk.check(Severed, floats(3, 4), only=["severed_gradient"])
