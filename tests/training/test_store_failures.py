"""What fails in the background is told, once, to whoever asks first; nothing hangs and nothing is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest
import torch

import torchkeep as tk
from stored_runs import WAIT, a_run, bits, bits_of, paused, train
from torchkeep.errors import SaveUnfinishedError, StorageError, StoreError, TorchkeepWarning
from torchkeep.formats.opening import refused
from torchkeep.storage.local_folders import LocalFolders
from torchkeep.training.state.capturing import capture
from torchkeep.training.store.gates import closed_gates
from torchkeep.training.store.snapshots import Snapshot


class Failing(LocalFolders):
    """The local file system; a kind of call fails while it is told to."""

    failing = None
    code = errno.ENOSPC

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "failing"):
            cause = OSError(self.code, os.strerror(self.code), "the disk")

            def fail(path, *_):
                raise refused(cause, name, path) from cause

            return fail
        return super().__getattribute__(name)


@pytest.fixture
def disk():
    return Failing()


@pytest.fixture
def store(disk, tmp_path):
    """A store with one checkpoint, on a disk that then gets full."""
    store = tk.CheckpointStore(tmp_path / "run", storage=disk)
    store.save(0, {"w": torch.zeros(4)}).result()
    disk.failing = "create"
    yield store
    disk.failing = None
    store.close()


def one(step):
    return {"w": torch.full((4,), float(step))}


def test_a_full_disk_is_told_by_result_and_by_nobody_else_then(store, disk):
    """Each result() raises it; the next save and close go on."""
    pending = store.save(1, one(1))
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full") as caught:
            pending.result()
    assert caught.value.errno == errno.ENOSPC
    assert pending.error is caught.value
    assert "failed" in repr(pending)
    disk.failing = None
    assert store.save(1, one(1)).result()["w"].tolist() == [1.0] * 4
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [0, 1]


def test_a_full_disk_is_told_by_the_next_save_which_then_can_be_made(store, disk):
    """That save has done nothing yet; called again it is made, and close has nothing to tell."""
    pending = store.save(1, one(1))
    with pytest.raises(StorageError, match="the disk is full"):
        store.save(2, one(2))
    assert pending.told
    disk.failing = None
    store.save(2, one(2))
    store.close()
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [0, 2]


def test_a_full_disk_is_told_by_close_which_closes_all_the_same(store, disk, tmp_path):
    """The lock is given back, so that another can write."""
    store.save(1, one(1))
    with pytest.raises(StorageError, match="the disk is full"):
        store.close()
    store.close()
    disk.failing = None
    with tk.CheckpointStore(tmp_path / "run") as other:
        other.save(1, one(1))


def test_a_full_disk_while_a_save_is_waited_for_is_raised_there_and_only_there(store, disk):
    """Of wait=True and of the end of a `with` block that another error leaves, which goes first."""
    with pytest.raises(StorageError):
        store.save(1, one(1), wait=True)
    disk.failing = None
    store.save(1, one(1))
    store._flights.land()
    disk.failing = "create"

    def use():
        with store:
            store.save(2, one(2))
            raise KeyError("the user's")

    with pytest.raises(KeyError, match="the user's") as caught:
        use()
    assert "what was being saved" in caught.value.__notes__[0]
    assert "the disk is full" in caught.value.__notes__[0]


def test_looking_and_restoring_do_not_swallow_what_failed(store, disk):
    """A restore waits for the save in flight, and leaves its failure to the next save."""
    store.save(1, one(1))
    state = one(5)
    assert store.restore(state) == 0
    assert state["w"].tolist() == [0.0] * 4
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [0]
    with pytest.raises(StorageError, match="the disk is full"):
        store.save(1, one(1))
    disk.failing = None


@pytest.mark.parametrize("call", ["rename", "sync_directory", "names"])
def test_every_kind_of_failure_leaves_a_store_that_goes_on(call, store, disk):
    """The step before is there or the failed one, and the next save is made."""
    disk.failing, disk.code = call, errno.EIO
    pending = store.save(1, one(1))
    if call == "names":  # the commit asks for none, the prune does
        with pytest.warns(TorchkeepWarning, match="can't be pruned"):
            pending.result()
    else:
        with pytest.raises(StorageError):
            pending.result()
    disk.failing = None
    store.save(2, one(2)).result()
    assert store.verify().ok
    state = one(9)
    assert store.restore(state) == 2


def test_a_prune_that_meets_damage_warns_and_the_save_stands(tmp_path):
    """With a first line damaged nothing is removed; each save says so."""
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=1)) as store:
        store.save(1, one(1)).result()
    first = next((tmp_path / "run" / "checkpoints").iterdir())
    first.write_bytes(first.read_bytes().replace(b'"step":1', b'"step":7', 1))
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=1)) as store:
        pending = store.save(2, one(2))
        with pytest.warns(TorchkeepWarning, match="step 2 is saved, but older checkpoints can't be pruned"):
            pending.result()
        store.save(3, one(3))
        with pytest.warns(TorchkeepWarning, match="step 3 is saved"):
            store.close()
    assert first.exists()


def test_a_save_that_takes_longer_says_so_and_goes_on(tmp_path):
    """result() with a timeout."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        pending = store.save(1, state)
        pause.wait()
        assert not pending.done()
        assert repr(pending) == "<PendingSave of step 1: under way>"
        with pytest.raises(SaveUnfinishedError, match="still under way after 0 s"):
            pending.result(timeout=0)
        pause.go.set()
        assert pending.result(WAIT).step == 1


def test_a_save_waits_for_the_one_in_flight(tmp_path):
    """Two are never under way at once."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        first = store.save(1, state)
        pause.wait()
        seconds = []
        second = threading.Thread(target=lambda: seconds.append(store.save(2, state)))
        second.start()
        second.join(0.05)
        assert second.is_alive()
        pause.go.set()
        second.join(WAIT)
        assert first.done()
        assert seconds[0].result().step == 2


def test_a_save_from_a_signal_handler_that_interrupted_one_is_refused(tmp_path):
    """It would wait for itself; the error says what to do instead, and the interrupted save goes on."""
    state, refusals = a_run(), []

    class Late:
        def state_dict(self):
            with pytest.raises(StoreError, match="set a flag") as caught:
                store.save(5, {"w": torch.ones(1)})
            refusals.append(caught.value)
            return {}

        def load_state_dict(self, _):
            pass

    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, tk.TrainingState(model=state.model, late=Late())).result()
    assert refusals


@pytest.mark.parametrize("at", [0, 1, 7])
def test_an_interrupted_save_leaves_nothing_behind(at, tmp_path, monkeypatch):
    """Ctrl-C while save() copies what must be copied first: no thread, no gate, no checkpoint, and it goes on."""
    state, left, copy = a_run(), [at], Snapshot._copy_item
    before = threading.active_count()

    def strike(snapshot, index):
        if threading.current_thread() is not threading.main_thread():
            assert struck.wait(WAIT)  # so that it is the main thread that copies
        elif left[0] == 0:
            struck.set()
            raise KeyboardInterrupt
        left[0] -= 1
        copy(snapshot, index)

    struck = threading.Event()
    with tk.CheckpointStore(tmp_path / "run") as store:
        store._flights.piece = 64
        with monkeypatch.context() as patched:
            patched.setattr(Snapshot, "_copy_item", strike)
            with pytest.raises(KeyboardInterrupt):
                store.save(1, state)
        assert struck.is_set()
        assert threading.active_count() == before
        assert closed_gates() == ()
        assert store.checkpoints() == []
        want = bits(state)
        pending = store.save(2, state)
        train(state)
        assert bits_of(pending.result()) == want


def test_a_step_that_is_interrupted_while_it_waits_loses_nothing(tmp_path, monkeypatch):
    """Ctrl-C arrives in the thread that steps while it helps to copy: what it had begun is copied by the other."""
    state, copy, struck = a_run(), Snapshot._copy_item, []

    def strike(snapshot, index):
        if threading.current_thread() is threading.main_thread() and index >= snapshot._first:
            struck.append(index)
            raise KeyboardInterrupt
        copy(snapshot, index)

    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        want, stepped = bits(state), capture(state).stepped
        pending = store.save(1, state)
        pause.wait()
        with monkeypatch.context() as patched:
            patched.setattr(Snapshot, "_copy_item", strike)
            with pytest.raises(KeyboardInterrupt):
                train(state)
        assert len(struck) == 1
        pause.go.set()
        train(state)
        kept = bits_of(pending.result())
        assert {name: kept[name] for name in stepped} == {name: want[name] for name in stepped}


EXIT = """
import sys, torch, torchkeep as tk
store = tk.CheckpointStore(sys.argv[1])
state = {"w": torch.arange(1_000_000.0), "small": [torch.ones(3) for _ in range(50)]}
how = sys.argv[2]
store.save(1, {"w": torch.zeros(1_000_000)}, wait=True)
pending = store.save(2, state)
if how == "dropped":
    del store, pending
elif how == "raised":
    raise SystemExit(3)
elif how == "broken":
    store.writer.commit = None
    store.save(3, {"w": torch.ones(2)})
elif how == "fork":
    import os
    if not os.fork():
        try:
            store.save(3, state)
        except tk.TorchkeepError as error:
            print("child:", error)
        store.close()
        sys.exit()
    os.wait()
"""


@pytest.mark.parametrize("how", ["dropped", "raised", "fork"])
def test_a_process_that_ends_finishes_what_is_under_way(how, tmp_path):
    """Right after save(): with the store dropped, by SystemExit, and with a forked child that can't write."""
    where = str(tmp_path / "run")
    ended = subprocess.run([sys.executable, "-c", EXIT, where, how], capture_output=True, check=False, text=True)
    assert (ended.returncode, ended.stderr) == (3 if how == "raised" else 0, "")
    assert ("child: this process was forked" in ended.stdout) == (how == "fork")
    state = {"w": torch.zeros(1_000_000), "small": [torch.zeros(3) for _ in range(50)]}
    store = tk.CheckpointStore(where)
    assert store.restore(state) == 2
    assert torch.equal(state["w"], torch.arange(1_000_000.0))
    with store:
        store.save(3, state, wait=True)  # the lock is free


LATE = """
import atexit, sys, threading, torch, torchkeep as tk
store = tk.CheckpointStore(sys.argv[1])
state = {"changes": torch.zeros(1), "stays": torch.ones(2_000_000)}
store.save(1, state, wait=True)
state["changes"] += 1
if sys.argv[2] == "under way":
    commit = store.writer.commit
    def late(*given, **options):
        threading.main_thread().join()
        return commit(*given, **options)
    store.writer.commit = late
    store.save(2, state)
else:
    atexit.register(store.save, 2, state, wait=sys.argv[2] == "waited for at exit")
"""


@pytest.mark.parametrize("how", ["under way", "at exit", "waited for at exit"])
def test_what_is_saved_while_the_interpreter_ends_is_durable(how, tmp_path):
    """Then no pool of threads begins anything more, and nobody waits for a new thread."""
    where = str(tmp_path / "run")
    ended = subprocess.run([sys.executable, "-c", LATE, where, how], capture_output=True, check=False, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    state = {"changes": torch.zeros(1), "stays": torch.zeros(2_000_000)}
    assert tk.CheckpointStore(where).restore(state) == 2
    assert (state["changes"].item(), state["stays"].sum().item()) == (1, 2_000_000)


def test_what_nobody_was_told_is_shown_at_exit(tmp_path):
    """A save that failed, in a process that asks no more."""
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path / "run"), "broken"], capture_output=True, check=False, text=True
    )
    assert "TypeError: 'NoneType' object is not callable" in ended.stderr
    state = {"w": torch.zeros(1_000_000), "small": [torch.zeros(3) for _ in range(50)]}
    assert tk.CheckpointStore(tmp_path / "run").restore(state) == 2


def test_a_dropped_store_gives_its_lock_back_and_shows_what_failed(disk, tmp_path):
    """Without close: when the save in flight has ended."""
    store = tk.CheckpointStore(tmp_path / "run", storage=disk)
    store.save(1, one(1)).result()
    del store
    with tk.CheckpointStore(tmp_path / "run") as other:
        other.save(2, one(2))
    store = tk.CheckpointStore(tmp_path / "run", storage=disk)
    disk.failing = "create"
    shown = []
    hook, threading.excepthook = threading.excepthook, lambda found: shown.append(found.exc_value)
    try:
        disk.failing = None
        with paused(store) as pause:
            state = a_run()
            store.save(3, state)
            pause.wait()
            flying = store._flights._thread
            del store
            disk.failing = "create"
        flying.join(WAIT)
    finally:
        threading.excepthook = hook
    assert [type(error) for error in shown] == [StorageError]
    disk.failing = None
    with tk.CheckpointStore(tmp_path / "run") as other:
        other.save(3, one(3))
