"""A disk that really is full: a small file system, filled up, and where none can be mounted a limit on files.

What was there stays byte for byte, nothing else stays, and with room again everything goes on.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from contextlib import ExitStack, contextmanager
from threading import Thread

import pytest
import torch

import torchkeep as tk
from archive_states import content
from torchkeep.archive import Retention, TensorBytes, Writer, verify
from torchkeep.errors import StorageError
from torchkeep.storage.local_folders import LOCAL_FOLDERS

ROOM = 4 * 1024 * 1024
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class SmallDisk:
    """A folder on a file system of 4 MiB, or where files can't grow beyond a limit."""

    def __init__(self, path, mounted):
        self.path, self.mounted = path, mounted

    @contextmanager
    def full(self, left):
        """Let only so many bytes fit, until the block ends."""
        if not self.mounted:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return
        filler = self.path / "filler"
        found = os.statvfs(self.path)
        with open(filler, "wb") as file:  # noqa: PTH123 - unbuffered below
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - left))
        try:
            yield
        finally:
            filler.unlink()


def mounted(stack, path):
    """Mount a small file system; False where this user, or this system, may not."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(path)],  # noqa: S607 - wherever mount is
        check=False,
        capture_output=True,
    )
    if done.returncode:
        return False
    stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)
    return True


@pytest.fixture(params=["file system", "limit"])
def disk(request, tmp_path):
    with ExitStack() as stack:
        if request.param == "limit":
            (tmp_path / "disk").mkdir()
            yield SmallDisk(tmp_path / "disk", mounted=False)
        elif os.geteuid() == 0 and mounted(stack, tmp_path / "disk"):
            yield SmallDisk(tmp_path / "disk", mounted=True)
        else:
            pytest.skip("this user may mount no file system")


def files(folder):
    """Return every file's bytes, but for what fills the disk and what only says who holds a lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"filler", "lock"}
    }


def tensors(step):
    return {"w": TensorBytes.of(bytes([step]) * 300_000), "frozen": TensorBytes.of(bytes(100_000))}


def test_a_save_on_a_full_disk_leaves_the_store_as_it_was(disk):
    """Whether a pack does not fit or only the manifest; the same writer saves when there is room again."""
    with Writer(LOCAL_FOLDERS, str(disk.path / "store"), chunk=65_536) as store:
        store.commit(1, tensors(1))
        before = files(disk.path)
        for left in (0, 1, 5_000, 100_000, 304_000):
            with disk.full(left), pytest.raises(StorageError, match=r"free some space|raise the limit") as caught:
                store.commit(2, tensors(2))
            assert caught.value.errno in FULL
            assert files(disk.path) == before, left
        store.commit(3, tensors(3))
        store.prune(Retention(last=1))
        assert (content(store, store.latest())["w"], verify(store, store.names()).ok) == (b"\3" * 300_000, True)


def test_a_save_in_a_thread_on_a_full_disk_fails_there_and_the_next_one_succeeds(disk):
    """As an asynchronous save is made: its error is whole, and the store is not left locked or half written."""
    with Writer(LOCAL_FOLDERS, str(disk.path / "store"), chunk=65_536) as store:
        store.commit(1, tensors(1))
        before, errors = files(disk.path), []

        def save():
            try:
                store.commit(2, tensors(2))
            except StorageError as error:
                errors.append(error.errno)

        with disk.full(50_000):
            thread = Thread(target=save)
            thread.start()
            thread.join()
            assert content(store, store.latest())["w"] == b"\1" * 300_000
        assert (len(errors), set(errors) <= FULL, files(disk.path) == before) == (1, True, True)
        assert store.commit(2, tensors(2)).step == 2


def test_a_run_goes_on_after_an_asynchronous_save_found_the_disk_full(disk):
    """The save raises where its result is asked for; what was acknowledged is restored, the next save is kept."""
    net, again = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)
    with tk.CheckpointStore(str(disk.path / "store")) as store:
        store.save(1, net).result()
        saved = net.weight.detach().clone()
        torch.nn.init.zeros_(net.weight)
        with disk.full(50_000):
            pending = store.save(2, net)
            with pytest.raises(StorageError) as caught:
                pending.result()
            assert caught.value.errno in FULL
            assert store.restore(again) == 1
        assert torch.equal(again.weight, saved)
        store.save(3, net).result()
        assert store.restore(again) == 3
        assert not again.weight.any()


def test_a_store_that_can_not_be_made_for_want_of_room_can_be_made_later(disk):
    """Half of it may stay, and is no hindrance."""
    with disk.full(0), pytest.raises(StorageError) as caught:
        Writer(LOCAL_FOLDERS, str(disk.path / "store"), wait=0)
    assert caught.value.errno in FULL
    with Writer(LOCAL_FOLDERS, str(disk.path / "store"), wait=0) as store:
        store.commit(1, tensors(1))


def test_a_full_disk_can_be_pruned(disk):
    """What frees space needs none."""
    with Writer(LOCAL_FOLDERS, str(disk.path / "store"), chunk=65_536) as store:
        for step in range(4):
            store.commit(step, tensors(step))
        with disk.full(0):
            assert len(store.prune(Retention(last=1)).removed) == 3
        assert verify(store, store.names()).ok


def test_a_file_saved_on_a_full_disk_is_the_old_one_byte_for_byte(disk):
    """However much fits: the target is as it was, and no other file is beside it."""
    path = disk.path / "model.safetensors"
    tk.save({"w": torch.arange(1000)}, path)
    before, large = files(disk.path), {"w": torch.zeros(500_000), "v": torch.ones(10)}
    for left in (0, 1, 5_000, 1_000_000, 2_000_000):
        with disk.full(left), pytest.raises(StorageError) as caught:
            tk.save(large, path)
        assert caught.value.errno in FULL
        assert files(disk.path) == before, left
    tk.save(large, path)
    assert tk.load(path)["v"].sum() == 10
