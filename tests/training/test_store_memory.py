"""Memory for snapshots: used again, given back, and not asked for where it is short."""

from __future__ import annotations

import os
import threading
from ctypes import memset, string_at
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from stored_runs import a_run, bits, bits_of, train
from torchkeep.errors import TorchkeepWarning
from torchkeep.storage.memory import MemoryStorage
from torchkeep.training.store import staging
from torchkeep.training.store.gates import closed_gates
from torchkeep.training.store.staging import Staging, group_memory

GIB = 2**30


def test_two_hundred_saves_use_the_same_memory():
    """It is asked for once, does not grow, leaves no threads, gates or mappings, and goes at close."""
    state, disk = a_run(width=64), MemoryStorage({"/runs": None})
    with tk.CheckpointStore("/runs/run", storage=disk) as store:
        store.save(0, state).result()
        memory, threads = store._flights.staging, threading.active_count()
        size, maps = len(memory), _mappings()
        for step in range(1, 201):
            store.save(step, state)
            train(state)
        store.save(200, {"done": torch.ones(1)}).result()
        store.prune()
        for thread in threading.enumerate():  # the last one may still be on its way out
            if thread.name.startswith("torchkeep save"):
                thread.join(60)
        assert (memory.allocations, len(memory)) == (1, size)
        assert size > 0
        assert threading.active_count() <= threads
        assert closed_gates() == ()
        assert _mappings() <= maps + 8
        assert len(disk.names("/runs/run/packs")) <= 6
    assert len(memory) == 0


def _mappings():
    maps = Path("/proc/self/maps")  # Linux only
    return len(maps.read_text("utf-8").splitlines()) if maps.exists() else 0


def test_a_state_that_grows_gets_more_memory_once(tmp_path):
    """As when an optimizer takes its first step."""
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step, size in enumerate((10, 10, 1000, 1000, 10)):
            state = {"w": torch.full((size,), float(step))}
            assert torch.equal(store.save(step, state).result()["w"], state["w"])
        assert store._flights.staging.allocations == 2


def test_where_memory_is_short_a_save_waits_and_says_so_once(tmp_path, monkeypatch):
    """The state is durable when save returns; when there is memory again, saves overlap again."""
    state = a_run()
    monkeypatch.setattr(staging, "free_memory", lambda: 1000)
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=None)) as store:
        with pytest.warns(TorchkeepWarning, match="memory is short"):
            pending = store.save(1, state)
        assert pending.done()
        assert bits_of(pending.result()) == bits(state)
        train(state)
        assert store.save(2, state).done()
        assert store._flights.staging.allocations == 0
        monkeypatch.undo()
        train(state)
        store.save(3, state)
        assert store._flights.staging.allocations == 1


def test_memory_that_the_system_refuses_is_short(tmp_path, monkeypatch):
    """Whatever was said to be free."""
    monkeypatch.setattr(staging, "_allocated", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with tk.CheckpointStore(tmp_path / "run") as store, pytest.warns(TorchkeepWarning, match="memory is short"):
        assert store.save(1, {"w": torch.ones(3)}).done()


def test_memory_is_page_by_page_its_own():
    """What is written stays, what is given back is gone, and a fork leaves it to this process."""
    memory = Staging()
    address = memory.room(10_000)
    assert memory.room(5_000) == address
    assert not memory.lacks(10_000)
    assert address % 64 == 0
    memory.room(5_000, pinned=True)  # as accelerators like it, if there is one
    memory.room(5_000, pinned=True)
    assert memory.allocations == 2
    memory.free()
    assert len(memory) == 0
    assert memory.lacks(2**60)
    if hasattr(os, "fork"):
        address = memory.room(4096)
        memset(address, 7, 4096)
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert string_at(address, 4096) == b"\7" * 4096


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(value)


def test_the_limit_of_a_control_group_counts_and_that_of_those_around_it(tmp_path):
    """Version 2: what is left is the limit less the use, but for cached files; the tightest group decides."""
    own = tmp_path / "cgroup"
    own.write_text("0::/job/task\n")
    assert group_memory(str(own), str(tmp_path / "nothing")) > 2**50
    group(tmp_path / "fs" / "job" / "task", memory__max="max\n", memory__current=f"{GIB}\n")
    group(
        tmp_path / "fs" / "job",
        memory__max=f"{4 * GIB}\n",
        memory__current=f"{3 * GIB}\n",
        memory__stat=f"anon 5\ninactive_file {GIB // 2}\n",
    )
    assert group_memory(str(own), str(tmp_path / "fs")) == GIB + GIB // 2
    group(tmp_path / "fs" / "job" / "task", memory__max=f"{GIB + 100}\n", memory__current=f"{GIB}\n")
    assert group_memory(str(own), str(tmp_path / "fs")) == 100
    group(tmp_path / "fs" / "job" / "task", memory__current=f"{2 * GIB}\n")
    assert group_memory(str(own), str(tmp_path / "fs")) == 0


def test_control_groups_of_version_one_count_as_well(tmp_path):
    """Where the limit is a very high number there is none."""
    own = tmp_path / "cgroup"
    own.write_text("12:cpu,cpuacct:/x\n5:memory:/docker/abc\n")
    group(
        tmp_path / "fs" / "memory",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes=f"{GIB}",
    )
    assert group_memory(str(own), str(tmp_path / "fs")) > 2**50
    group(
        tmp_path / "fs" / "memory" / "docker" / "abc",
        memory__limit_in_bytes=f"{2 * GIB}",
        memory__usage_in_bytes=f"{GIB}",
        memory__stat="total_inactive_file 4096\n",
    )
    assert group_memory(str(own), str(tmp_path / "fs")) == GIB + 4096
