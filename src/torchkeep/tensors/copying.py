"""Copy parts of a tensor's bytes to and from memory, bit for bit, whatever its dtype, device and strides.

The bytes of a tensor are those of its elements in row-major order, without gaps, as safetensors keeps them.
"""

from __future__ import annotations

from ctypes import c_char, memmove
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by size. Elements are moved as these, so that no bit of a NaN changes and no dtype is left out."""


def plain_address(tensor: Tensor) -> int | None:
    """Return the address of a tensor whose elements lie in row-major order in the CPU's memory; else None."""
    if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.data_ptr()


def copy_out(tensor: Tensor, offset: int, nbytes: int, address: int) -> None:
    """Copy ``nbytes`` bytes of a tensor, from byte ``offset`` on, to ``address``.

    Both ends lie between elements.
    """
    words = _as_words(tensor)
    size = words.element_size()
    assert address % size == 0  # torch's kernels rely on it, and so does `_memory`, which copies otherwise
    memory = _memory(address, nbytes, words.dtype)
    for part, begin, end in _boxes(words, offset // size, (offset + nbytes) // size):
        memory[begin:end].view(part.shape).copy_(part)


def copy_in(tensor: Tensor, offset: int, nbytes: int, address: int) -> None:
    """Copy ``nbytes`` bytes from ``address`` into a tensor, from byte ``offset`` on.

    Both ends lie between elements. Autograd is told nothing.
    """
    words = _as_words(tensor)
    size = words.element_size()
    memory = _memory(address, nbytes, words.dtype)
    for part, begin, end in _boxes(words, offset // size, (offset + nbytes) // size):
        part.copy_(memory[begin:end].view(part.shape))


def cast_in(tensor: Tensor, dtype: torch.dtype, offset: int, nbytes: int, address: int) -> None:
    """Copy elements of another ``dtype`` from ``address`` into a tensor, converting them as ``Tensor.to`` does.

    Args:
        tensor: the target.
        dtype: of the elements at ``address``.
        offset: how many bytes of elements of ``dtype`` come before, in row-major order.
        nbytes: how many bytes there are at ``address``.
        address: where they are.
    """
    memory = _memory(address, nbytes, dtype)
    first = offset // dtype.itemsize
    for part, begin, end in _boxes(tensor.detach(), first, first + len(memory)):
        part.copy_(memory[begin:end].view(part.shape))


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: str | torch.device, strides: Sequence[int] | None = None
) -> Tensor:
    """Return a tensor with undefined values.

    Args:
        shape: sizes.
        dtype: any that is not quantized.
        device: where.
        strides: steps in elements, dense; None for row-major.
    """
    if dtype == torch.complex32:  # it would warn that not all operators know it, which is of no concern here
        return empty(shape, torch.int32, device, strides).view(dtype)
    if strides is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _as_words(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    word = WORDS.get(tensor.element_size())
    return torch.view_as_real(tensor).view(torch.int64) if word is None else tensor.view(word)


def _memory(address: int, nbytes: int, dtype: torch.dtype) -> Tensor:
    """Return a 1-D tensor over memory that someone else keeps alive."""
    if not nbytes:
        return torch.empty(0, dtype=dtype)
    memory = (c_char * nbytes).from_address(address)
    if address % dtype.itemsize:
        # Files of other writers need not be aligned; torch's kernels rely on it.
        aligned = torch.empty(nbytes // dtype.itemsize, dtype=dtype)
        memmove(aligned.data_ptr(), address, nbytes)
        return aligned
    return torch.frombuffer(memory, dtype=dtype)


def _boxes(tensor: Tensor, first: int, last: int, start: int = 0) -> list[tuple[Tensor, int, int]]:
    """Cut elements ``first`` to ``last``, in row-major order, into parts that are rectangular.

    Returns:
        Each part with its first and last element's position among those cut, counted from ``start``.
    """
    if first >= last:
        return []
    if last - first == tensor.numel():
        return [(tensor, start, start + last - first)]
    row = tensor[0].numel()
    top, bottom = -(-first // row), last // row
    if top > bottom:  # within one row
        return _boxes(tensor[bottom], first - bottom * row, last - bottom * row, start)
    parts = []
    if first < top * row:
        parts.extend(_boxes(tensor[top - 1], first - (top - 1) * row, row, start))
    if top < bottom:
        parts.append((tensor[top:bottom], start + top * row - first, start + bottom * row - first))
    if bottom * row < last:
        parts.extend(_boxes(tensor[bottom], 0, last - bottom * row, start + bottom * row - first))
    return parts


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors have the same shape, dtype and bits; NaNs are compared as bits too."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    left, right = (_as_words(tensor.resolve_conj().resolve_neg()) for tensor in (left, right))
    return torch.equal(left, right.to(left.device))


def copy_bits(target: Tensor, source: Tensor) -> None:
    """Copy a tensor of the same shape and dtype, bit for bit; autograd is told only that the target changed."""
    _as_words(target).copy_(_as_words(source.resolve_conj().resolve_neg()))
