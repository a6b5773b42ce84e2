"""Run the checks on a layer, each on its own, and leave everything as it was."""

from __future__ import annotations

import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch

from torchkeep.checks.declaring import Declare
from torchkeep.checks.registry import Check, NotApplicable, all_checks
from torchkeep.checks.reporting import CheckReport, Finding, Result
from torchkeep.checks.subject import Subject, in_a_line, source_of, undisturbed
from torchkeep.errors import CheckError, ChecksFailedError, UnknownCheckError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import nn

    Given = nn.Module | Callable[[], nn.Module]


_LARGE = 50_000_000
"""Elements from which a layer is worth several threads; below, they mostly wait for each other."""


def check(
    layer: Given,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    declare: Declare | None = None,
    expected: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> CheckReport:
    """Check that a layer behaves.

    Nothing of the caller's changes: the layer's values, mode, hooks and gradients, the inputs, random states, grad
    mode, default dtype and device, thread count. Meanwhile a layer of less than 50 million elements runs on one
    thread.

    Args:
        layer: the layer, or a function without arguments that makes one. With a function, the checks that need
            fresh instances apply too.
        *args: positional inputs for its forward.
        kwargs: keyword inputs.
        declare: what the layer means to do; see `Declare`.
        expected: names of checks that are known to fail, with the reason.
        only: names of the checks to run; None: all but those that are opt-in since they are slow.
        skip: names of checks to leave out.

    Raises:
        LayerCallError: the layer does not run on these inputs at all.
        UnknownCheckError: a name is no check's.
        CheckError: the factory makes no module.
        SelectorError: a declaration selects nothing.
    """
    chosen = _chosen(only, skip, expected or {})
    # The factory may draw, and the first call may reseed: what is put back is what was there before both.
    with undisturbed():
        subject = Subject(layer, args, kwargs or {}, declare or Declare())
        if sum(tensor.numel() for tensor in subject.snapshot.tensors) < _LARGE:
            torch.set_num_threads(1)
        for selection in (subject.declare.stop_gradient, subject.declare.mutates):
            subject.selected(selection)
        with undisturbed(subject.snapshot), _kept(subject):
            subject.first_call()
        results: dict[str, Result] = {}
        raised: dict[str, str] = {}
        for name, one in chosen.items():
            results[name] = _expected(_run(one, subject, results, raised), (expected or {}).get(name))
    asked = [result for name, result in results.items() if only is None or name in only]
    return CheckReport(type(subject.layer).__name__, tuple(asked))


class CheckWarning(UserWarning):
    """A check saw what may be meant; its fix says how to declare it."""


@dataclass(frozen=True)
class CheckCase:
    """One check of one layer, to be called by a test.

    Attributes:
        name: the check's name.
        run: runs it, and those it needs.
    """

    name: str
    run: Callable[[], CheckReport]

    @property
    def __name__(self) -> str:  # pytest takes a parameter's name from here
        return self.name

    def __call__(self) -> None:
        """Run the check.

        Raises:
            ChecksFailedError: it failed.
            SkipTest: it does not apply, which test runners show as skipped.
        """
        report = self.run()
        if report.failed:
            raise ChecksFailedError(str(report))
        for result in report.not_applicable:
            raise SkipTest(result.message)
        for result in report.warned:
            warnings.warn(f"{result.name}: {result.message}; {result.fix}", CheckWarning, stacklevel=2)


def check_cases(factory: Given, *args: Any, skip: Collection[str] = (), **options: Any) -> list[CheckCase]:
    """Return one case for each check, for ``@pytest.mark.parametrize("case", tk.check_cases(...))``.

    Args:
        factory: as for `check`, and so are the other arguments; ``only`` limits the cases.
        *args: positional inputs for the layer.
        skip: names of checks to leave out.
        **options: ``kwargs``, ``declare``, ``expected`` and ``only`` as for `check`.
    """
    names = _chosen(options.pop("only", None), skip, options.get("expected") or {}, with_needed=False)

    def case(name: str) -> CheckCase:
        return CheckCase(name, lambda: check(factory, *args, only=(name,), **options))

    return [case(name) for name in names]


def _chosen(
    only: Collection[str] | None, skip: Collection[str], expected: Mapping[str, str], *, with_needed: bool = True
) -> dict[str, Check]:
    """Return the checks to run, with those they need, in order."""
    known = all_checks()
    for asked in (*(only or ()), *skip, *expected):
        if asked not in known:
            from torchkeep.selectors.suggest import nearest  # noqa: PLC0415 - only this error needs it

            near = ", ".join(nearest(asked, known))
            raise UnknownCheckError(f"there is no check {asked!r}; the nearest: {near or ', '.join(known)}")
    wanted = {name for name, one in known.items() if (name in only if only is not None else not one.opt_in)}
    if with_needed:
        for name in reversed(known):
            if name in wanted:
                wanted.update(known[name].needs)
    return {name: one for name, one in known.items() if name in wanted and name not in skip}


def _run(one: Check, subject: Subject, before: dict[str, Result], raised: dict[str, str]) -> Result:
    """Run one check in isolation and say what became of it.

    Args:
        one: the check.
        subject: the layer.
        before: results of the checks that ran earlier.
        raised: names of checks by what the layer raised in them; added to.
    """
    result = Result(one.name, one.family, "passed")
    failed = _failed_below(one, before)
    if failed:
        return replace(result, status="not applicable", message=f"{failed} failed, which this one rests on")
    if one.factory and subject.make is None:
        reason = "it needs fresh instances: give a function that makes the layer instead of an instance"
        return replace(result, status="not applicable", message=reason)
    start = time.perf_counter()
    findings: list[Finding] = []
    with undisturbed(subject.snapshot), _kept(subject):
        try:
            findings = list(one.body(subject))
        except NotApplicable as reason:
            result = replace(result, status="not applicable", message=str(reason))
        except CheckError:
            raise
        except Exception as error:
            if _is_ours(error):
                raise
            same = raised.setdefault(in_a_line(error), one.name)
            if same == one.name:
                findings = [_raised(error)]
            else:
                message = f"the layer raises here what it raised in {same}"
                result = replace(result, status="not applicable", message=message)
    return replace(_summary(result, findings), seconds=time.perf_counter() - start)


def _failed_below(one: Check, before: Mapping[str, Result]) -> str:
    """Return the name of a check that failed, expectedly or not, and that this one rests on, directly or not."""
    for needed in one.needs:
        if needed in before and before[needed].status in ("failed", "expected failure"):
            return needed
        below = _failed_below(all_checks()[needed], before) if needed in before else ""
        if below:
            return below
    return ""


def _is_ours(error: Exception) -> bool:
    """Tell whether a check itself raised: a mistake of ours must not be told as the layer's."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(__file__).parent)


def _raised(error: Exception) -> Finding:
    return Finding(
        f"the layer ran on the inputs as given, but raised in this check: {in_a_line(error)}",
        "make the layer run there too, or list the check in `expected` with the reason",
        where=source_of(error),
    )


def _summary(result: Result, findings: list[Finding]) -> Result:
    """Fold the findings of one check into its result; failures hide warnings."""
    severe = [finding for finding in findings if finding.severe]
    told = severe or findings
    if not told:
        return result
    return replace(
        result,
        status="failed" if severe else "warned",
        tensor=", ".join(dict.fromkeys(finding.tensor for finding in told if finding.tensor)),
        message="; ".join(dict.fromkeys(finding.message for finding in told)),
        fix="; ".join(dict.fromkeys(finding.fix for finding in told)),
        where=", ".join(dict.fromkeys(finding.where for finding in told if finding.where)),
    )


def _expected(result: Result, reason: str | None) -> Result:
    """Apply the caller's expectation of a failure."""
    if reason is None:
        return result
    if result.status in ("failed", "warned"):
        return replace(result, status="expected failure", message=f"{reason} ({result.message})")
    if result.status == "passed":
        message = f"it was expected to fail ({reason}), but passes"
        return replace(result, status="unexpectedly passed", message=message, fix="remove it from `expected`")
    return result


@contextmanager
def _kept(subject: Subject) -> Iterator[None]:
    """Keep the caller's inputs as they are, should a check hand one over by mistake."""
    saved = [(tensor, tensor._version) for tensor in subject.input_tensors.values()]  # noqa: SLF001 - torch's counter
    yield
    changed = [tensor for tensor, version in saved if tensor._version != version]  # noqa: SLF001
    assert not changed, "a check changed the caller's inputs"
