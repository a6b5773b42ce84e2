"""What a source of tensors offers, whatever it is: names, shapes, dtypes, and filling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torchkeep.tensors.copying import copy_bits, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


class Offer(NamedTuple):
    """A tensor that a source has under some name.

    Attributes:
        owner: the name that it is kept under.
        shape: sizes.
        dtype: torch's name.
        obstacle: why its values can't be had, if so.
    """

    owner: str
    shape: tuple[int, ...]
    dtype: str
    obstacle: str | None = None


class Source(ABC):
    """Names that lead to tensors.

    Attributes:
        text: what errors call it.
        offers: every name, aliases included, in order.
        extra: keys of extra state.
        verified: whether the bytes are compared with digests; None where there are no bytes to doubt.
    """

    text: str
    offers: Mapping[str, Offer]
    extra: tuple[str, ...] = ()
    verified: bool | None = None

    @abstractmethod
    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Return tensors by owner's name; those of a file are new."""

    @abstractmethod
    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Copy tensors, by owner's name, into targets of their shape, converting where dtypes differ.

        ``begun`` is told a pair's position before its target changes.
        """

    @abstractmethod
    def extra_state(self) -> Mapping[str, Any]:
        """Return extra state by key."""

    def same(self, one: str, other: str) -> bool:
        """Tell whether two owners' tensors have the same bits."""
        found = self.tensors([one, other])
        return same_bits(found[one], found[other])


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy values: bit for bit, or converted where dtypes differ."""
    with torch.no_grad():
        if source.dtype == target.dtype:
            copy_bits(target, source.to(target.device))
        else:
            target.copy_(source)
