"""The local file system: positional reads and writes, past the page cache where that is possible and pays.

Direct I/O (O_DIRECT) carries the whole pages of a large read or write, ordinary I/O the rest; where the file
system refuses direct I/O, ordinary I/O carries everything. What is in the page cache already is read from there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Final, TypeVar

from torchkeep.errors import StorageError
from torchkeep.formats.opening import refused
from torchkeep.storage.buffers import Buffer, aligned_part
from torchkeep.storage.local_reader import NO_SUCH_IO, PAYS_FROM, LocalReader, open_direct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Result = TypeVar("_Result")

_LARGE: Final = 16 * 1024 * 1024
"""Files from this size on have their blocks chosen at once, and freed in the background."""


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's own call: Python's writes to every block where a file system can't do it."""
    if not sys.platform.startswith("linux"):
        return None
    found = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return found


_fallocate: Final = _find_fallocate()


class LocalWriter:
    """A new local file; see `WritableFile`."""

    def __init__(self, path: str, mode: int | None) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = _call("write", path, lambda: os.open(path, flags, 0o666 if mode is None else 0o600))
        self._direct: int | None = None
        try:
            if mode is not None:
                _call("set the permissions of", path, lambda: os.fchmod(self._descriptor, mode))
            self._direct = open_direct(path, os.O_WRONLY)
        except BaseException:
            self.close()
            os.unlink(path)  # noqa: PTH108 - as everywhere here, the path is text
            raise

    def reserve(self, nbytes: int) -> None:
        """Let the file system choose all blocks at once, where it can; then small writes are as fast as large."""
        if nbytes < _LARGE or _fallocate is None or not _fallocate(self._descriptor, 0, 0, nbytes):
            return
        code = ctypes.get_errno()
        if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            cause = OSError(code, os.strerror(code), self._path)
            raise refused(cause, "write", self._path) from cause

    def write(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Write ``buffer[begin:end]`` at position ``start``."""
        first, last = aligned_part(start, buffer, begin, end) if end - begin >= PAYS_FROM else (begin, begin)
        first, last = self._write_direct(start - begin, buffer, first, last)
        self._write(start, buffer.view[begin:first])
        self._write(start - begin + last, buffer.view[last:end])

    def _write_direct(self, shift: int, buffer: Buffer, first: int, last: int) -> tuple[int, int]:
        """Write what direct I/O can carry, and return what it carried."""
        position = first
        while self._direct is not None and position < last:
            try:
                position += os.pwrite(self._direct, buffer.view[position:last], shift + position)
            except OSError as cause:
                if cause.errno not in NO_SUCH_IO:
                    raise refused(cause, "write", self._path) from cause
                break
        return first, position

    def _write(self, start: int, view: memoryview) -> None:
        try:
            while view:
                written = os.pwrite(self._descriptor, view, start)
                view, start = view[written:], start + written
        except OSError as cause:
            raise refused(cause, "write", self._path) from cause

    def sync(self) -> None:
        """Return when everything written is durable."""
        _call("sync", self._path, lambda: os.fsync(self._descriptor))

    def close(self) -> None:
        """Give the file back."""
        descriptors, self._direct, self._descriptor = (self._direct, self._descriptor), None, -1
        for descriptor in descriptors:
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)


class LocalStorage:
    """The local file system; see `Storage`."""

    def resolve(self, path: str) -> str:
        """Return the file that ``path`` leads to through symbolic links."""
        try:
            return os.path.realpath(path)
        except OSError as cause:
            raise refused(cause, "write", path) from cause
        except ValueError as cause:  # a NUL in the path
            raise StorageError(f"can't write {path!r}: {cause}; check the path") from cause

    def replaceable_mode(self, path: str) -> int | None:
        """Return the permission bits of the regular file at ``path``, None when there is nothing."""
        try:
            status = os.stat(path)  # noqa: PTH116 - as everywhere here, the path is text
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise refused(cause, "write", path) from cause
        if not stat.S_ISREG(status.st_mode):
            kind, code = "no regular file", errno.EINVAL
            if stat.S_ISDIR(status.st_mode):
                kind, code = "a directory", errno.EISDIR
            raise _with_code(
                StorageError(f"can't write {path!r}: it is {kind}; give the path of a file"), code, path
            )
        if not os.access(path, os.W_OK):
            raise refused(PermissionError(errno.EACCES, os.strerror(errno.EACCES), path), "write", path)
        return stat.S_IMODE(status.st_mode)

    def create(self, path: str, mode: int | None) -> LocalWriter:
        """Create a file that must not exist yet."""
        return LocalWriter(path, mode)

    def open(self, path: str) -> LocalReader:
        """Open a file for reading."""
        return LocalReader(path)

    def rename(self, old: str, new: str) -> None:
        """Give a file the name ``new``, in place of what had it."""
        with _freed_later(new):
            _call("write", new, lambda: os.replace(old, new))  # noqa: PTH105

    def remove(self, path: str) -> None:
        """Remove a file."""
        with _freed_later(path):
            _call("remove", path, lambda: os.unlink(path))  # noqa: PTH108

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory of the file ``path`` are durable, if the system can do that."""
        folder = os.path.dirname(path) or "."  # noqa: PTH120
        descriptor = _call("sync the directory of", path, lambda: os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
        try:
            os.fsync(descriptor)
        except OSError as cause:
            if cause.errno not in NO_SUCH_IO:
                raise refused(cause, "sync the directory of", path) from cause
        finally:
            os.close(descriptor)


LOCAL: Final = LocalStorage()


@contextmanager
def _freed_later(path: str) -> Iterator[None]:
    """Let the blocks of a large file that loses its name be freed in the background: 0.2 s for 1 GiB."""
    held = _held(path)
    try:
        yield
    finally:
        if held is not None:
            try:
                Thread(target=os.close, args=(held,), name="torchkeep-release", daemon=True).start()
            except RuntimeError:  # there can be no more threads: the interpreter ends
                os.close(held)


def _held(path: str) -> int | None:
    """Hold a large file: its blocks are freed when the last hold is given up, and whoever gives that up waits."""
    try:
        if os.stat(path).st_size < _LARGE:  # noqa: PTH116
            return None
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # there is none, or it can't be read; then the rename waits, or says what is wrong
        return None


def _call(doing: str, path: str, call: Callable[[], _Result]) -> _Result:
    try:
        return call()
    except OSError as cause:
        raise refused(cause, doing, path) from cause


def _with_code(error: StorageError, code: int, path: str) -> StorageError:
    error.errno, error.filename = code, path
    return error
