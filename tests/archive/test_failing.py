"""Whatever call of a save or a prune fails, what was acknowledged stays, and the process can go on."""

from __future__ import annotations

import errno
import os

import pytest

from archive_states import ROOT, content, state, writer
from torchkeep.archive import Archive, Retention, verify
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


def dying(disk, at):
    """Let no call succeed from the call number ``at`` on."""
    left = iter(range(at))

    def before(*_):
        if next(left, None) is None:
            raise KeyboardInterrupt

    disk.before = before


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


ERRORS = pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])


@ERRORS
def test_a_prune_that_fails_leaves_what_is_kept(error):
    """Each call in turn: what the rules keep is whole, and the next prune finishes."""
    for at in range(100):
        disk = MemoryStorage({"/runs": None})
        with writer(disk) as store:
            for step in range(4):
                store.commit(step, state(w=bytes([step]) * 100))
            calls = failing(disk, at, error)
            try:
                store.prune(Retention(last=2))
            except StorageError:
                disk.before = None
            else:
                assert len(calls) <= at
                disk.before = None
                break
            assert {name.step for name in store.names()} >= {2, 3}
            assert verify(store, store.names()).ok
            store.prune(Retention(last=2))
            assert [name.step for name in store.names()] == [2, 3]
            assert len(disk.names(f"{ROOT}/packs")) == 2
    else:
        pytest.fail("no prune succeeded")


@ERRORS
@pytest.mark.parametrize("kind", ["new", "with checkpoints", "left by the dead"])
def test_opening_that_fails_gives_the_lock_back(error, kind):
    """Each call in turn: nothing is lost by it, and the next writer is not refused."""
    for at in range(100):
        disk = MemoryStorage({"/runs": None})
        if kind != "new":
            store = writer(disk, prefix="a")
            store.commit(1, state(**OLD))
            if kind == "with checkpoints":
                store.close()
            else:
                dying(disk, 9)
                with pytest.raises(KeyboardInterrupt):
                    store.commit(2, state(**NEW))
                disk.revive()
        calls = failing(disk, at, error)
        try:
            store = writer(disk)
        except StorageError:
            disk.before = None
            store = writer(disk, prefix="b")
        else:
            assert len(calls) <= at
            store.close()
            break
        assert kind == "new" or content(store, store.latest()) in (OLD, NEW)
        store.close()
    else:
        pytest.fail("no store was opened")


@ERRORS
def test_closing_that_fails_gives_the_lock_back(error):
    """Each call in turn: what stays in staging is the next writer's to clear."""
    for at in range(10):
        disk = MemoryStorage({"/runs": None})
        store = writer(disk)
        store.commit(1, state(**OLD))
        calls = failing(disk, at, error)
        store.close()
        disk.before = None
        with writer(disk, prefix="b") as store:
            assert content(store, store.latest()) == OLD
        if len(calls) <= at:
            break
    else:
        pytest.fail("close makes more calls than were tried")


@ERRORS
def test_a_restore_that_fails_says_so_and_goes_back_to_nothing_older(error):
    """Each call in turn: a disk that fails is no reason to take an older checkpoint for the latest."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, state(**OLD))
        store.commit(2, state(**NEW))
    for at in range(30):
        calls, got = failing(disk, at, error), []
        try:
            store = Archive.open(disk, ROOT)
            store.restore(lambda manifest: got.append(content(store, manifest)))  # noqa: B023 - called at once
        except StorageError:
            assert not got
        else:
            assert (len(calls) <= at, got) == (True, [NEW])
            break
    else:
        pytest.fail("no restore succeeded")


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


def test_a_failed_save_that_can_not_be_withdrawn_hides_no_later_one():
    """Its manifest may stay; a state saved after it comes back, although the checkpoint before held it already."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, state(**OLD))

        def before(call, path):
            if "/checkpoints/" in path and call in {"sync_directory", "remove"}:
                cause = OSError(errno.EIO, os.strerror(errno.EIO), path)
                raise refused(cause, call, path) from cause

        disk.before = before
        with pytest.raises(StorageError):
            store.commit(1, state(**NEW))
        disk.before = None
        assert content(store, store.latest()) == NEW
        again = store.commit(1, state(**OLD))
        assert (again.sequence, again.summary.written) == (3, 0)
        assert content(store, store.latest()) == OLD
        assert store.commit(1, state(**OLD)) is again


def test_what_can_not_be_kept_is_refused_before_anything_is_written():
    """Metrics that are no plain values are named, and text that can't be written down."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        before = disk.image()
        with pytest.raises(UnsavableError, match="loss"):
            store.commit(1, state(**OLD), metrics={"loss": object()})
        for tensors, options in [
            (state(**{"\udc80": b""}), {}),
            (state(**OLD), {"aliases": {"\udc80": "w"}}),
            (state(**OLD), {"tree": {"a": "\udc80"}}),
        ]:
            with pytest.raises(UnsavableError, match="lone surrogate"):
                store.commit(1, tensors, **options)
        assert disk.image() == before
