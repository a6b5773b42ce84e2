"""Open a local file for reading, with the operating system's refusals told as sentences."""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol, Self

from torchkeep.errors import DamageError, MissingFileError, StorageError

_ADVICE = {
    errno.EACCES: "you have no permission; change the permissions or choose another place",
    errno.EPERM: "the operation is not permitted there; change the permissions or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "your quota on that disk is used up; free some space or choose another place",
    errno.EFBIG: "a file of that size is not allowed there; raise the limit (ulimit -f) or choose another place",
    errno.EISDIR: "it is a directory; give the path of a file",
    errno.ENOTDIR: "a part of the path is a file, not a directory; check the path",
    errno.ENAMETOOLONG: "the name is too long for that file system; choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle; remove them",
    errno.EMFILE: "this process has too many files open; close some or raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open; close some programs",
    errno.EIO: "the device reported an error; check the disk before you trust what is on it",
}


def refused(cause: OSError, doing: str, path: str) -> StorageError:
    """Return the error to raise for what the operating system refused.

    Args:
        cause: the original error; raise the returned one ``from`` it.
        doing: what was tried, such as ``"read"``.
        path: the file it was tried on.
    """
    if cause.errno == errno.ENOENT:
        missing = path if doing in {"open", "read"} else os.path.dirname(path) or "."  # noqa: PTH120 - kept as text
        return MissingFileError.wrap(cause, f"can't {doing} {path!r}: {missing!r} does not exist; check the path")
    advice = (
        _ADVICE.get(cause.errno or 0) or f"{cause.strerror or cause}; see what the operating system says of it"
    )
    return StorageError.wrap(cause, f"can't {doing} {path!r}: {advice}")


class Readable(Protocol):
    """What a header can be read from.

    Attributes:
        path: the path as given.
        size: the file's length in bytes.
    """

    path: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``; DamageError where the file ends before."""
        ...


class FileReader:
    """A local file opened for positional reads.

    Attributes:
        path: the path as given.
        size: the file's length in bytes when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as cause:
            raise refused(cause, "open", self.path) from cause
        except ValueError as cause:  # a NUL in the path
            raise StorageError(f"can't open {self.path!r}: {cause}; check the path") from cause
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            error = StorageError(f"can't read {self.path!r}: it is {kind}; give the path of a file")
            error.errno, error.filename = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, self.path
            raise error

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``.

        Raises:
            DamageError: the file ends before.
            StorageError: the operating system refused.
        """
        pieces = []
        position, stop = start, start + length
        try:
            while position < stop and (piece := os.pread(self._descriptor, stop - position, position)):
                pieces.append(piece)
                position += len(piece)
        except OSError as cause:
            raise refused(cause, "read", self.path) from cause
        if position < stop:
            raise truncated(self.path, start, stop, position)
        return b"".join(pieces)

    def close(self) -> None:
        """Give the file back; the reader can't be used any more."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def truncated(
    path: str, start: int, stop: int, end: int, tensor: str = "", *, what: str = "the header"
) -> DamageError:
    """Return the error for a file that ends at ``end`` although bytes up to ``stop`` were promised."""
    what = f"tensor {tensor!r}" if tensor else what
    error = DamageError(
        f"{path!r} is cut short: {what} lies in bytes {start} to {stop}, but the file has only {end} bytes; "
        "copy or write it again"
    )
    error.tensor, error.file, error.start, error.stop = tensor, path, start, stop
    return error


def differing(path: str, start: int, stop: int, tensor: str, what: str = "digest") -> DamageError:
    """Return the error for bytes of a tensor that are not what was written, as their digest or checksum says."""
    error = DamageError(
        f"tensor {tensor!r} in {path!r} is damaged: bytes {start} to {stop} of the file are not what was written "
        f"(their {what} differs); take the file from a copy"
    )
    error.tensor, error.file, error.start, error.stop = tensor, path, start, stop
    return error
