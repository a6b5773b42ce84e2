"""Read tensors whose elements don't lie in row-major order: some rows of the first dimension at a time, or all.

Of a transposed matrix, say, what such rows consist of lies in the file in as many runs as there are columns.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

import torch

from torchkeep.tensors.copying import WORDS, copy_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from torchkeep.storage.base import ReadableFile

_WINDOW: Final = 32 * 1024 * 1024
"""Bytes of rows that are held."""
_RUN: Final = 4096
"""Where the runs are shorter, reading them one by one would take longer than reading all."""


class Rows:
    """Some rows of one tensor at a time.

    Args:
        file: where tensors are read from.
    """

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        self._held: tuple[tuple[int, ...], int, Tensor] = ((), 0, torch.empty(0))

    def read(
        self, begin: int, shape: Sequence[int], strides: Sequence[int], itemsize: int, span: tuple[int, int]
    ) -> Tensor | None:
        """Return some bytes of a tensor's elements in row-major order, or None where too many runs would be read.

        Args:
            begin: the tensor's first byte in the file.
            shape: sizes.
            strides: steps, in elements.
            itemsize: bytes of an element.
            span: the first byte that is wanted, and one past the last.
        """
        steps = [(size, step) for size, step in zip(shape, strides, strict=True) if size != 1]
        sizes, strides = [size for size, _ in steps], [step for _, step in steps]
        row = torch.Size(sizes[1:]).numel() * itemsize
        rows = max(1, _WINDOW // row)
        if _run_of([min(rows, sizes[0]), *sizes[1:]], strides) * itemsize < _RUN:
            return None
        parts = []
        for window in range(span[0] // (rows * row), -(-span[1] // (rows * row))):
            first = window * rows
            key = begin, *shape, *strides
            if self._held[:2] != (key, first):
                box = [min(rows, sizes[0] - first), *sizes[1:]]
                self._held = (), 0, torch.empty(0)
                start = begin + first * strides[0] * itemsize
                self._held = key, first, _box(self._file, start, box, strides, itemsize)
            parts.append(self._held[2][max(span[0] - first * row, 0) : span[1] - first * row])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _run_of(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements, at least, lie one after the other."""
    run = 1
    for step, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1 and step == run:
            run *= size
    return run


def _box(file: ReadableFile, start: int, sizes: Sequence[int], strides: Sequence[int], itemsize: int) -> Tensor:
    """Read a part of a tensor, run by run, and return its bytes in row-major order."""
    order = sorted(range(len(sizes)), key=lambda dim: (strides[dim], sizes[dim]), reverse=True)
    run, inner = 1, len(order)
    while inner and strides[order[inner - 1]] == run:
        inner -= 1
        run *= sizes[order[inner]]
    places = product(*(range(0, sizes[dim] * strides[dim], strides[dim]) for dim in order[:inner]))
    found = bytearray().join(file.read(start + sum(place) * itemsize, run * itemsize) for place in places)
    word = WORDS.get(itemsize, torch.int64)
    each = itemsize // word.itemsize
    memory = torch.frombuffer(found, dtype=word).view(*(sizes[dim] for dim in order), each)
    back = sorted(range(len(order)), key=order.__getitem__)
    return memory.permute(*back, len(order)).contiguous().view(-1).view(torch.uint8)


class Held:
    """One tensor as it lies in its file: an expanded one may have any number of elements, but little memory."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._tensor = torch.empty(0)

    def read(self, name: str, load: Callable[[], Tensor], start: int, stop: int) -> Tensor:
        """Return bytes of the elements, in row-major order, of the tensor that ``load`` gives."""
        if self._name != name:
            self._name, self._tensor = None, torch.empty(0)
            self._name, self._tensor = name, _resolved(load())
        size = self._tensor.element_size()
        first, last = start - start % size, stop + -stop % size  # whole elements
        memory = torch.empty(last - first, dtype=torch.uint8)
        copy_out(self._tensor, first, last - first, memory.data_ptr())
        return memory[start - first : stop - first]


def _resolved(tensor: Tensor) -> Tensor:
    """Return a tensor that is neither lazily conjugated nor negated, its elements where they are."""
    if not (tensor.is_conj() or tensor.is_neg()) or not tensor.numel():
        return tensor
    reached = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((reached,), (1,)).resolve_conj().resolve_neg()
    return memory.as_strided(tensor.shape, tensor.stride())
