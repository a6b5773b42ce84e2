"""Decide which checkpoints a run keeps. Pure: nothing here touches a disk."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Literal, TypeAlias

from torchkeep.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torchkeep.archive.manifest import Summary

Best: TypeAlias = tuple[str, Literal["min", "max"]]
"""A rule: the name of a metric, and whether its lowest or its highest value is the best."""


@dataclass(frozen=True)
class PruneReport:
    """What a prune removed.

    Attributes:
        removed: the checkpoints, in the order they were committed.
        packs: how many files of tensors that no checkpoint needs any more.
    """

    removed: tuple[Summary, ...]
    packs: int


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept; one that any of the rules keeps is kept.

    Of several of one step (saved again with metrics, or in a new line of history after a restore) the latest
    counts, which is the one that is restored by that step.

    Attributes:
        last: how many of the latest steps; None keeps all.
        every: those whose step is a multiple of this; 0 is one.
        best: the best one by a metric, of a step that was saved again too: its name and ``"min"`` or ``"max"``.

    Raises:
        StoreError: a rule that can't be.
    """

    last: int | None = 3
    every: int | None = None
    best: Best | None = None

    def __post_init__(self) -> None:
        for name in ("last", "every"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise StoreError(f"Retention({name}=...) takes a whole number from 1 on or None, not {value!r}")
        if self.best is not None and self.best != (self.best[0], "min") and self.best != (self.best[0], "max"):
            raise StoreError(
                f"Retention(best=...) takes a metric's name and 'min' or 'max', such as ('loss', 'min'), "
                f"not {self.best!r}"
            )

    def kept(self, summaries: Sequence[Summary]) -> set[int]:
        """Return the sequences of those to keep, among these, which come in the order they were committed."""
        current = sorted({summary.step: summary.sequence for summary in summaries}.items(), key=lambda one: one[1])
        recent = current if self.last is None else current[-self.last :]
        kept = {sequence for _, sequence in recent}
        if self.every is not None:
            kept |= {sequence for step, sequence in current if step % self.every == 0}
        if self.best is not None:
            found = best_of(summaries, *self.best)
            kept |= set() if found is None else {found.sequence}
        return kept


def best_of(summaries: Iterable[Summary], metric: str, mode: Literal["min", "max"]) -> Summary | None:
    """Return the one with the lowest or highest value of a metric, the latest of equals; nan never wins.

    None where no checkpoint has that metric as a number.
    """
    found: tuple[float, int, Summary] | None = None
    for summary in summaries:
        value = summary.values().get(metric)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if isinstance(value, float) and isnan(value):  # an int may be too large for isnan
            continue
        rank = (-value if mode == "min" else value, summary.sequence, summary)
        if found is None or rank[:2] > found[:2]:
            found = rank
    return None if found is None else found[2]
