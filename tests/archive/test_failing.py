"""Whatever call of a save or a prune fails, what was acknowledged stays, and the process can go on."""

from __future__ import annotations

import errno
import os

import pytest

from archive_states import ROOT, content, state, writer
from torchkeep.archive import Retention, verify
from torchkeep.errors import StorageError, UnsavableError
from torchkeep.formats.opening import refused
from torchkeep.storage.memory import MemoryStorage

OLD, NEW = {"w": bytes(200), "v": b"v" * 70}, {"w": bytes([1]) * 200, "v": b"v" * 70}


def failing(disk, at, error):
    """Let the call number ``at`` from now on fail; return the list of calls."""
    calls = []

    def before(call, path):
        calls.append((call, path))
        if len(calls) - 1 == at:
            if isinstance(error, BaseException):
                raise error
            cause = OSError(error, os.strerror(error), path)
            raise refused(cause, call, path) from cause

    disk.before = before
    return calls


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, KeyboardInterrupt(), MemoryError()], ids=str)
def test_a_save_that_fails_leaves_what_was_and_nothing_in_staging(error):
    """Each call in turn: the latest is the old checkpoint, all is intact, and the next save succeeds."""
    for at in range(100):
        disk = MemoryStorage({"/runs": None})
        with writer(disk) as store:
            store.commit(1, state(**OLD))
            calls = failing(disk, at, error)
            try:
                store.commit(2, state(**NEW))
            except (StorageError, KeyboardInterrupt, MemoryError):
                disk.before = None
            else:
                assert len(calls) <= at
                disk.before = None
                break
            assert content(store, store.latest()) == OLD
            assert not disk.names(f"{ROOT}/staging/{disk.names(f'{ROOT}/staging')[0]}")
            assert store.commit(2, state(**NEW)).step == 2
            assert content(store, store.latest()) == NEW
            store.prune(Retention(last=2))
            assert verify(store, store.names()).ok
            assert len(disk.names(f"{ROOT}/packs")) == len(
                {p.id for n in store.names() for p in store.manifest(n).body.packs}
            )
    else:
        pytest.fail("no save succeeded")


def test_a_prune_that_fails_leaves_what_is_kept():
    """Each call in turn: what the rules keep is whole, and the next prune finishes."""
    for at in range(100):
        disk = MemoryStorage({"/runs": None})
        with writer(disk) as store:
            for step in range(4):
                store.commit(step, state(w=bytes([step]) * 100))
            calls = failing(disk, at, errno.EIO)
            try:
                store.prune(Retention(last=2))
            except StorageError:
                disk.before = None
            else:
                assert len(calls) <= at
                disk.before = None
                break
            assert verify(store, store.names()).ok
            store.prune(Retention(last=2))
            assert [name.step for name in store.names()] == [2, 3]
            assert len(disk.names(f"{ROOT}/packs")) == 2
    else:
        pytest.fail("no prune succeeded")


def test_opening_that_fails_gives_the_lock_back():
    """Each call in turn: the next writer is not refused."""
    for at in range(100):
        disk = MemoryStorage({"/runs": None})
        calls = failing(disk, at, errno.EIO)
        try:
            store = writer(disk)
        except StorageError:
            disk.before = None
            writer(disk, prefix="b").close()
        else:
            assert len(calls) <= at
            store.close()
            break
    else:
        pytest.fail("no store was opened")


def test_a_file_whose_sync_failed_is_not_synced_again():
    """As on Linux, a second sync says that all is well when it is not: the bytes are written anew."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, state(**OLD))
        calls = failing(disk, -1, None)
        store.commit(2, state(**NEW))
        sync = next(at for at, (call, _) in enumerate(calls) if call == "sync")
        calls = failing(disk, sync, errno.EIO)
        with pytest.raises(StorageError):
            store.commit(3, state(**OLD))
        (failed,) = {path for call, path in calls if call == "sync"}
        disk.before = None
        calls = failing(disk, -1, None)
        store.commit(3, state(**OLD))
        assert failed not in {path for _, path in calls}


def test_what_can_not_be_kept_is_refused_before_anything_is_written():
    """Metrics that are no plain values are named."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        before = disk.image()
        with pytest.raises(UnsavableError, match="loss"):
            store.commit(1, state(**OLD), metrics={"loss": object()})
        assert disk.image() == before
