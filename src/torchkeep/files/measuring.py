"""How far apart two tensors are: whether their bits are equal, and if not, by how much their values differ."""

from __future__ import annotations

from math import hypot
from typing import TYPE_CHECKING, Final

import torch
from msgspec import Struct

from torchkeep.dtypes import DTYPES
from torchkeep.tensors.dtypes import torch_dtype

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import Tensor

    from torchkeep.rows import Row
    from torchkeep.tensors.elements import Elements

_BITS: Final = 4 * 1024 * 1024
"""Bytes of each tensor that are compared at a time."""
_READ: Final = 512 * 1024
"""Elements that are read at a time when their values are compared."""
_VALUES: Final = 32 * 1024
"""Elements whose values are compared at a time: their copies as float64 stay in the cache, and torch leaves them
to one thread, which is quicker than waiting for several so often."""
_LOW: Final = 0xFFFFFFFF


class Difference(Struct, frozen=True):
    """How the values of two tensors of one shape differ. A NaN equals a NaN, and -0.0 equals 0.0.

    Attributes:
        elements: how many there are.
        differing: how many of them differ.
        not_finite: how many of those are NaN or infinite in one of the tensors.
        max_abs: the greatest absolute difference, among elements that are finite in both.
        relative: the norm of the difference divided by the first tensor's norm, both over elements that are finite
            in both; None where only the divisor is 0.
    """

    elements: int
    differing: int
    not_finite: int
    max_abs: float
    relative: float | None


def same_bytes(left: Elements, right: Elements, rows: tuple[Row, Row], executor: Executor) -> bool:
    """Tell whether two tensors of one shape and dtype have the same bits."""
    (mine, theirs), nbytes = rows, rows[0].nbytes
    known = left.same_as(mine.name, right, theirs.name)
    if known is not None:
        return known
    for start in range(0, nbytes, _BITS):
        stop = min(start + _BITS, nbytes)
        if stop - start < _BITS // 4:
            found, other = left.read(mine.name, start, stop), right.read(theirs.name, start, stop)
        else:  # two files, two threads
            waiting = executor.submit(right.read, theirs.name, start, stop)
            found = left.read(mine.name, start, stop)
            other = waiting.result()
        if not torch.equal(found, other):
            return False
    return True


def difference(left: Elements, right: Elements, rows: tuple[Row, Row]) -> Difference | None:
    """Measure how the values of two tensors of one shape differ; None where torch can't make numbers of them."""
    elements = rows[0].numel
    differing = not_finite = 0
    max_abs = apart = norm = 0.0
    for start in range(0, elements, _READ):
        stop = min(start + _READ, elements)
        parts = [_part(source, row, start, stop) for source, row in zip((left, right), rows, strict=True)]
        if None in map(_as_number, parts):
            return None
        for at in range(0, stop - start, _VALUES):
            found = _Piece(*(part[at : at + _VALUES] for part in parts))
            differing += found.differing
            not_finite += found.not_finite
            max_abs = max(max_abs, found.max_abs)
            apart, norm = hypot(apart, found.apart), hypot(norm, found.norm)
    relative = apart / norm if norm else None if apart else 0.0
    return Difference(elements, differing, not_finite, max_abs, relative)


def _part(source: Elements, row: Row, start: int, stop: int) -> Tensor:
    size = DTYPES[row.dtype].itemsize
    dtype = torch_dtype(row.dtype)
    if dtype is None:
        raise TypeError(row.dtype)
    # Files that others wrote need not align elements; memory of torch must be.
    return source.read(row.name, start * size, stop * size).clone().view(dtype)


class _Piece:
    """A few elements of both tensors, compared."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        left, right = _numbers(a), _numbers(b)
        if a.dtype == b.dtype and a.dtype in {torch.int64, torch.uint64}:
            gaps = _whole_gaps(a, b)
            differs = gaps != 0
            finite = torch.ones_like(differs)
        else:
            differs = (left != right) & ~(left.isnan() & right.isnan())
            finite = left.isfinite() & right.isfinite()
            gaps = (left - right).abs()
        self.differing = int(differs.sum())
        self.not_finite = int((differs & ~finite).sum())
        zero = torch.zeros((), dtype=torch.float64)
        gaps = torch.where(finite, gaps, zero)
        self.max_abs = float(gaps.max())
        self.apart = _norm(gaps)
        self.norm = _norm(torch.where(finite, left.abs(), zero))


def _as_number(part: Tensor) -> float | complex | None:
    """Return the first element as a number; None where torch has no arithmetic for it (float4, bits8)."""
    try:
        found = _numbers(part[:1]).item()
    except (RuntimeError, TypeError):
        return None
    return found if isinstance(found, complex) else float(found)


def _numbers(part: Tensor) -> Tensor:
    return part.to(torch.complex128 if part.is_complex() else torch.float64)


def _whole_gaps(a: Tensor, b: Tensor) -> Tensor:
    """Return distances of 64-bit integers, of which float64 does not hold each: zero only where they are equal."""
    words, others = (part.view(torch.int32).view(-1, 2).to(torch.int64) for part in (a, b))
    low = (words[:, 0] & _LOW) - (others[:, 0] & _LOW)
    mask = -1 if a.dtype == torch.int64 else _LOW  # the high half of a signed integer has the sign
    high = (words[:, 1] & mask) - (others[:, 1] & mask)
    return (high.to(torch.float64) * 2.0**32 + low.to(torch.float64)).abs()


def _norm(values: Tensor) -> float:
    """Return the norm, scaled so that no square is beyond float64."""
    largest = float(values.max())
    if largest in {0.0, float("inf")}:
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))
