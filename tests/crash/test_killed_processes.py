"""A real process that is killed while it saves or prunes, on a real disk: the next one takes over."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from archive_states import content
from torchkeep.archive import Retention, TensorBytes, Writer, verify
from torchkeep.storage.local_folders import LOCAL_FOLDERS

CHILD = """
import os, signal, sys
from torchkeep.archive import Retention, TensorBytes, Writer
from torchkeep.storage.local_folders import LocalFolders

root, left = sys.argv[1], int(sys.argv[2])

class Doomed(LocalFolders):
    def __getattribute__(self, name):
        global left
        if name in {"create", "rename", "remove", "sync_directory", "make_folder", "names", "open", "lock"}:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)

doomed = Doomed()
store = Writer(doomed, root, chunk=4096)
for step in range(4):
    store.commit(step, {"w": TensorBytes.of(bytes([step]) * 10_000), "frozen": TensorBytes.of(bytes(10_000))})
    print(step, flush=True)
    store.prune(Retention(last=1))
print("done", flush=True)
"""


def expected(step):
    return {"w": bytes([step]) * 10_000, "frozen": bytes(10_000)}


@pytest.mark.parametrize("calls", [*range(2, 90, 7), 1000])
def test_what_a_killed_process_acknowledged_is_there(calls, tmp_path):
    """Killed before one of its calls: the last step that it told, or the one in flight, is restored, whole."""
    root = str(tmp_path / "store")
    child = subprocess.run([sys.executable, "-c", CHILD, root, str(calls)], capture_output=True, check=False)
    told = child.stdout.split()
    assert child.returncode == (0 if told[-1:] == [b"done"] else -signal.SIGKILL), child.stderr
    last = max([-1, *(int(step) for step in told if step != b"done")])
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        found = []
        restored = store.restore(lambda manifest: found.append(content(store, manifest)))
        if restored is None:
            assert last == -1
            step = 0
        else:
            step = restored.manifest.step
            assert step in {last, last + 1}
            assert (found[-1], restored.skipped) == (expected(step), ())
        tensors = {name: TensorBytes.of(data) for name, data in expected(step).items()}
        store.commit(step, tensors)
        store.prune(Retention(last=1))
        assert verify(store, store.names()).ok
        assert content(store, store.latest()) == expected(step)
