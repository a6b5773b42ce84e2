"""A forked child, such as a worker of a DataLoader, reads from a store that it inherits, and never hangs.

Its parent's threads are not in it, but what they held when it was forked is.
"""

from __future__ import annotations

import mmap
import os
from threading import Event, Thread

import pytest
import torch

import torchkeep as tk
from forks import child_ends_well, in_own_process
from stored_runs import WAIT, a_run, bits, bits_of, paused, train
from torchkeep.errors import StoreError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def fork_while_a_save_is_copied(folder):
    state = a_run()
    with tk.CheckpointStore(folder) as store:
        store.save(1, state).result()
        train(state)
        with paused(store) as pause:
            want = bits(state)
            pending = store.save(2, state)
            pause.wait()

            def try_everything():
                state.optimizer.step()
                for call in (lambda: store.save(3, state), store.prune, pending.result):
                    with pytest.raises(StoreError, match="forked"):
                        call()
                assert [found.step for found in store.checkpoints()] == [1]
                assert store.restore(state) == 1
                store.close()

            assert child_ends_well(try_everything)
            pause.go.set()
            assert bits_of(pending.result()) == want
        store.save(3, state, wait=True)


def test_a_forked_child_reads_but_cannot_write(tmp_path):
    """Forked while a save is copied: the child steps at once, its saves are refused; the parent's is whole."""
    in_own_process(fork_while_a_save_is_copied, str(tmp_path / "run"))


def fork_while_a_save_ends(folder):
    with tk.CheckpointStore(folder) as store:
        pending = store.save(1, {"w": torch.ones(2)})
        pending.result()

        def look():
            assert pending.result().step == 1

        with pending._ended._cond:  # taken by the thread that saves while it tells those who wait
            assert child_ends_well(look)


def test_a_child_has_the_result_of_a_save_that_ended_just_then(tmp_path):
    """It is there, or the child is told that it was under way; nothing is waited for."""
    in_own_process(fork_while_a_save_ends, str(tmp_path / "run"))


def fork_while_a_thread_reads(folder):
    with tk.CheckpointStore(folder) as store:
        store.save(1, {"w": torch.ones(2)}).result()
        (one,), (other,) = store.checkpoints(), store.checkpoints()
        reading, go = Event(), Event()
        manifest = one.archive.manifest

        def slowly(name):
            reading.set()
            assert go.wait(WAIT)
            return manifest(name)

        one.archive.manifest = slowly
        thread = Thread(target=lambda: one["w"])
        thread.start()
        assert reading.wait(WAIT)
        del one.archive.manifest

        def read():
            assert torch.equal(other["w"], torch.ones(2))

        try:
            assert child_ends_well(read)
        finally:
            go.set()
            thread.join()


def test_a_child_reads_although_a_thread_was_reading(tmp_path):
    """Another thread of the parent is reading the same kind of thing: what it is in the midst of locks nothing."""
    in_own_process(fork_while_a_thread_reads, str(tmp_path / "run"))


def fork_with_memory_for_copies(folder):
    state = {"w": torch.zeros(2**20)}
    with tk.CheckpointStore(folder) as store:
        store.save(1, state).result()

        def close_and_keep_own_memory():
            blocks = [mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(8)]
            for block in blocks:
                block[:] = b"x" * 2**20
            store.close()
            assert all(block[:] == b"x" * 2**20 for block in blocks)

        assert child_ends_well(close_and_keep_own_memory)


def test_a_child_that_drops_the_store_keeps_its_own_memory(tmp_path):
    """The parent's memory for copies is not in the child, and giving it back there takes nothing else away."""
    in_own_process(fork_with_memory_for_copies, str(tmp_path / "run"))
