"""Memory that the disk can be read into and written from without a detour through the page cache."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

PAGE: Final = 4096
"""Positions, lengths and addresses of direct I/O are multiples of this; no common disk asks for more."""
_QUICK: Final = 64 * 1024
"""Copies of fewer bytes don't give up the interpreter's lock: getting it back may take longer than they do."""

_move_quickly = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)


_PRIVATE: Final = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def anonymous(nbytes: int) -> mmap.mmap:
    """Return memory of this process alone: what a forked child shares with it, neither sees the other write.

    Raises:
        MemoryError: there is not that much.
    """
    try:
        return mmap.mmap(-1, nbytes, flags=_PRIVATE) if _PRIVATE else mmap.mmap(-1, nbytes)
    except OSError as cause:
        raise MemoryError(str(cause)) from cause


class Buffer:
    """A block of memory that begins at a page, zeroed. MemoryError where there is not that much.

    Attributes:
        view: its bytes.
        address: where it begins.
    """

    def __init__(self, size: int) -> None:
        self._memory = anonymous(max(size, 1))
        self.view = memoryview(self._memory)
        self.address = address_of(self._memory)

    def __len__(self) -> int:
        return len(self.view)


def move(address: int, source: int, nbytes: int) -> None:
    """Copy bytes from address to address."""
    (_move_quickly if nbytes < _QUICK else ctypes.memmove)(address, source, nbytes)


def copy_view(target: memoryview, source: memoryview) -> None:
    """Copy bytes to memory of the same size."""
    if len(source) < _QUICK:
        target[:] = source
    else:
        ctypes.memmove(address_of(target), address_of(source), len(source))


def address_of(memory: memoryview | mmap.mmap) -> int:
    """Return where memory that can be written to begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def memory_at(address: int, nbytes: int) -> memoryview:
    """Return memory that someone else keeps alive, as writable bytes."""
    if not nbytes:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def aligned_part(start: int, buffer: Buffer, begin: int, end: int) -> tuple[int, int]:
    """Return the part of ``buffer[begin:end]`` that direct I/O at position ``start`` can carry; it may be empty.

    Returns:
        Its first byte in the buffer and one past its last.
    """
    if (buffer.address + begin - start) % PAGE:
        return begin, begin
    first = begin + -start % PAGE
    last = end - (start + end - begin) % PAGE
    return (first, last) if first < last else (begin, begin)
