"""A file is replaced whole or not at all, whatever fails."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from failing_storage import FailingStorage
from saved_values import no_strays
from torchkeep.errors import MissingFileError, StorageError
from torchkeep.files.loading import load_from
from torchkeep.files.saving import save_to
from torchkeep.storage import local, transfer
from torchkeep.storage.local import LOCAL
from torchkeep.storage.transfer import Chunk, write_chunks

OLD, NEW = [torch.zeros(3)], {"small": torch.ones(5), "large": torch.randn(3_000_000)}


@pytest.fixture
def path(tmp_path):
    tk.save(OLD, tmp_path / "file")
    return tmp_path / "file"


def calls_of_a_save(path):
    storage = FailingStorage()
    save_to(storage, NEW, path.with_name("probe"))
    path.with_name("probe").unlink()
    return storage.calls


def test_a_save_syncs_the_file_before_the_rename_and_the_directory_after(path):
    """The order that makes a file durable: write, sync, rename, sync of the directory; each once."""
    calls = calls_of_a_save(path)
    assert calls[:3] == ["resolve", "replaceable_mode", "create"]
    assert calls[3] == "reserve"
    assert set(calls[4:-3]) == {"write"}
    assert calls[-3:] == ["sync", "rename", "sync_directory"]


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt(), MemoryError()], ids=["EIO", "interrupt", "memory"])
def test_whatever_call_fails_the_old_file_is_whole_and_nothing_is_left_behind(path, tmp_path, failure):
    """Every call of a save fails in turn; before the rename the old file stays, after it the new one is there."""
    calls = calls_of_a_save(path)
    for position, call in enumerate(calls):
        tk.save(OLD, path)
        before = path.read_bytes()
        storage = FailingStorage(position, failure)
        with pytest.raises(StorageError if failure is None else type(failure)) as caught:
            save_to(storage, NEW, path)
        if call == "sync_directory":
            assert torch.equal(tk.load(path)["large"], NEW["large"])
            if failure is None:
                assert "written and complete" in str(caught.value)
        else:
            assert path.read_bytes() == before
        assert storage.calls.count("sync") <= 1
        no_strays(tmp_path, "file")


def test_a_failure_to_clean_up_does_not_hide_what_failed_first(path):
    """When even removing the unfinished file fails, the error is still that of the write."""

    class Broken(FailingStorage):
        def remove(self, path):
            raise StorageError(f"can't remove {path}")

    with pytest.raises(StorageError, match="can't sync"):
        save_to(Broken(calls_of_a_save(path).index("sync")), NEW, path)


def test_every_read_that_fails_is_told(path, monkeypatch):
    """Opening, reading the header and reading tensors each fail with the sentence of the system's error."""
    monkeypatch.setattr(transfer, "MOVERS", 1)  # so that calls come in one order
    tk.save(NEW, path)
    probe = FailingStorage()
    load_from(probe, path)
    assert {"open", "read", "fill"} <= set(probe.calls)
    for position, call in enumerate(probe.calls):
        with pytest.raises(StorageError, match=rf"can't {call} .*check the disk") as caught:
            load_from(FailingStorage(position), path)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444 | stat.S_IWUSR])
def test_the_mode_of_an_existing_file_is_kept(path, mode):
    """Permission bits of the old file are those of the new one, whatever the umask."""
    path.chmod(mode)
    tk.save(NEW, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_usual_mode(tmp_path):
    """Without an old file, the umask decides, as for every new file."""
    previous = os.umask(0o027)
    try:
        tk.save(OLD, tmp_path / "new")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_large_file_that_is_replaced_is_given_up(tmp_path):
    """Its blocks are freed in the background, and no descriptor stays open."""
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(2):
        tk.save(torch.zeros(17 * 2**20), tmp_path / "file")
    for thread in threading.enumerate():
        if thread.name == "torchkeep-release":
            thread.join()
    assert len(list(descriptors.iterdir())) == before
    no_strays(tmp_path, "file")


def test_symbolic_links_are_followed_and_kept(tmp_path):
    """The file that a chain of links leads to is replaced; the links stay links."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "there" / "file")
    tk.save(OLD, tmp_path / "link")
    tk.save(NEW, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert not (tmp_path / "there" / "file").is_symlink()
    assert set(tk.load(tmp_path / "there" / "file")) == set(NEW)
    no_strays(tmp_path / "there", "file")


def test_links_in_a_circle_are_told(tmp_path):
    """A link to itself leads nowhere."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match=r"circle|loop"):
        tk.save(OLD, tmp_path / "loop")
    with pytest.raises(StorageError, match="circle"):
        tk.load(tmp_path / "loop")


def test_a_directory_is_no_target(tmp_path):
    """Neither is a pipe; nothing is created beside it."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="directory") as caught:
        tk.save(OLD, tmp_path / "folder")
    assert caught.value.errno == errno.EISDIR
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no regular file"):
        tk.save(OLD, tmp_path / "pipe")
    no_strays(tmp_path, "folder", "pipe")


def test_a_missing_folder_is_named_and_not_created(tmp_path):
    """A typo in a path should not make a tree of folders."""
    path = str(tmp_path / "none" / "file")
    with pytest.raises(MissingFileError, match=r"none.*does not exist") as caught:
        tk.save(OLD, path)
    assert str(caught.value).startswith(f"can't write {path!r}: {str(tmp_path / 'none')!r} does not exist")
    assert caught.value.filename == path
    no_strays(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_told(path):
    """A path that runs through a file is no path."""
    with pytest.raises(StorageError, match="not a directory"):
        tk.save(OLD, path / "file")


def test_a_long_name_that_the_file_system_takes_is_taken(tmp_path):
    """The unfinished file's name does not grow with the target's."""
    name = "x" * 255
    tk.save(OLD, tmp_path / name)
    no_strays(tmp_path, name)
    with pytest.raises(StorageError, match="too long"):
        tk.save(OLD, tmp_path / (name + "x"))


def as_anyone(function):
    """Call a function in a thread that has none of root's rights (Linux keeps them thread by thread)."""

    def call():
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert libc.capget(header, sets) == 0
            sets[0] = sets[1] = sets[3] = sets[4] = 0  # in effect and permitted, low and high half
            assert libc.capset(header, sets) == 0
        return function()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="root's rights can be laid down on Linux only")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_written_is_not_replaced(path, tmp_path, what):
    """Renaming would get around a file's write protection; it is respected, and a folder's anyway."""
    before = path.read_bytes()
    protected = path if what == "file" else tmp_path
    protected.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="permission") as caught:
            as_anyone(lambda: tk.save(NEW, path))
    finally:
        protected.chmod(0o755)
    assert caught.value.errno == errno.EACCES
    assert path.read_bytes() == before
    no_strays(tmp_path, "file")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="root's rights can be laid down on Linux only")
def test_what_may_not_be_read_is_told(path):
    """No permission to read is an error of the file, with the advice that fits."""
    path.chmod(0)
    with pytest.raises(StorageError, match="permission") as caught:
        as_anyone(lambda: tk.load(path))
    assert caught.value.errno == errno.EACCES


def test_a_size_limit_is_told_and_leaves_the_old_file(path, tmp_path):
    """A real refusal by the system in the middle of writing: the old file stays, nothing else does."""
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StorageError, match="ulimit") as caught:
            tk.save(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value).startswith(f"can't write {str(path)!r}: ")
    assert path.read_bytes() == before
    no_strays(tmp_path, "file")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells before the first byte")
def test_a_large_file_that_will_not_fit_is_refused_before_a_byte_is_copied(tmp_path):
    """The system is asked for all blocks at once, so a disk that is too full says so in no time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = LOCAL.create(str(tmp_path / "file"), None)
    asked = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StorageError, match="ulimit") as caught:
            write_chunks(file, [Chunk(4096, 64 * 2**20, 0, 0)], lambda *of: asked.append(of))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.close()
    assert caught.value.errno == errno.EFBIG
    assert asked == []


def test_a_file_system_that_can_not_reserve_blocks_is_written_all_the_same(tmp_path, monkeypatch):
    """NFS before 4.2 refuses it, and some systems have no such call: then blocks are found one by one."""

    def refuse(*_):
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    large = torch.arange(5 * 2**20)
    for fallocate in (refuse, None):
        monkeypatch.setattr(local, "_fallocate", fallocate)
        tk.save(large, tmp_path / "file")
        assert torch.equal(tk.load(tmp_path / "file"), large)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_told(tmp_path, monkeypatch):
    """The system's own ENOSPC, from a device that is always full, says to free some space."""
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no regular file"):
        tk.save(OLD, tmp_path / "full")
    real_open = os.open

    def to_full(path, flags, mode=0o777):
        descriptor = real_open(path, flags, mode)
        if flags & os.O_WRONLY:
            os.dup2(full := real_open("/dev/full", os.O_WRONLY), descriptor)
            os.close(full)
        return descriptor

    monkeypatch.setattr(os, "open", to_full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        tk.save(OLD, tmp_path / "file")
    assert caught.value.errno == errno.ENOSPC
    no_strays(tmp_path, "full")


def test_reading_something_unreadable_says_so(tmp_path):
    """A path with a NUL is no path, for saving and for loading."""
    with pytest.raises(StorageError, match="check the path"):
        tk.save(OLD, "a\0b")
    with pytest.raises(StorageError, match="check the path"):
        tk.load("a\0b")
    with pytest.raises(MissingFileError):
        LOCAL.remove(str(tmp_path / "none"))
