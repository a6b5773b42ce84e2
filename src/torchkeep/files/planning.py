"""What of a source goes where in a model, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from torchkeep.errors import LoadError
from torchkeep.files.explaining import explained
from torchkeep.rows import Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchkeep.files.offering import Offer

Policy: TypeAlias = Literal["error", "ignore"]


class Match(NamedTuple):
    """A tensor of the model and what is copied into it.

    Attributes:
        name: the owner's name in the model.
        source: the name in the source.
        dtypes: the source's dtype and the model's.
    """

    name: str
    source: str
    dtypes: tuple[str, str]

    @property
    def is_cast(self) -> bool:
        """Whether values are converted."""
        return self.dtypes[0] != self.dtypes[1]


class Misfit(NamedTuple):
    """A tensor of the model that what the source has for it does not fit.

    Attributes:
        name: the owner's name in the model.
        source: the name in the source.
        problem: what differs.
    """

    name: str
    source: str
    problem: str


@dataclass(frozen=True)
class LoadPlan:
    """What goes where; ``str()`` of it is for people.

    Attributes:
        source: what the source is called.
        matched: what is copied, in the model's order.
        missing: owners' names in the model (and keys of extra state) that the source has nothing for.
        unexpected: names in the source that the model has nothing for.
        mismatched: what has another shape or dtype.
        impossible: what no policy allows, a sentence each: lazy and meta targets, two sources for one target,
            renames that match nothing.
        not_asked: names in the source that ``select`` leaves out.
        extra: keys of extra state that is restored, in the model and in the source.
        policies: what was given for ``"missing"``, ``"unexpected"`` and ``"mismatch"``.
        hints: what may mend it, a sentence each.
    """

    source: str
    matched: tuple[Match, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Misfit, ...]
    impossible: tuple[str, ...]
    not_asked: tuple[str, ...]
    extra: tuple[tuple[str, str], ...]
    policies: Mapping[str, Policy]
    hints: tuple[str, ...]
    _model: Sequence[Row] = field(repr=False)
    _offers: Mapping[str, Offer] = field(repr=False)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that does not fit and that the policies do not ignore."""
        found = list(self.impossible)
        if self.policies["missing"] == "error":
            found.extend(f"{name!r} of the model is missing from the source" for name in self.missing)
        if self.policies["unexpected"] == "error":
            found.extend(f"{name!r} of the source is unexpected: the model has none" for name in self.unexpected)
        if self.policies["mismatch"] == "error":
            found.extend(f"{misfit.name!r} does not fit: {misfit.problem}" for misfit in self.mismatched)
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether `load_into` would go ahead."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise one error that tells all problems, if there are any.

        Raises:
            LoadError: the source does not fit the model.
        """
        if not self.ok:
            lines = explained(self, self._model, self._offered(), only_problems=True)
            error = LoadError(f"{self.source} does not fit the model; nothing was changed\n{lines}")
            error.problems = self.problems
            raise error

    def __str__(self) -> str:
        lines = explained(self, self._model, self._offered(), only_problems=False)
        return f"plan to load {self.source} into the model\n{lines}"

    def _offered(self) -> list[Row]:
        return [Row(name, offer.shape, offer.dtype) for name, offer in self._offers.items()]
