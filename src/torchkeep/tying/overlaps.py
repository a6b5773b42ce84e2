"""Overlaps that are no ties, told apart from tensors that merely lie between each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchkeep.tensors.identity import span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from torchkeep.tables.survey import Survey


def real_overlaps(found: Survey) -> tuple[tuple[str, ...], ...]:
    """Return the survey's overlaps in which some element belongs to two tensors.

    Two columns of one matrix lie between each other, and share no element.
    """
    tensors = {row.name: tensor for row, tensor in zip(found.listing.rows, found.tensors, strict=True)}
    return tuple(names for names in found.overlaps if _share_an_element(tensors[name] for name in names))


def _share_an_element(tensors: Iterable[Tensor]) -> bool:
    known = [(tensor, place) for tensor in tensors if (place := span(tensor))]
    first = min(place.start for _, place in known)
    taken = torch.zeros(max(place.stop for _, place in known) - first, dtype=torch.bool)
    for tensor, place in known:
        size = tensor.element_size()
        # A dimension of stride 0 holds the same elements again.
        shape = [1 if step == 0 else n for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
        steps = [step * size for step in tensor.stride()]
        mine = taken.as_strided([*shape, size], [*steps, 1], place.start - first)
        if mine.any():
            return True
        try:
            mine.fill_(value=True)
        except RuntimeError:
            # Its own elements overlap, as the windows of a rolling view do.
            return True
    return False
