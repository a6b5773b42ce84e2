"""A real process that is killed while it saves or prunes, on a real disk: the next one takes over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from archive_states import content
from torchkeep.archive import Archive, Retention, TensorBytes, Writer, verify
from torchkeep.errors import StoreError
from torchkeep.storage.local_folders import LOCAL_FOLDERS

# Forks one child for each line that it is given, which costs no start of an interpreter.
SERVER = """
import os, signal, sys, threading
from torchkeep.archive import Retention, TensorBytes, Writer
from torchkeep.storage.local_folders import LocalFolders

class Doomed(LocalFolders):
    CALLS = {"create", "open", "rename", "remove", "names", "make_folder", "remove_folder", "sync_directory"}
    left, guard = 0, threading.Lock()

    @classmethod
    def count(cls, half=None):
        with cls.guard:
            cls.left -= 1
            if cls.left < 0:
                if half is not None:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)

    def __getattribute__(self, name):
        if name not in Doomed.CALLS:
            return super().__getattribute__(name)
        Doomed.count()
        found = super().__getattribute__(name)
        return found if name != "create" else lambda *given: DoomedFile(found(*given))

class DoomedFile:
    def __init__(self, file):
        self.file = file

    def reserve(self, nbytes):
        Doomed.count()
        self.file.reserve(nbytes)

    def write(self, start, buffer, begin, end):
        # Killed in a write, half of it may have arrived.
        Doomed.count(lambda: self.file.write(start, buffer, begin, begin + (end - begin) // 2))
        self.file.write(start, buffer, begin, end)

    def sync(self):
        Doomed.count()
        self.file.sync()

    def close(self):
        self.file.close()

def live(root, tell):
    with Writer(Doomed(), root, chunk=4096) as store:
        for step in range(4):
            changed, frozen = bytes([step]) * 10_000, bytes(10_000)
            store.commit(step, {"w": TensorBytes.of(changed), "frozen": TensorBytes.of(frozen)})
            os.write(tell, b"%d " % step)
            store.prune(Retention(last=1 + step % 2))
    os.write(tell, b"done")

for line in sys.stdin:
    root, left = line.rsplit(None, 1)
    Doomed.left = int(left)
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        live(root, tell)
        os._exit(0)
    os.close(tell)
    told = b""
    while part := os.read(hear, 99):
        told += part
    os.close(hear)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), told.decode(), flush=True)
"""
SHARES = 4


def expected(step):
    return {"w": bytes([step]) * 10_000, "frozen": bytes(10_000)}


@pytest.fixture(scope="module")
def server():
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    yield child
    child.communicate()
    assert child.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("share", range(SHARES))
def test_what_a_killed_process_acknowledged_is_there(share, server, tmp_path):
    """Killed before each of its calls in turn, which is after the one before, or in the middle of a write.

    The last step that it told, or the one in flight, is restored, whole; readers see it before the next writer has
    cleaned up; and that one saves, prunes and verifies.
    """
    for calls in range(share, 1000, SHARES):
        root = str(tmp_path / f"store{calls}")
        server.stdin.write(f"{root} {calls}\n")
        status, *told = server.stdout.readline().split()
        done = told[-1:] == ["done"]
        assert int(status) == (0 if done else -signal.SIGKILL)
        check(root, max([-1, *(int(step) for step in told if step != "done")]))
        if done:
            break
    else:
        pytest.fail("the process makes more calls than were tried")
    assert calls > 90


def check(root, last):
    """Look at what a process left that told to have saved up to a step, and go on."""
    possible = {last, last + 1} if last < 3 else {last}
    try:
        reader = Archive.open(LOCAL_FOLDERS, root)
    except StoreError:
        assert last == -1
    else:
        latest = reader.latest()
        assert last == -1 if latest is None else content(reader, latest) == expected(latest.step)
        assert verify(reader, reader.names()).ok
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        found = []
        restored = store.restore(lambda manifest: found.append(content(store, manifest)))
        step = restored.manifest.step if restored else -1
        assert step in possible
        assert restored is None or (found[-1], restored.skipped) == (expected(step), ())
        step = max(step, 0)
        tensors = {name: TensorBytes.of(data) for name, data in expected(step).items()}
        store.commit(step, tensors)
        store.prune(Retention(last=1))
        assert verify(store, store.names()).ok
        assert content(store, store.latest()) == expected(step)
        assert len(LOCAL_FOLDERS.names(f"{root}/staging")) == 1
