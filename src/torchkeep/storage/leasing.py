"""A lease: a lock for file systems that have none, such as some network ones. A file that its owner renews.

Whoever creates the file holds it. It is given back by removing it, and is taken from a dead owner only when that
is sure: the owner ran in this system and is gone, or the file was not renewed for a minute, by the file system's
own clock, and did not change while the next one watched. Who was only asleep for so long must not write any more:
`confirm` reads the file again, and is called before and after everything that a save publishes.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from torchkeep.errors import StorageError, StoreError, StoreLockedError
from torchkeep.formats.opening import refused
from torchkeep.storage.locking import FileLock, NoLocksError, locked, not_held

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.storage.folders import Lock

LASTS: Final = 60.0
"""Seconds after which a lease that was not renewed has expired."""
RENEWED_EVERY: Final = 3.0
WATCHED: Final = 7.0
"""Seconds that it must not change for meanwhile: a clock that was set forward makes no living owner dead."""
_POLL: Final = 0.1
_MOST: Final = 4096
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_OLD: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)


def take_lock(path: str, wait: float) -> Lock:
    """Lock a file with flock, or with a lease beside it where the file system has no flock.

    Raises:
        StoreLockedError: another holds the lock, or a lease.
        StorageError: the operating system refused.
    """
    until = time.monotonic() + wait
    try:
        lock = FileLock(path, wait)
    except NoLocksError:
        return Lease(path, wait)
    try:
        _wait_for_leases(path, wait, until)
    except BaseException:
        lock.release()
        raise
    return lock


def _wait_for_leases(path: str, wait: float, until: float) -> None:
    """Wait until nobody writes under a lease: another machine may see this file system without flock."""
    while (found := _read(f"{path}.lease")) is not None:
        os.utime(path)
        if found.is_over(os.stat(path).st_mtime):  # noqa: PTH116 - as everywhere in storage, paths are text
            return
        if time.monotonic() >= until:
            raise locked(path, found.owner, wait, found.advice)
        time.sleep(_POLL)


class Lease:
    """A lease that this process holds; see `torchkeep.storage.folders.Lock`.

    Args:
        path: of the lock; the lease is ``<path>.lease``.
        wait: how long to wait for another holder, in seconds.
        watched: how long a lease must not change before it can be taken to have expired, in seconds.
        renewed_every: seconds between renewals.
        clock: seconds that always go forward.
        sleep: waits for some seconds.

    Raises:
        StoreLockedError: another still holds it.
        StorageError: the operating system refused.
    """

    def __init__(
        self,
        path: str,
        wait: float,
        *,
        watched: float = WATCHED,
        renewed_every: float = RENEWED_EVERY,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path, self._owner, self._token = f"{path}.lease", os.getpid(), secrets.token_hex(8)
        self._own = f"{self._path}.{self._token}"
        self._held, self._stopped, self._watched = False, Event(), watched
        try:
            self._prepare()
            self._take(path, wait, clock, sleep)
        except (StorageError, StoreLockedError):
            raise
        except OSError as cause:
            raise refused(cause, "lock", path) from cause
        finally:
            with suppress(OSError):
                os.unlink(self._own)  # noqa: PTH108 - as everywhere in storage, paths are text
        self._held = True
        Thread(target=self._renew, args=(renewed_every,), name="torchkeep-lease", daemon=True).start()

    @property
    def held(self) -> bool:
        """Whether this process took it and has not given it back; a forked child has not."""
        return self._held and self._owner == os.getpid()

    def confirm(self) -> None:
        """Raise StoreError where this process does not hold it, or not any more."""
        if not self.held:
            raise not_held(self._path)
        found = _read(self._path)
        if found is None or found.said.get("token") != self._token:
            taker = "another process" if found is None else found.owner
            raise StoreError(
                f"the lease {self._path!r} was taken over by {taker}: this process did not renew it in time, as "
                "one that was stopped for a while; nothing more is written, open the store again"
            )
        with suppress(OSError):  # it is ours, whatever its time is
            os.utime(self._path)

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        held, self._held = self.held, False
        if held:  # not in a forked child, where nobody renews it, and what stops that may be locked for ever
            self._stopped.set()
            with suppress(OSError):  # what can't be removed expires
                found = _read(self._path)
                if found is not None and found.said.get("token") == self._token:
                    os.unlink(self._path)  # noqa: PTH108 - same

    def _prepare(self) -> None:
        """Write the file that is to become the lease. Its time tells the file system's clock."""
        text = msgspec.json.encode(
            {
                "host": socket.gethostname(),
                "process": self._owner,
                "system": _system(),
                "started": _started(self._owner),
                "token": self._token,
            }
        )
        descriptor = os.open(self._own, _NEW, 0o666)
        try:
            os.pwrite(descriptor, text, 0)
        finally:
            os.close(descriptor)

    def _take(self, path: str, wait: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        until, seen, since = clock() + wait, None, clock()
        while True:
            found = _read(self._path)
            if found is None:
                if self._create():
                    return
                continue
            if found != seen:
                seen, since = found, clock()
            os.utime(self._own)
            is_over = found.is_over(os.stat(self._own).st_mtime)  # noqa: PTH116 - same
            if is_over and (found.is_dead() or clock() - since >= self._watched):
                os.replace(self._own, self._path)  # noqa: PTH105 - same
                self._prepare()
                sleep(_POLL)  # two may have taken it over at the same moment: the later one has it
                continue
            if found.said.get("token") == self._token:
                return
            if clock() >= until:
                raise locked(path, found.owner, wait, found.advice)
            sleep(_POLL)

    def _create(self) -> bool:
        """Take a lease that nobody holds; False where another was faster."""
        try:
            # In one step, and with its content; not every file system has hard links.
            os.link(self._own, self._path)
        except FileExistsError:
            return False
        except OSError:
            try:
                descriptor = os.open(self._path, _NEW, 0o666)
            except FileExistsError:
                return False
            try:
                os.pwrite(descriptor, Path(self._own).read_bytes(), 0)
            finally:
                os.close(descriptor)
        return True

    def _renew(self, every: float) -> None:
        # An error here is no loss yet, and `confirm` raises its own.
        while not self._stopped.wait(every):
            with suppress(OSError, StoreError):
                self.confirm()


class _Found(NamedTuple):
    """What a lease says, and when it was renewed."""

    said: dict[str, Any]
    renewed: float

    @property
    def owner(self) -> str:
        return f"process {self.said.get('process', '?')} on host {self.said.get('host', '?')!r}"

    @property
    def advice(self) -> str:
        """What to do where it can't be told whether its owner lives."""
        if self._is_of_this_system():
            return ""
        return f"; if it has died without closing the store, try again {LASTS:g} s after that"

    def is_over(self, now: float) -> bool:
        """Tell whether it is the owner's no more, at a time of the file system's clock."""
        return self.is_dead() or (now - self.renewed > LASTS and not self._is_alive_here())

    def is_dead(self) -> bool:
        """Tell whether its owner ran in this system, and is gone."""
        return self._is_of_this_system() and not self._is_alive_here()

    def _is_of_this_system(self) -> bool:
        return bool(_system()) and self.said.get("system") == _system()

    def _is_alive_here(self) -> bool:
        started, process = self.said.get("started"), self.said.get("process")
        return self._is_of_this_system() and isinstance(process, int) and _started(process) == started


def _read(path: str) -> _Found | None:
    """Read a lease; None where there is none. Opening it makes a network file system look at it again."""
    try:
        descriptor = os.open(path, _OLD)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise refused(cause, "read", path) from cause
    try:
        text, renewed = os.pread(descriptor, _MOST, 0), os.fstat(descriptor).st_mtime
    except OSError as cause:
        raise refused(cause, "read", path) from cause
    finally:
        os.close(descriptor)
    try:
        said = msgspec.json.decode(text)
    except msgspec.DecodeError:  # it is being written, or its owner died while it wrote
        said = {}
    return _Found(said if isinstance(said, dict) else {}, renewed)


def _system() -> str:
    """Return what tells this run of this system, and of this container, from all others; empty where nothing does.

    Processes are told apart by their numbers in there, and only there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - it leads to no path
    except OSError:
        return ""


def _started(process: int) -> int | None:
    """Return when a process was started, in ticks since the system was; None where it does not run."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    fields = status[status.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
