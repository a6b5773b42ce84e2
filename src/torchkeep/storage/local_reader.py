"""A local file that is read: out of the page cache what is there, past it what is not.

What is cached is copied straight to where it belongs. The rest comes by direct I/O, which costs the processor a
tenth of what ordinary reads cost; it needs aligned memory, which tensors seldom have, so it goes by way of a
buffer.
"""

from __future__ import annotations

import errno
import os
from ctypes import memmove
from typing import TYPE_CHECKING, Final

from torchkeep.formats.opening import FileReader, refused, truncated
from torchkeep.storage.buffers import PAGE, Buffer, address_of, aligned_part

if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_IF_CACHED: Final = getattr(os, "RWF_NOWAIT", 0)
PAYS_FROM: Final = 256 * 1024
"""Shorter reads and writes go through the page cache."""
_REGION: Final = 16 * 1024 * 1024
"""A part of a file that counts as cached or not."""
_HOLES: Final = 8
"""Pages missing in the cache that are waited for, before the rest of a region counts as not cached."""
_STEP: Final = 64 * 1024
NO_SUCH_IO: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems say to kinds of I/O that they don't have."""


class LocalReader(FileReader):
    """A local file; see `ReadableFile`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._opened = os.fstat(self._descriptor)
        self._holes: dict[int, int] = {}
        self._direct = open_direct(path, os.O_RDONLY)
        if self._direct is not None and not os.path.samestat(self._opened, os.fstat(self._direct)):
            os.close(self._direct)  # the name leads to another file by now
            self._direct = None

    def fill(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Fill ``buffer[begin:end]`` from position ``start``."""
        shift = start - begin
        if end - begin >= PAYS_FROM:
            begin += self._fill_cached(start, buffer.view[begin:end])
        first, last = (begin, begin)
        if end - begin >= PAYS_FROM:
            first, last = aligned_part(shift + begin, buffer, begin, end)
        last = self._read_direct(shift, buffer, first, last)
        self._read(shift + begin, buffer.view[begin:first])
        self._read(shift + last, buffer.view[last:end])

    def fill_view(self, start: int, view: memoryview, buffer: Buffer, begun: Callable[[], object]) -> None:
        """Fill ``view`` from position ``start``; ``begun`` is called before the first byte changes."""
        done = 0
        if len(view) >= PAYS_FROM:
            done = self._fill_cached(start, view, begun)
        if len(view) - done >= PAYS_FROM:
            done += self._fill_directly(start + done, view[done:], buffer, begun)
        if done < len(view):
            self._read(start + done, memoryview(bytearray(1)))  # fails, where all would, before anything changes
            begun()
            self._read(start + done, view[done:])

    def _fill_directly(self, start: int, view: memoryview, buffer: Buffer, begun: Callable[[], object]) -> int:
        """Fill ``view`` by way of a buffer, as far as direct I/O reaches; return how far."""
        lead = start % PAGE
        stop = lead + len(view)
        got = min(self._read_direct(start - lead, buffer, 0, stop + -stop % PAGE), stop) - lead
        if got <= 0:
            return 0
        begun()
        memmove(address_of(view), buffer.address + lead, got)
        return got

    def _fill_cached(self, start: int, view: memoryview, begun: Callable[[], object] = bool) -> int:
        """Fill the beginning of ``view`` with what the page cache holds, and return how much that was."""
        region = start // _REGION
        if self._direct is None or self._holes_in(region) <= 0 or not self._is_cached(start + len(view) - 1):
            return 0
        begun()
        done = 0
        while done < len(view) and self._holes[region] > 0:
            if got := self._get(view[done:], start + done):
                done += got
            else:  # a page was dropped from the cache: wait for that one
                step = min(_STEP, len(view) - done)
                self._read(start + done, view[done : done + step])
                self._holes[region] -= 1
                done += step
        return done

    def _holes_in(self, region: int) -> int:
        """Return how many more missing pages are waited for in a region; 0, or less, where it is not cached."""
        if region not in self._holes:
            # A read that finds nothing starts reading ahead, all for nothing where direct I/O follows. One byte
            # tells as much; the last one, since what other reads' reading ahead brought in is at the beginning.
            self._holes[region] = _HOLES if self._is_cached(min((region + 1) * _REGION, self.size) - 1) else 0
        return self._holes[region]

    def _is_cached(self, position: int) -> bool:
        return self._get(memoryview(bytearray(1)), position) == 1

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

    def _read_direct(self, shift: int, buffer: Buffer, first: int, last: int) -> int:
        """Fill ``buffer[first:last]`` as far as direct I/O reaches, and return how far."""
        while self._direct is not None and first < last:
            try:
                got = os.preadv(self._direct, [buffer.view[first:last]], shift + first)
            except OSError as cause:
                if cause.errno not in NO_SUCH_IO:
                    raise refused(cause, "read", self.path) from cause
                break
            if not got:
                break
            first += got
        return first

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
