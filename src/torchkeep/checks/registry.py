"""The list of checks. Each is a function that a decorator registers; its docstring states what it proves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torchkeep.checks.reporting import Finding
    from torchkeep.checks.subject import Subject

Body: TypeAlias = "Callable[[Subject], Iterable[Finding]]"


class NotApplicable(Exception):  # noqa: N818 - it is no error: a check says with it why it can't say anything
    """Raised inside a check: it does not apply to this layer. The argument says why, as a sentence."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what the user calls it; a word of Python.
        family: the file or folder it lives in.
        body: yields findings; raises `NotApplicable`.
        needs: names of checks that must not have failed for this one to mean anything.
        factory: whether it needs fresh instances of the layer.
        opt_in: whether it runs only when named in ``only``, since it is slow.
    """

    name: str
    family: str
    body: Body
    needs: tuple[str, ...] = ()
    factory: bool = False
    opt_in: bool = False

    @property
    def proves(self) -> str:
        """What the check proves, when it does not apply, and how it is decided."""
        return self.body.__doc__ or ""


_CHECKS: dict[str, Check] = {}


def proves(*, needs: tuple[str, ...] = (), factory: bool = False, opt_in: bool = False) -> Callable[[Body], Body]:
    """Register a function as the check of its name; the family is its file or folder below ``families``."""

    def register(body: Body) -> Body:
        name = body.__name__
        assert name not in _CHECKS, f"two checks are called {name}"
        family = body.__module__.rpartition("families.")[2].partition(".")[0]
        _CHECKS[name] = Check(name, family, body, needs, factory, opt_in)
        return body

    return register


@cache
def all_checks() -> dict[str, Check]:
    """Return every check by name, ordered so that each comes after those it needs."""
    from torchkeep.checks import families  # noqa: F401, PLC0415 - importing registers them

    ordered: dict[str, Check] = {}

    def place(check: Check) -> None:
        for needed in check.needs:
            assert needed in _CHECKS, f"{check.name} needs {needed}, which is no check"
            place(_CHECKS[needed])
        ordered.setdefault(check.name, check)

    for check in _CHECKS.values():
        place(check)
    return ordered
