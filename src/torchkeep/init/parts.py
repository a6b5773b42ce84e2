"""Parts of tensors: any slice of a tensor drawn alone, and what this process holds of a distributed one."""

from __future__ import annotations

import sys
from math import prod
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from torchkeep.init.drawing import CHUNK, Job, draw

if TYPE_CHECKING:
    from torch import Tensor

    from torchkeep.init.distributions import Distribution

Index: TypeAlias = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]

_ROOM: Final = 16 * CHUNK
"""Reals that are drawn at a time when they do not lie side by side: the whole of what the part spans."""


def check_index(index: Index) -> None:
    """Check that ``index`` takes a rectangular part of a tensor.

    Raises:
        TypeError: it holds something else than whole numbers, slices and an ellipsis.
    """
    for step in index if isinstance(index, tuple) else (index,):
        if isinstance(step, bool) or not isinstance(step, int | slice | EllipsisType):
            raise TypeError(
                f"an index holds whole numbers, slices and `...`, not {step!r}; take other parts by slices"
            )


def draw_part(
    distribution: Distribution,
    key: bytes,
    name: str,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    index: Index = ...,
) -> Tensor:
    """Draw a part of a tensor; only the chunks that it touches are drawn.

    Args:
        distribution: of the elements' reals.
        key: from `drawing.seed_secret`.
        name: canonical name.
        shape: global shape.
        dtype: of the tensor.
        index: whole numbers, slices (with steps too) and an ellipsis.

    Returns:
        What the whole tensor has there: contiguous, on the CPU, in ``dtype``.

    Raises:
        IndexError: ``index`` is outside the shape.
    """
    # What a basic index selects, torch works out best itself; on the meta device it costs nothing.
    part = torch.empty(shape, dtype=dtype, device="meta")[index]
    out = torch.empty(part.shape, dtype=dtype, device="cpu")
    if not out.numel():
        return out
    reals, start, strides, total = out, int(part.storage_offset()), part.stride(), prod(shape)
    if dtype.is_complex:
        reals = torch.view_as_real(out)
        start, strides, total = 2 * start, (*(2 * step for step in strides), 1), 2 * total
    _Part(distribution, key, name, shape, total).fill(reals, start, strides)
    return out


def local_index(tensor: Any) -> Index | None:
    """Return the part of a DTensor that this process holds; None where it is no rectangle.

    Args:
        tensor: a `torch.distributed.tensor.DTensor`.
    """
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - slow to import, seldom needed
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415 - DCP's own

    if not all(type(placement) in {Replicate, Shard} for placement in tensor.placements):
        return None
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether the tensor is a DTensor; where the module that has them was never imported, there is none."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


class _Part:
    """Fills parts of one tensor."""

    def __init__(
        self, distribution: Distribution, key: bytes, name: str, shape: tuple[int, ...], total: int
    ) -> None:
        self._job = (distribution, key, name, shape)
        self._total = total

    def fill(self, out: Tensor, start: int, strides: tuple[int, ...]) -> None:
        """Fill ``out`` with the reals at ``start`` plus any multiples of ``strides`` that its shape allows."""
        span = 1 + sum((size - 1) * step for size, step in zip(out.shape, strides, strict=True))
        if span == out.numel():  # side by side, since an index does not change the order of dimensions
            draw([Job(*self._job, out.view(-1), start, self._total)])
        elif span <= _ROOM:
            room = torch.empty(span, dtype=out.dtype, device="cpu")
            draw([Job(*self._job, room, start, self._total)])
            out.copy_(room.as_strided(out.shape, strides))
        elif (rows := _ROOM // strides[0]) > 0 and out.shape[0] > 1:
            for first in range(0, out.shape[0], rows):
                self.fill(out[first : first + rows], start + first * strides[0], strides)
        else:
            for row, part in enumerate(out):
                self.fill(part, start + row * strides[0], strides[1:])
