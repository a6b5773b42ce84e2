"""Where there is no flock, a lease keeps a second writer out, and who has lost it writes nothing more."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archive_states import content, state
from forks import child_ends_well
from torchkeep.archive import Retention, Writer
from torchkeep.errors import StorageError, StoreError, StoreLockedError
from torchkeep.storage import leasing
from torchkeep.storage.leasing import LASTS, Lease
from torchkeep.storage.local_folders import LOCAL_FOLDERS, LocalFolders

CHILD = """
import errno, fcntl, os, sys
def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
from torchkeep.archive import Writer
from torchkeep.storage.local_folders import LOCAL_FOLDERS
store = Writer(LOCAL_FOLDERS, sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=[errno.ENOTSUP, errno.ENOLCK], ids=["ENOTSUP", "ENOLCK"])
def no_flock(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


def abroad(lease, age=0.0, **said):
    """Write a lease of another machine, renewed some seconds ago."""
    with open(lease, "w", encoding="utf-8") as file:  # noqa: PTH123 - paths are text in storage
        json.dump({"host": "far", "process": os.getpid(), "system": "other", "token": "theirs", **said}, file)
    os.utime(lease, (time.time() - age,) * 2)


def said(lease):
    return json.loads(Path(lease).read_text(encoding="utf-8"))


class Time:
    """A clock that goes on only when somebody sleeps; what is to happen meanwhile is called."""

    def __init__(self, *happening):
        self.now, self._happening = 0.0, list(happening)

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self._happening:
            self._happening.pop(0)()


@pytest.mark.usefixtures("no_flock")
def test_a_store_without_flock_has_one_writer_at_a_time(root):
    """The second is refused naming host and process; when the first closes, it may write."""
    with Writer(LOCAL_FOLDERS, root) as store:
        store.commit(1, state(w=b"x"))
        with pytest.raises(StoreLockedError) as caught:
            Writer(LOCAL_FOLDERS, root, wait=0)
        assert f"process {os.getpid()} on host {socket.gethostname()!r}" in str(caught.value)
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        store.commit(2, state(w=b"y"))
        assert content(store, store.latest()) == {"w": b"y"}
    assert not [name for name in os.listdir(root) if "lease" in name]  # noqa: PTH208 - same


@pytest.mark.usefixtures("no_flock")
def test_a_lease_of_a_dead_process_is_taken_over_at_once(root):
    """Killed, it can't give it back; in this system its number tells that it is gone."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(StoreLockedError, match=f"process {child.pid} on host"):
        Writer(LOCAL_FOLDERS, root, wait=0)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still has its number
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        store.commit(1, state(w=b"x"))
    child.communicate()


def test_a_process_that_has_the_number_of_a_dead_one_is_not_it(path):
    """Numbers are used again: when the process was started tells them apart."""
    abroad(f"{path}.lease", system=leasing._system(), started=1)
    Lease(path, 0).release()


def test_a_process_of_another_container_is_not_looked_up_here(path):
    """The same number, there or not, says nothing about it: only time does."""
    for process in (os.getpid(), 2**22 + 1):
        abroad(f"{path}.lease", process=process)
        with pytest.raises(
            StoreLockedError, match=r"on host 'far' writes .* if it has died .* try again 60 s after that"
        ):
            Lease(path, 0)


def test_a_lease_is_taken_over_only_after_it_has_surely_expired(path):
    """Not renewed for a minute, and not while it was watched: before that it is refused."""
    lease, times = f"{path}.lease", Time()
    abroad(lease, LASTS - 5)
    with pytest.raises(StoreLockedError):
        Lease(path, 20, clock=times.clock, sleep=times.sleep)
    abroad(lease, LASTS + 5)
    with pytest.raises(StoreLockedError):
        Lease(path, 3, watched=7, clock=times.clock, sleep=times.sleep)
    begun = times.now
    held = Lease(path, 20, watched=7, clock=times.clock, sleep=times.sleep)
    assert 7 <= times.now - begun < 20
    assert said(lease)["process"] == os.getpid()
    held.confirm()
    held.release()
    assert not os.path.exists(lease)  # noqa: PTH110 - same


def test_a_lease_that_is_renewed_while_it_is_watched_is_alive(path):
    """Its owner was late, or a clock was set forward: it is not taken over."""
    lease = f"{path}.lease"
    abroad(lease, 1000)
    times = Time(*[lambda: None] * 30, lambda: abroad(lease, 900))
    with pytest.raises(StoreLockedError):
        Lease(path, 9, watched=7, clock=times.clock, sleep=times.sleep)


def test_a_lease_whose_owner_died_while_writing_it_expires_too(path):
    """An empty file says nothing of its owner; its time does."""
    lease, times = f"{path}.lease", Time()
    Path(lease).touch()
    with pytest.raises(StoreLockedError, match=r"process \?"):
        Lease(path, 0)
    os.utime(lease, (1, 1))
    Lease(path, 20, clock=times.clock, sleep=times.sleep).release()


def test_of_two_who_take_over_one_has_it(path):
    """The file says whose it is: who was overwritten in the same moment waits, and is refused."""
    lease = f"{path}.lease"
    abroad(lease, 1000)
    times, taken = Time(), []

    def replaced():
        if not taken and said(lease).get("host") == socket.gethostname():
            taken.append(1)
            abroad(lease, host="faster")

    times._happening = [replaced] * 200
    with pytest.raises(StoreLockedError, match="host 'faster'"):
        Lease(path, 15, watched=7, clock=times.clock, sleep=times.sleep)
    assert taken


def test_a_lease_is_renewed(path):
    """As long as its process lives, so that nobody takes it over."""
    lease = Lease(path, 0, renewed_every=0.01)
    os.utime(f"{path}.lease", (1, 1))
    until = time.monotonic() + 30
    while os.stat(f"{path}.lease").st_mtime == 1:  # noqa: PTH116 - same
        assert time.monotonic() < until
        time.sleep(0.01)
    lease.release()
    lease.release()


@pytest.mark.usefixtures("no_flock")
def test_a_writer_that_has_lost_its_lease_writes_nothing_more(root):
    """It was taken for dead: its next save and its next prune fail, name who has it, and change nothing."""
    store = Writer(LOCAL_FOLDERS, root)
    for step in range(3):
        store.commit(step, state(w=bytes([step])))
    abroad(f"{root}/lock.lease")
    before = sorted(os.listdir(f"{root}/packs") + os.listdir(f"{root}/checkpoints"))  # noqa: PTH208 - same
    with pytest.raises(StoreError, match=r"was taken over by process \d+ on host 'far'.*open the store again"):
        store.commit(3, state(w=b"lost"))
    with pytest.raises(StoreError, match="was taken over"):
        store.prune(Retention(last=1))
    store.close()
    assert sorted(os.listdir(f"{root}/packs") + os.listdir(f"{root}/checkpoints")) == before  # noqa: PTH208 - same
    assert said(f"{root}/lock.lease")["host"] == "far"


class Taken(LocalFolders):
    """A file system on which the lease is taken over before the rename of some file, or after it."""

    def __init__(self, root, what, when):
        self._root, self._what, self._when = root, what, when

    def rename(self, old, new):
        if self._what in new and self._when == "before":
            abroad(f"{self._root}/lock.lease")
        super().rename(old, new)
        if self._what in new and self._when == "after":
            abroad(f"{self._root}/lock.lease")


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize(("what", "when"), [("packs/", "before"), ("packs/", "after"), ("checkpoints/", "after")])
def test_a_save_that_loses_the_lease_on_its_way_is_not_acknowledged(root, what, when):
    """Stopped between two of its steps, it goes on when another has the store: no checkpoint of it stays."""
    with Writer(LOCAL_FOLDERS, root) as store:
        store.commit(1, state(w=b"kept"))
    store = Writer(Taken(root, what, when), root)
    with pytest.raises(StoreError, match="was taken over"):
        store.commit(2, state(w=b"lost"))
    store.close()
    os.remove(f"{root}/lock.lease")  # noqa: PTH107 - same
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        assert [name.step for name in store.names()] == [1]
        store.prune(Retention(last=1))
        assert (content(store, store.latest()), len(os.listdir(f"{root}/packs"))) == ({"w": b"kept"}, 1)  # noqa: PTH208 - same


def test_who_has_flock_minds_a_lease(root):
    """Another machine may see the file system without flock; a lease that has expired is no matter."""
    Writer(LOCAL_FOLDERS, root).close()
    abroad(f"{root}/lock.lease")
    with pytest.raises(StoreLockedError, match="on host 'far'"):
        Writer(LOCAL_FOLDERS, root, wait=0)
    abroad(f"{root}/lock.lease", LASTS + 5)
    Writer(LOCAL_FOLDERS, root, wait=0).close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it forks beside the thread that renews
@pytest.mark.usefixtures("no_flock")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_hold_the_lease(root):
    """It can't write, and what it closes stays the parent's."""
    store = Writer(LOCAL_FOLDERS, root)

    def fail_to_write():
        with pytest.raises(StoreError, match="forked"):
            store.commit(1, state(w=b"x"))
        store.close()

    with store._lock._stopped._cond:  # taken for moments by the thread that renews
        assert child_ends_well(fail_to_write)
    store.commit(1, state(w=b"y"))
    store.close()


def test_what_the_system_refuses_is_told(tmp_path):
    """A folder that is not there, and a lease that can't be read."""
    with pytest.raises(StorageError, match="can't lock"):
        Lease(str(tmp_path / "none" / "lock"), 0)
    (tmp_path / "lock.lease").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="can't read"):
        Lease(str(tmp_path / "lock"), 0)


@pytest.mark.usefixtures("no_flock")
def test_who_was_only_asleep_overwrites_no_checkpoint_of_who_took_over(root, monkeypatch):
    """Stopped just before its manifest gets its name, it wakes up when another has saved under that very name."""
    Writer(LOCAL_FOLDERS, root).close()

    class Asleep(LocalFolders):
        def rename(self, old, new):
            if "checkpoints/" in new:
                abroad(f"{root}/lock.lease", LASTS + 5)
                with Writer(LOCAL_FOLDERS, root) as other:
                    other.commit(5, state(w=b"kept"))
                abroad(f"{root}/lock.lease")
            super().rename(old, new)

    monkeypatch.setattr(leasing, "WATCHED", 0)
    monkeypatch.setattr(Lease.__init__, "__kwdefaults__", {**Lease.__init__.__kwdefaults__, "watched": 0})
    store = Writer(Asleep(), root)
    with pytest.raises((StorageError, StoreError)):
        store.commit(5, state(w=b"lost"))
    store.close()
    os.remove(f"{root}/lock.lease")  # noqa: PTH107 - same
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        assert content(store, store.latest()) == {"w": b"kept"}
