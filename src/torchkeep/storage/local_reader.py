"""A local file that is read: out of the page cache what is there, past it what is not.

What is cached is copied straight to where it belongs. The rest comes by direct I/O, which costs the processor a
tenth of what ordinary reads cost; it needs aligned memory, which tensors seldom have, so it goes by way of a
buffer.
"""

from __future__ import annotations

import errno
import os
from ctypes import addressof, c_char, memmove
from typing import TYPE_CHECKING, Final

from torchkeep.formats.opening import FileReader, refused, truncated
from torchkeep.storage.buffers import PAGE, Buffer, aligned_part

if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_IF_CACHED: Final = getattr(os, "RWF_NOWAIT", 0)
PAYS_FROM: Final = 256 * 1024
"""Shorter reads and writes go through the page cache."""
_BLOCK: Final = 1024 * 1024
"""Read at a time on the way to elsewhere: it is still in the processor's cache when it is copied."""
_HOLES: Final = 8
"""Pages missing in the cache that are waited for, before the rest of a chunk counts as not cached."""
_STEP: Final = 64 * 1024
NO_SUCH_IO: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems say to kinds of I/O that they don't have."""


class LocalReader(FileReader):
    """A local file; see `ReadableFile`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._opened = os.fstat(self._descriptor)
        self._direct = open_direct(path, os.O_RDONLY)
        if self._direct is not None and not os.path.samestat(self._opened, os.fstat(self._direct)):
            os.close(self._direct)  # the name leads to another file by now
            self._direct = None

    def fill(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Fill ``buffer[begin:end]`` from position ``start``."""
        shift = start - begin
        if self._direct is not None and end - begin >= PAYS_FROM:
            begin += self._fill_cached(start, buffer.view[begin:end])
        first, last = (begin, begin)
        if end - begin >= PAYS_FROM:
            first, last = aligned_part(shift + begin, buffer, begin, end)
        first, last = self._read_direct(shift, buffer, first, last)
        self._read(shift + begin, buffer.view[begin:first])
        self._read(shift + last, buffer.view[last:end])

    def fill_view(self, start: int, view: memoryview, buffer: Buffer, begun: Callable[[], object]) -> None:
        """Fill ``view`` from position ``start``; ``begun`` is called before the first byte changes."""
        done = 0
        if self._direct is not None and len(view) >= PAYS_FROM:
            done = self._fill_cached(start, view, begun)
            done = self._fill_by_blocks(start, view, done, buffer, begun)
        if done < len(view):
            self._read(start + done, memoryview(bytearray(1)))  # fails, where all would, before anything changes
            begun()
            self._read(start + done, view[done:])

    def _fill_by_blocks(
        self, start: int, view: memoryview, done: int, buffer: Buffer, begun: Callable[[], object]
    ) -> int:
        """Fill ``view`` from byte ``done`` on by way of a buffer, as far as direct I/O reaches; return how far."""
        address = addressof(c_char.from_buffer(view))
        while len(view) - done >= PAYS_FROM:
            lead = (start + done) % PAGE
            stop = min(lead + len(view) - done, _BLOCK)
            _, last = self._read_direct(start + done - lead, buffer, 0, stop + -stop % PAGE)
            got = min(last, stop) - lead
            if got <= 0:
                break
            begun()
            memmove(address + done, buffer.address + lead, got)
            done += got
        return done

    def _fill_cached(self, start: int, view: memoryview, begun: Callable[[], object] = bool) -> int:
        """Fill the beginning of ``view`` with what the page cache holds, and return how much that was."""
        # A read that finds nothing starts reading ahead, all for nothing where direct I/O follows. One byte tells
        # as much; the last one, since what other reads' reading ahead brought in is at the beginning.
        if not self._get(memoryview(bytearray(1)), start + len(view) - 1):
            return 0
        begun()
        done = holes = 0
        while done < len(view) and holes < _HOLES:
            if got := self._get(view[done:], start + done):
                done += got
            else:  # a page was dropped from the cache: wait for that one
                step = min(_STEP, len(view) - done)
                self._read(start + done, view[done : done + step])
                holes, done = holes + 1, done + step
        return done

    def _get(self, view: memoryview, start: int) -> int:
        """Read what can be had without waiting."""
        if not _IF_CACHED:
            return 0
        try:
            return os.preadv(self._descriptor, [view], start, _IF_CACHED)
        except OSError as cause:
            if cause.errno in {errno.EAGAIN, *NO_SUCH_IO}:
                return 0
            raise refused(cause, "read", self.path) from cause

    def _read_direct(self, shift: int, buffer: Buffer, first: int, last: int) -> tuple[int, int]:
        """Read what direct I/O can carry, and return what it carried."""
        position = first
        while self._direct is not None and position < last:
            try:
                got = os.preadv(self._direct, [buffer.view[position:last]], shift + position)
            except OSError as cause:
                if cause.errno not in NO_SUCH_IO:
                    raise refused(cause, "read", self.path) from cause
                break
            if not got:
                break
            position += got
        return first, position

    def _read(self, start: int, view: memoryview) -> None:
        first, stop = start, start + len(view)
        try:
            while view and (got := os.preadv(self._descriptor, [view], start)):
                view, start = view[got:], start + got
        except OSError as cause:
            raise refused(cause, "read", self.path) from cause
        if view:
            raise truncated(self.path, first, stop, start, what="data that was there before")

    def has_changed(self) -> bool:
        """Tell whether the file was written to since it was opened."""
        now = os.fstat(self._descriptor)
        return (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns)

    def close(self) -> None:
        """Give the file back."""
        super().close()
        direct, self._direct = getattr(self, "_direct", None), None
        if direct is not None:
            os.close(direct)


def open_direct(path: str, flags: int) -> int | None:
    """Open a file for direct I/O, where that is possible."""
    if not _DIRECT:
        return None
    try:
        return os.open(path, flags | _DIRECT | os.O_CLOEXEC)
    except OSError:  # refused here is not refused: ordinary I/O will do, or will say why not
        return None
