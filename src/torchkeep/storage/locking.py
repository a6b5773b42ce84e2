"""An exclusive lock on a file: flock, which the system itself gives back when a process ends, however it ends.

What the file says (host, process) is information for people only. The file is never removed: a second process
could hold the lock of the removed file while a third holds that of a new one.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from weakref import WeakSet

import msgspec

from torchkeep.errors import StorageError, StoreError, StoreLockedError
from torchkeep.formats.opening import refused

_POLL = 0.02
_MOST = 4096


class NoLocksError(StorageError):
    """The system, or the file system, has no flock."""


class FileLock:
    """A lock that this process holds; see `torchkeep.storage.folders.Lock`.

    Args:
        path: the file.
        wait: how long to wait for another holder, in seconds.

    Raises:
        StoreLockedError: another still holds it.
        NoLocksError: the file system has no flock.
        StorageError: the operating system refused.
    """

    def __init__(self, path: str, wait: float) -> None:
        self._path, self._descriptor, self._owner = path, -1, os.getpid()
        descriptor = _open(path)
        # From here on a fork closes it in the child, also while this thread still waits.
        self._descriptor = descriptor
        _all.add(self)
        try:
            _take(descriptor, path, wait)
            _sign(descriptor, path)
        except BaseException:
            self.release()
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._descriptor >= 0 and self._owner == os.getpid()

    def confirm(self) -> None:
        """Raise StoreError where this process does not hold it."""
        if not self.held:
            raise not_held(self._path)

    def release(self) -> None:
        """Give it back."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_all: WeakSet[FileLock] = WeakSet()


def _close_in_child() -> None:
    # The descriptor is shared with the parent: closing it leaves the parent's lock, keeping it open would keep
    # the store locked after the parent has died.
    for lock in list(_all):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _take(descriptor: int, path: str, wait: float) -> None:
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock  # noqa: PLC0415 - not there on every system
    except ImportError as cause:
        raise NoLocksError(f"can't lock {path!r}: this system has no flock") from cause
    until = time.monotonic() + wait
    while True:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError as cause:
            if time.monotonic() < until:
                time.sleep(_POLL)
                continue
            raise locked(path, _holder(descriptor), wait) from cause
        except OSError as cause:
            if cause.errno in {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}:
                raise NoLocksError.wrap(cause, f"can't lock {path!r}: that file system has no flock") from cause
            raise refused(cause, "lock", path) from cause
        else:
            return


def locked(path: str, holder: str, wait: float, advice: str = "") -> StoreLockedError:
    """Return the error for a lock that another holds."""
    return StoreLockedError(
        f"{path!r} is locked: {holder} writes to this store, and did not stop within {wait:g} s; "
        f"wait until it ends, end it, or use another store{advice}"
    )


def not_held(path: str) -> StoreError:
    """Return the error for a lock that this process does not hold."""
    return StoreError(
        f"the store with the lock {path!r} can't be written: it was closed, or this process was forked from the "
        "one that opened it; write from that one, or open it again"
    )


def _open(path: str) -> int:
    """Open or make the file. It is nobody else's: what a link leads to is not written to."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise StorageError.wrap(
                cause, f"can't lock {path!r}: it is a symbolic link; remove it, it is made anew"
            ) from cause
        raise refused(cause, "lock", path) from cause
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"can't lock {path!r}: it is no regular file; remove it, it is made anew")
    return descriptor


def _sign(descriptor: int, path: str) -> None:
    """Write down who holds the lock. A full disk must not matter here."""
    if os.fstat(descriptor).st_nlink > 1:  # it is another file as well
        return
    text = msgspec.json.encode({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()})
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError as cause:
        if cause.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise refused(cause, "write", path) from cause


def _holder(descriptor: int) -> str:
    """Say who holds the lock, as far as the file says so."""
    try:
        said = msgspec.json.decode(os.pread(descriptor, _MOST, 0))
        process, host = said["process"], said["host"]
    except (OSError, ValueError, KeyError, TypeError):  # it is signed a moment after it is taken
        return "another process"
    own = (process, host) == (os.getpid(), socket.gethostname())
    return (
        f"process {process} on host {host!r}{' (this one, by another store that was not closed)' if own else ''}"
    )
