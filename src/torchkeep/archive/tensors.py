"""What is committed: a tensor's bytes, wherever they are, cut into pieces of at most 16 MiB."""

from __future__ import annotations

from ctypes import memmove
from math import gcd, prod
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

from torchkeep.dtypes import DTYPES
from torchkeep.formats.digests import CHUNK
from torchkeep.storage.buffers import copy_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Copy: TypeAlias = "Callable[[int, int, int], None]"
"""Copies ``nbytes`` bytes from ``start`` of a part, in row-major order, to an address: (start, nbytes, address).
It is called from several threads, and must give the same bytes each time until the commit has returned."""

_Shape: TypeAlias = tuple[int, ...]
_PAGE: Final = 4096


class Part(NamedTuple):
    """A box of a tensor that one memory holds.

    Attributes:
        offset: its first element in the whole tensor.
        shape: its sizes.
        source: gives its bytes; or the memory where they lie together, which the caller keeps: they are compared
            there instead of being copied first.
    """

    offset: _Shape
    shape: _Shape
    source: Copy | memoryview


class TensorBytes(NamedTuple):
    """A tensor to be committed.

    Attributes:
        dtype: torch's name.
        shape: sizes of the whole tensor.
        parts: boxes that fill it without overlapping.
    """

    dtype: str
    shape: _Shape
    parts: tuple[Part, ...]

    @classmethod
    def whole(cls, dtype: str, shape: _Shape, source: Copy | memoryview) -> Self:
        """Describe a tensor that is all in one memory; see `Part`."""
        return cls(dtype, shape, (Part((0,) * len(shape), shape, source),))

    @classmethod
    def of(cls, data: bytes, dtype: str = "uint8", shape: _Shape | None = None) -> Self:
        """Describe bytes; without a shape they have one dimension."""

        def copy(start: int, nbytes: int, address: int) -> None:
            memmove(address, data[start : start + nbytes], nbytes)

        return cls.whole(dtype, (len(data) // DTYPES[dtype].itemsize,) if shape is None else shape, copy)


class Wanted(NamedTuple):
    """A piece of a tensor that a commit must hold.

    Attributes:
        tensor: the tensor's name.
        dtype: its dtype, as torch calls it.
        offset: the piece's first element in the whole tensor.
        shape: its sizes.
        whole: whether it is the whole tensor.
        start: its first byte in its part.
        nbytes: its size.
        source: gives the part's bytes; or the memory of the piece's own.
    """

    tensor: str
    dtype: str
    offset: _Shape
    shape: _Shape
    whole: bool
    start: int
    nbytes: int
    source: Copy | memoryview

    def give(self, first: int, room: memoryview, address: int) -> None:
        """Copy its bytes, from ``first`` on, to memory that begins at an address, as many as there is room for."""
        if isinstance(self.source, memoryview):
            copy_view(room, self.source[first : first + len(room)])
        else:
            self.source(self.start + first, len(room), address)


def pieces_of(tensors: Mapping[str, TensorBytes], limit: int = CHUNK) -> Iterator[Wanted]:
    """Cut tensors into pieces of at most ``limit`` bytes."""
    for name, (dtype, whole, parts) in tensors.items():
        itemsize = DTYPES[dtype].itemsize
        for first, box, source in parts:
            nbytes = prod(box) * itemsize
            if 0 < nbytes <= limit:
                yield Wanted(name, dtype, first, box, box == whole, 0, nbytes, source)
                continue
            start = 0
            for offset, shape in cut(box, itemsize, limit):
                nbytes = prod(shape) * itemsize
                at = tuple(map(sum, zip(first, offset, strict=True)))
                here = source[start : start + nbytes] if isinstance(source, memoryview) else source
                yield Wanted(name, dtype, at, shape, shape == whole, start, nbytes, here)
                start += nbytes


def cut(shape: _Shape, itemsize: int, limit: int) -> Iterator[tuple[_Shape, _Shape]]:
    """Cut a box into boxes whose bytes lie together and are at most ``limit``, in row-major order.

    Their sizes are whole pages where that is possible.

    Returns:
        Offset and shape of each; none for a box without elements.
    """
    nbytes = prod(shape) * itemsize
    if nbytes <= limit:
        if nbytes:
            yield (0,) * len(shape), shape
        return
    row = nbytes // shape[0]
    if row > limit:
        inner = list(cut(shape[1:], itemsize, limit))
        for index in range(shape[0]):
            yield from (((index, *offset), (1, *box)) for offset, box in inner)
        return
    rows, even = limit // row, _PAGE // gcd(row, _PAGE)
    rows -= rows % even if rows >= even else 0
    zeros = (0,) * (len(shape) - 1)
    for first in range(0, shape[0], rows):
        yield (first, *zeros), (min(rows, shape[0] - first), *shape[1:])


def flat_start(shape: _Shape, offset: _Shape, box: _Shape, itemsize: int) -> int | None:
    """Return a box's first byte in a row-major tensor of that shape; None where its bytes do not lie together."""
    start, stride, whole = 0, itemsize, True
    for size, first, length in zip(reversed(shape), reversed(offset), reversed(box), strict=True):
        if not whole and length != 1:
            return None
        whole = whole and length == size
        start += first * stride
        stride *= size
    return start


def runs_of(shape: _Shape, offset: _Shape, box: _Shape, itemsize: int) -> Iterator[tuple[int, int, int]]:
    """Yield what of a box lies together in a row-major tensor of that shape.

    Returns:
        First byte in the tensor, first byte in the box, number of bytes.
    """
    nbytes = prod(box) * itemsize
    start = flat_start(shape, offset, box, itemsize)
    if start is not None:
        yield start, 0, nbytes
        return
    row, step = nbytes // box[0], prod(shape[1:]) * itemsize
    for index in range(box[0]):
        for first, source, length in runs_of(shape[1:], offset[1:], box[1:], itemsize):
            yield (offset[0] + index) * step + first, index * row + source, length
