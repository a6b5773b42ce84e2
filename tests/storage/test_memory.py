"""The storage in memory does what the local one does, and its journal knows what a power cut can leave."""

from __future__ import annotations

from contextlib import closing
from random import Random

import pytest

from power_cuts import Disk
from torchkeep.errors import StorageError, TorchkeepError
from torchkeep.storage.buffers import Buffer
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.storage.memory import MemoryStorage


def put(storage, path, data, *, sync=False):
    buffer = Buffer(len(data))
    buffer.view[:] = data
    with closing(storage.create(path, None)) as file:
        file.write(0, buffer, 0, len(data))
        if sync:
            file.sync()


def read(storage, path):
    with closing(storage.open(path)) as file:
        return file.size, file.read(0, file.size), file.has_changed()


def fill(storage, path):
    buffer = Buffer(4)
    with closing(storage.open(path)) as file:
        file.fill(1, buffer, 0, 4)
    return bytes(buffer.view)


def rename_file(storage, old, new):
    """Rename what is a file: folders are never renamed."""
    read(storage, old)
    storage.rename(old, new)


ACTIONS = [
    lambda storage, root, name, _: sorted(storage.names(f"{root}/{name}")),
    lambda storage, root, name, _: storage.make_folder(f"{root}/{name}"),
    lambda storage, root, name, other: storage.make_folder(f"{root}/{name}/{other}"),
    lambda storage, root, name, _: storage.remove_folder(f"{root}/{name}"),
    lambda storage, root, name, other: put(storage, f"{root}/{name}", f"{name} of {other}".encode()),
    lambda storage, root, name, other: put(storage, f"{root}/{name}/{other}", b"inner"),
    lambda storage, root, name, _: read(storage, f"{root}/{name}"),
    lambda storage, root, name, _: fill(storage, f"{root}/{name}"),
    lambda storage, root, name, _: storage.remove(f"{root}/{name}"),
    lambda storage, root, name, other: rename_file(storage, f"{root}/{name}", f"{root}/{other}/x"),
    lambda storage, root, name, other: rename_file(storage, f"{root}/{name}", f"{root}/{other}"),
    lambda storage, root, name, _: storage.names(f"{root}/{name}") and storage.sync_directory(f"{root}/{name}/"),
    lambda storage, root, name, _: storage.replaceable_mode(f"{root}/{name}") is None,
]


def outcome(action, storage, *args):
    """Return what a call gives, or the kind of its error."""
    try:
        return action(storage, *args)
    except TorchkeepError as error:
        return type(error)


@pytest.mark.parametrize("seed", range(20))
def test_it_does_what_the_local_one_does(seed, tmp_path):
    """Random calls give the same values or the same kind of error, and leave the same files."""
    rng = Random(seed)  # noqa: S311 - the same calls each time
    memory = MemoryStorage({"/m": None})
    for _ in range(150):
        action, names = rng.choice(ACTIONS), [rng.choice("abc") for _ in range(2)]
        assert outcome(action, memory, "/m", *names) == outcome(action, LOCAL_FOLDERS, str(tmp_path), *names)
    local = {
        f"/m/{path.relative_to(tmp_path)}": None if path.is_dir() else path.read_bytes()
        for path in tmp_path.rglob("*")
    }
    assert {path: data for path, data in memory.image().items() if path != "/m"} == local


def cuts_of(act, image):
    """Return what a power cut after some calls can leave, everything tried."""
    storage = MemoryStorage(image)
    disk = Disk(storage, "/nothing")
    act(storage)
    for step in storage.journal:
        disk.follow(step)
    return {tuple(sorted(found.items())) for found in disk.cuts(Random(0), 10_000)}  # noqa: S311 - the same each time


def test_what_is_synced_is_there_and_nothing_else_is_certain():
    """A file that is written but not synced: not there, empty, torn, or whole."""
    found = cuts_of(lambda storage: put(storage, "/d/x", b"1234"), {"/d": None})
    assert {dict(image).get("/d/x") for image in found} == {None, b"", b"12", b"\0\x0034", b"123", b"1234"}

    def durable(storage):
        put(storage, "/d/x", b"1234", sync=True)
        storage.sync_directory("/d/x")

    assert cuts_of(durable, {"/d": None}) == {(("/d", None), ("/d/x", b"1234"))}


def test_names_are_durable_apart_from_content_and_from_each_other():
    """A rename between folders may leave the file under both names, either, or none; synced bytes stay whole."""

    def rename(storage):
        storage.rename("/a/x", "/b/x")

    found = cuts_of(rename, {"/a": None, "/b": None, "/a/x": b"1"})
    assert {tuple(path for path, data in image if data) for image in found} == {
        ("/a/x",),
        ("/b/x",),
        ("/a/x", "/b/x"),
        (),
    }

    def replace(storage):
        put(storage, "/a/new", b"2", sync=True)
        storage.rename("/a/new", "/a/x")
        storage.sync_directory("/a/")

    assert cuts_of(replace, {"/a": None, "/a/x": b"1"}) == {(("/a", None), ("/a/x", b"2"))}


def test_a_folder_that_is_not_durable_takes_what_is_in_it_along():
    """Its own sync does not make its name in its parent durable."""

    def make(storage):
        storage.make_folder("/a")
        put(storage, "/a/x", b"1", sync=True)
        storage.sync_directory("/a/")

    assert cuts_of(make, {}) == {(), (("/a", None), ("/a/x", b"1"))}


def test_a_sync_that_failed_is_not_made_good_by_another():
    """As on Linux: what was not durable when it failed never is, whatever the next sync says."""
    storage = MemoryStorage({"/d": None})
    disk = Disk(storage, "/nothing")
    buffer = Buffer(1)
    file = storage.create("/d/x", None)
    file.write(0, buffer, 0, 1)

    def fail(call, path):
        raise StorageError(f"{call} {path}")

    storage.before = fail
    with pytest.raises(StorageError, match="sync /d/x"):
        file.sync()
    storage.before = None
    file.sync()
    storage.sync_directory("/d/x")
    for step in storage.journal:
        disk.follow(step)
    assert {image["/d/x"] for image in disk.cuts(Random(0), 100)} == {b"", b"\0"}  # noqa: S311 - the same each time
