"""Decide whose values a tie keeps when its places have come apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from torchkeep.tying.agreeing import disagreements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torchkeep.tables.survey import Place

_FILLED, _CONVERTED, _KEPT = range(3)
_WITHOUT_VALUES = 10


@dataclass(frozen=True)
class Candidate:
    """What hangs at one place of a tie now.

    Attributes:
        place: the place.
        moved: whether it is another tensor, or the same one over other memory, than before.
        written: whether it was given values: assigned, loaded from a state_dict, or changed in place.
    """

    place: Place
    moved: bool
    written: bool

    @property
    def rank(self) -> int:
        """How much the values here count: written ones most, then converted ones, then those left alone.

        A tensor without values (on the meta device, or lazy) counts less than any with.
        """
        rank = _FILLED if self.written else _CONVERTED if self.moved else _KEPT
        return rank + _WITHOUT_VALUES * (is_lazy(self.place.tensor) or self.place.tensor.is_meta)


def decide(candidates: Sequence[Candidate]) -> tuple[Place, str]:
    """Return the place whose tensor a tie keeps, and what is wrong with that choice (nothing, if all is well).

    The places with the lowest rank are asked; the first of them wins. Written values must agree bit for bit.
    Converted values come from one tensor, so they differ only where nobody filled them (``to_empty``), and are not
    compared.

    Args:
        candidates: the owner's first.
    """
    best = min(candidate.rank for candidate in candidates)
    asked = [candidate.place for candidate in candidates if candidate.rank == best]
    winner = asked[0]
    for other in asked[1:]:
        problem = _conflict(winner, other, compare=best == _FILLED)
        if problem:
            return winner, problem
    return winner, ""


def _conflict(one: Place, other: Place, *, compare: bool) -> str:
    mine, theirs = one.tensor, other.tensor
    if mine is theirs or is_lazy(mine) or is_lazy(theirs):
        return ""
    for what, here, there in disagreements(mine, theirs):
        return (
            f"{one.name!r} and {other.name!r} are tied, but now the first has {what} {here} and the second "
            f"{there}; treat both alike inside the block"
        )
    if compare and not same_bits(mine, theirs):
        return (
            f"{one.name!r} and {other.name!r} are tied, but were given different values; give both the same (or "
            "only one of them), and initialise after the block, when they are one"
        )
    return ""


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written in place; 0 where torch does not count (lazy, inference)."""
    return 0 if is_lazy(tensor) or tensor.is_inference() else tensor._version  # noqa: SLF001 - the only way to read the counter


def inner_of(tensor: Tensor) -> int:
    """Return what identifies the tensor inside the Python object, while it lives."""
    return tensor._cdata  # noqa: SLF001 - no public way to it


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape and dtype hold the same bits, NaN payloads included."""
    if one.is_meta or other.is_meta or one.layout != torch.strided or other.layout != torch.strided:
        return bool(torch.equal(one.detach(), other.detach()))
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    here = tensor.detach().cpu().resolve_conj().resolve_neg()
    return here.contiguous().reshape(-1).view(torch.uint8)
