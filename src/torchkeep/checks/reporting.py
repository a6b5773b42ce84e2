"""What checks found: findings, results, and the report of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from torchkeep.caching import cached_property
from torchkeep.errors import ChecksFailedError

Status: TypeAlias = Literal[
    "passed", "failed", "warned", "expected failure", "unexpectedly passed", "not applicable"
]
"""What became of a check. A failure that was expected, and says why, is none; a check that passes although its
failure was expected fails, so that expectations don't outlive what they excuse."""

_MARKS: dict[Status, str] = {
    "passed": "ok",
    "failed": "FAILED",
    "warned": "warning",
    "expected failure": "expected",
    "unexpectedly passed": "UNEXPECTED PASS",
    "not applicable": "n/a",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        message: what was seen and what was expected, in one sentence.
        fix: what to do, in one sentence.
        tensor: name of the tensor, or path of the input or output, that it is about; may be empty.
        where: ``file:line`` of the source that does it, where that can be known.
        severe: whether it fails the check; otherwise it is a warning.
    """

    message: str
    fix: str
    tensor: str = ""
    where: str = ""
    severe: bool = True


@dataclass(frozen=True)
class Result:
    """What became of one check.

    Attributes:
        name: the check's name, such as ``"severed_gradient"``.
        family: the group it belongs to, such as ``"gradients"``.
        status: see `Status`.
        tensor: names of the tensors concerned, joined by commas; may be empty.
        message: what was seen; for a check that does not apply, why.
        fix: what to do; may be empty.
        where: ``file:line``, where that can be known.
        seconds: how long the check took, in wall-clock seconds.
    """

    name: str
    family: str
    status: Status
    tensor: str = ""
    message: str = ""
    fix: str = ""
    where: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class CheckReport:
    """The results of all checks on one layer.

    Attributes:
        layer: the layer's class, as text.
        results: one for each check, in the order run.
    """

    layer: str
    results: tuple[Result, ...]

    def _with(self, *statuses: Status) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status in statuses)

    @cached_property
    def failed(self) -> tuple[Result, ...]:
        """Checks that failed, and those that passed although their failure was expected."""
        return self._with("failed", "unexpectedly passed")

    @cached_property
    def warned(self) -> tuple[Result, ...]:
        """Checks that saw what may be meant, and say how to declare it."""
        return self._with("warned")

    @cached_property
    def passed(self) -> tuple[Result, ...]:
        """Checks that applied and saw nothing wrong."""
        return self._with("passed")

    @cached_property
    def not_applicable(self) -> tuple[Result, ...]:
        """Checks that could not say anything about this layer, with the reason."""
        return self._with("not applicable")

    @property
    def ok(self) -> bool:
        """Whether nothing failed and at least one check applied."""
        return not self.failed and len(self.not_applicable) < len(self.results)

    def __getitem__(self, name: str) -> Result:
        """Return one check's result by its name; KeyError when it was not run."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no check {name!r} was run; run were {', '.join(result.name for result in self.results)}")

    def raise_for_failures(self) -> None:
        """Raise when the layer failed.

        Raises:
            ChecksFailedError: a check failed, or none applied; the sentence is the report.
        """
        if not self.ok:
            raise ChecksFailedError(str(self))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, ready for ``json.dumps``."""
        return {"layer": self.layer, "ok": self.ok, "results": [asdict(result) for result in self.results]}

    def __str__(self) -> str:
        from torchkeep.rows.text import table  # noqa: PLC0415 - a report may never be shown

        shown = [
            (_MARKS[result.status], result.name, f"{result.seconds * 1e3:.0f} ms", *_told(result))
            for result in self.results
        ]
        counts = Counter(result.status for result in self.results)
        summary = ", ".join(f"{counts[status]} {status}" for status in _MARKS if counts[status])
        verdict = (
            "behaves" if self.ok else "does not behave" if self.failed else "was not checked: no check applied"
        )
        return f"{table(('', 'check', 'time', 'seen', 'do'), shown)}\n{self.layer} {verdict}: {summary}"


def _told(result: Result) -> tuple[str, str]:
    parts = (result.tensor, result.message, f"({result.where})" if result.where else "")
    return ": ".join(filter(None, parts[:2])) + (f" {parts[2]}" if parts[2] else ""), result.fix
