"""One writer at a time: the second waits and is refused with a name, the dead hold nothing, forks hold nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from archive_states import state
from torchkeep.archive import Archive, Writer
from torchkeep.errors import StorageError, StoreError, StoreLockedError
from torchkeep.storage.local_folders import LOCAL_FOLDERS

HOLDER = """
import sys, time
from torchkeep.archive import Writer
from torchkeep.storage.local_folders import LOCAL_FOLDERS
store = Writer(LOCAL_FOLDERS, sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def holder(root):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_writer_is_refused_naming_host_and_process(root, holder):
    """Also a second one in the same process; reading needs no lock."""
    with pytest.raises(StoreLockedError) as caught:
        Writer(LOCAL_FOLDERS, root, wait=0)
    assert f"process {holder.pid} on host {socket.gethostname()!r}" in str(caught.value)
    assert "did not stop within 0 s" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    assert Archive.open(LOCAL_FOLDERS, root).names() == []


def test_the_same_process_can_not_write_twice(root):
    """Two writers in one program exclude each other as two programs do; closing the first lets the second in."""
    with Writer(LOCAL_FOLDERS, root) as store:
        with pytest.raises(StoreLockedError, match=rf"process {os.getpid()} .*\(this one, by another"):
            Writer(LOCAL_FOLDERS, root, wait=0.05)
        store.commit(1, state(w=b"x"))
    Writer(LOCAL_FOLDERS, root, wait=0).close()


def test_a_second_writer_waits_for_the_first_to_end(root, monkeypatch):
    """Closed while the second one waits, the store is the second one's."""
    first, waits = Writer(LOCAL_FOLDERS, root), []

    def end_soon(_):
        waits.append(1)
        if len(waits) == 3:
            first.close()

    monkeypatch.setattr("time.sleep", end_soon)
    Writer(LOCAL_FOLDERS, root).close()
    assert len(waits) == 3


def test_a_dead_process_holds_nothing(root, holder):
    """After SIGKILL the lock is taken over, although its file still names the dead, and staging is cleared."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Writer(LOCAL_FOLDERS, root, wait=5) as store:
        assert len(LOCAL_FOLDERS.names(f"{root}/staging")) == 1
        store.commit(1, state(w=b"x"))
    assert os.path.exists(f"{root}/lock")  # noqa: PTH110 - the store's paths are text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_neither_writes_nor_holds_the_lock(root):
    """As a DataLoader's workers are: the parent closes the store, and it is free although the child lives on."""
    store = Writer(LOCAL_FOLDERS, root)
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.commit(1, state(w=b"x"))
            answer = b"written"
        except StoreError as error:
            answer = b"refused" if "forked" in str(error) else b"?"
        store.close()
        os.write(to_parent[1], answer)
        os.read(to_child[0], 1)
        os._exit(0)
    try:
        assert os.read(to_parent[0], 10) == b"refused"
        with pytest.raises(StoreLockedError):
            Writer(LOCAL_FOLDERS, root, wait=0)
        store.commit(1, state(w=b"y"))
        store.close()
        Writer(LOCAL_FOLDERS, root, wait=0).close()
    finally:
        os.write(to_child[1], b"x")
        os.waitpid(child, 0)
        for descriptor in (*to_child, *to_parent):
            os.close(descriptor)


def test_folders_tell_what_the_system_refused(tmp_path):
    """Each call of the seam for folders names what it could not do."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    calls = {
        "can't list": lambda: LOCAL_FOLDERS.names(str(tmp_path / "file")),
        "can't read": lambda: LOCAL_FOLDERS.names(str(tmp_path / "none")),
        "can't make the folder": lambda: LOCAL_FOLDERS.make_folder(str(tmp_path / "file")),
        "can't remove": lambda: LOCAL_FOLDERS.remove_folder(str(tmp_path / "full")),
        "can't lock": lambda: LOCAL_FOLDERS.lock(str(tmp_path / "none" / "lock"), 0),
    }
    for sentence, call in calls.items():
        with pytest.raises(StorageError, match=sentence):
            call()
    assert LOCAL_FOLDERS.make_folder(str(tmp_path / "new"))
    assert not LOCAL_FOLDERS.make_folder(str(tmp_path / "new"))
