"""Totals of rows: parameters, trainable and frozen, and buffers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from torchkeep.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torchkeep.rows import Row


class Count(Struct):
    """So many tensors.

    Attributes:
        tensors: number of tensors; a tie is one.
        numel: number of their elements.
        nbytes: bytes of those elements.
    """

    tensors: int = 0
    numel: int = 0
    nbytes: int = 0

    def add(self, tensors: int, numel: int, nbytes: int) -> None:
        """Count some more."""
        self.tensors += tensors
        self.numel += numel
        self.nbytes += nbytes


class Totals(Struct):
    """What rows come to. Each row is one tensor, so a tie counts once.

    Attributes:
        tensors: all rows.
        parameters: those of kind parameter.
        buffers: those of kind buffer.
        unknown: those of no known kind.
        trainable: the parameters known to be trainable.
        frozen: the parameters known not to be.
        tied: number of rows that have aliases.
        lazy: number of rows that have no shape yet; they count with no elements.
        not_persistent: number of rows that are not part of the state_dict.
    """

    tensors: Count
    parameters: Count
    buffers: Count
    unknown: Count
    trainable: Count
    frozen: Count
    tied: int = 0
    lazy: int = 0
    not_persistent: int = 0


def count(lines: Iterable[tuple[Row, int]]) -> Totals:
    """Add up rows.

    Args:
        lines: a row, and how many rows there are that differ from it only in their names.

    Returns:
        The totals.
    """
    found = Totals(Count(), Count(), Count(), Count(), Count(), Count())
    kinds = {"parameter": found.parameters, "buffer": found.buffers, None: found.unknown}
    for row, times in lines:
        numel = row.numel * times
        counted = (times, numel, numel * DTYPES[row.dtype].itemsize)
        found.tensors.add(*counted)
        kinds[row.kind].add(*counted)
        if row.kind == "parameter" and row.trainable is not None:
            (found.trainable if row.trainable else found.frozen).add(*counted)
        found.tied += times * bool(row.aliases)
        found.lazy += times * (row.shape is None)
        found.not_persistent += times * (not row.persistent)
    return found
