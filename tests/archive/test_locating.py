"""Which checkpoint a path means: it splits at the last @, unless it exists; each failure says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive_states import state
from torchkeep.archive import Retention, Writer
from torchkeep.archive.locating import locate, whole_store
from torchkeep.errors import (
    DamageError,
    MissingCheckpointError,
    MissingFileError,
    NewerFormatError,
    StoreError,
)
from torchkeep.formats.locations import split
from torchkeep.storage.local_folders import LOCAL_FOLDERS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which relative paths start from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(root, losses, *, rule=("loss", "min")):
    """Make a store with a checkpoint for each loss, by step."""
    with Writer(LOCAL_FOLDERS, str(root), retention=Retention(best=rule)) as writer:
        for step, loss in losses.items():
            writer.commit(step, state(w=bytes([step % 256])), metrics=None if loss is None else {"loss": loss})


def found(path):
    """Return the step that a path leads to; None where it leads to no store."""
    located = locate(path)
    return None if located is None else located.manifest.step


SPLITS = {
    "runs/x@1200": ("runs/x", 1200),
    "runs/x@latest": ("runs/x", "latest"),
    "runs/x@best": ("runs/x", "best"),
    "a@b@7": ("a@b", 7),
    "a@7@b": None,
    "me@host/runs/x": None,
    "me@host/runs/x@007": ("me@host/runs/x", 7),
    '/data/it\'s "odd" \n@3': ('/data/it\'s "odd" \n', 3),
    "runs/x@": None,
    "@5": None,
    "runs/x@-5": None,
    "runs/x@5 ": None,
    "runs/x@\u0665": None,
    "runs/x@Latest": None,
    "model.safetensors": None,
    "x@" + "9" * 5000: None,
}


@pytest.mark.parametrize(("text", "expected"), SPLITS.items(), ids=[ascii(text[:20]) for text in SPLITS])
def test_where_a_path_splits(text, expected):
    """At the last @, and only before digits of ASCII, latest or best."""
    location = split(text)
    assert (None if location is None else (location.store, location.which)) == expected


def test_every_way_to_name_a_checkpoint(folder):
    """A step, the latest, the best, the folder alone; relative, absolute, with a slash, through a link."""
    make("runs", {10: 3.0, 20: 1.0, 30: 2.0})
    assert [found(f"runs@{which}") for which in (10, "latest", "best", 20, "00030")] == [10, 30, 20, 20, 30]
    (folder / "link").symlink_to("runs")
    for path in ("runs", "./runs/", str(folder / "runs"), folder / "runs", "link", folder / "link", b"runs"):
        assert found(path) == 30
    assert found("link@best") == found(f"{folder}/runs/@best") == 20


@pytest.mark.usefixtures("folder")
def test_odd_names_of_folders():
    """Spaces, quotes, further @, characters of any script and bytes that are no text lead where they say."""
    for name in ("my run", 'it\'s "odd"', "a@b", "me@latest ", "模型", "new\nline", os.fsdecode(b"\xff\xfe")):
        make(name, {1: None, 2: None})
        assert (found(f"{name}@1"), found(name)) == (1, 2)


@pytest.mark.usefixtures("folder")
def test_a_path_that_exists_wins():
    """A store, a file or a dangling link of that very name is never split."""
    make("runs", {1: None, 2: None})
    make("runs@1", {7: None})
    assert (found("runs@1"), found("runs@2"), found("runs@1@7")) == (7, 2, 7)
    Path("runs@2").write_bytes(b"")
    assert found("runs@2") is None
    Path("runs@latest").symlink_to("nowhere")
    assert found("runs@latest") is None


def test_a_path_object_is_never_split(folder):
    """It is a path, whatever is in it; that of a store's folder means its latest."""
    make("runs", {1: None})
    assert found(Path("runs@1")) is None
    assert found(Path("runs")) == found(folder / "runs") == 1


@pytest.mark.usefixtures("folder")
def test_the_latest_is_the_last_that_was_committed():
    """After a restore of an earlier step, a lower step may be the latest; of a step, the last commit counts."""
    make("runs", {1: 3.0, 2: 1.0})
    with Writer(LOCAL_FOLDERS, "runs") as writer:
        writer.build_on(writer.manifest(writer.names()[0]))
        writer.commit(1, state(w=b"new"), metrics={"loss": 2.0})
    assert found("runs") == 1
    assert locate("runs@1").manifest.sequence == 3


def broken(root, name):
    """Flip a bit in the first file of that name."""
    path = next(Path(root).glob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("folder")
def test_each_failure_says_what_to_do():
    """No store, no folder, a file, no such step, none yet, no rule, no metric: each in a sentence of its own."""
    make("runs", {1000: None, 1100: None, 5000: None})
    make("plain", {1: None}, rule=None)
    make("empty", {})
    Path("file").write_bytes(b"x")
    Path("folder").mkdir()
    failures = {
        "nowhere@5": (MissingFileError, "there is no store 'nowhere'.*for 'nowhere@5'.*check the path"),
        "file@5": (StoreError, "'file'.*is no store of checkpoints but a file"),
        "folder@5": (StoreError, r"folder' is no store of checkpoints: it has no torchkeep\.json"),
        "runs@1040": (MissingCheckpointError, "runs' has no checkpoint of step 1040; .*1000, 1100, 5000"),
        "runs@" + "9" * 900: (MissingCheckpointError, "has no checkpoint of step 9999"),
        "empty": (MissingCheckpointError, "'empty' has no checkpoint yet"),
        "empty@latest": (MissingCheckpointError, "'empty' has no checkpoint yet"),
        "empty@best": (MissingCheckpointError, "'empty' has no checkpoint yet"),
        "plain@best": (StoreError, "does not say which of its checkpoints is the best"),
        "runs@best": (MissingCheckpointError, "no checkpoint in 'runs' has a value of the metric"),
    }
    for path, (kind, sentence) in failures.items():
        with pytest.raises(kind, match=sentence) as caught:
            locate(path)
        assert type(caught.value) is kind


def test_damage_and_later_formats_are_told(folder):
    """A damaged manifest or marker is damage, told with file and bytes; a later store is said to be one."""
    make("runs", {1: None})
    broken("runs", "checkpoints/*")
    with pytest.raises(DamageError, match=r"checkpoints/.*is damaged in bytes \d+ to \d+"):
        locate("runs@1")
    broken("runs", "torchkeep.json")
    with pytest.raises(DamageError, match=r"torchkeep\.json"):
        locate("runs@1")
    from torchkeep.archive.lines import sealed

    later = sealed(b'{"format":"torchkeep-store","version":2,"id":"x"}')
    (folder / "runs" / "torchkeep.json").write_bytes(later)
    with pytest.raises(NewerFormatError, match="install a newer torchkeep"):
        locate("runs")


@pytest.mark.usefixtures("folder")
def test_a_checkpoint_pruned_between_listing_and_reading_is_looked_for_again(monkeypatch):
    """The latest may be replaced while it is being read: then the one that is the latest now is meant."""
    make("runs", {1: None, 2: None})
    from torchkeep.archive import Archive

    read, gone = Archive.manifest, []

    def vanishing(self, name):
        if not gone:
            gone.append(name)
            Path(self.manifest_path(name.file)).unlink()
        return read(self, name)

    monkeypatch.setattr(Archive, "manifest", vanishing)
    assert found("runs@latest") == 1
    assert [name.step for name in gone] == [2]


@pytest.mark.usefixtures("folder")
def test_commands_on_stores_take_the_folder_alone():
    """What lists or prunes a store refuses one of its checkpoints, and says what to give instead."""
    make("runs", {1: None})
    assert whole_store("runs").names()[0].step == 1
    with pytest.raises(StoreError, match="give 'runs'"):
        whole_store("runs@1")
    with pytest.raises(MissingFileError, match="there is no store 'nowhere': no such folder"):
        whole_store("nowhere")
