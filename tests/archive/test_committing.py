"""A commit comes back as it was, writes only what changed, and refuses what would go unnoticed."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest

import torchkeep as tk
from archive_states import ROOT, content, state, writer
from torchkeep.archive import Archive, Part, Retention, TensorBytes, Writer
from torchkeep.errors import DamageError, MissingCheckpointError, NoMatchError, StoreError
from torchkeep.formats import listing_of
from torchkeep.storage.buffers import Buffer
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.storage.memory import MemoryStorage

LONG = bytes(range(256))


@pytest.fixture
def disk():
    return MemoryStorage({"/runs": None})


def packs(disk):
    return sorted(path for path in disk.image() if path.startswith(f"{ROOT}/packs/"))


def test_everything_comes_back(disk):
    """Tensors of one and of several pieces and of none, aliases, tree, recipe, metrics and versions."""
    with writer(disk) as store:
        tensors = state(small=b"abc", long=LONG, none=b"") | {"half": TensorBytes.of(b"1234", "bfloat16", (2, 1))}
        store.commit(
            3,
            tensors,
            aliases={"tied": "long"},
            tree={"a": [1, None]},
            recipe={"id": "x"},
            metrics={"loss": float("nan"), "best": 0.5},
            versions={"torch": "2.13"},
        )
    archive = Archive.open(disk, ROOT)
    manifest = archive.latest()
    assert content(archive, manifest) == {"small": b"abc", "long": LONG, "none": b"", "half": b"1234"}
    assert archive.tensor(manifest, "tied") == LONG
    assert (manifest.tensors["half"].dtype, manifest.tensors["half"].shape) == ("bfloat16", (2, 1))
    assert (manifest.tree, manifest.recipe, manifest.body.versions) == (
        {"a": [1, None]},
        {"id": "x"},
        {"torch": "2.13"},
    )
    assert str(manifest.metrics) == "{'loss': nan, 'best': 0.5}"
    assert (manifest.summary.tensors, manifest.summary.nbytes, manifest.summary.time) == (4, 263, 1.5)


def test_a_sharded_tensor_is_put_together(disk):
    """Boxes of one tensor from several memories are read as one tensor in row-major order."""
    whole = bytes(range(24))  # 4 x 6
    left = (
        TensorBytes.of(bytes(whole[6 * row + column] for row in range(4) for column in range(2))).parts[0].source
    )
    right = (
        TensorBytes.of(bytes(whole[6 * row + column] for row in range(4) for column in range(2, 6)))
        .parts[0]
        .source
    )
    sharded = TensorBytes("uint8", (4, 6), (Part((0, 0), (4, 2), left), Part((0, 2), (4, 4), right)))
    for chunk in (3, 8, 64):
        disk = MemoryStorage({"/runs": None})
        with writer(disk, chunk=chunk) as store:
            assert store.tensor(store.commit(1, {"w": sharded}), "w") == whole


def test_pieces_can_be_read_to_where_they_belong(disk):
    """A large piece that finds room is read to there and verified; a small one, or without room, is handed out."""
    large = LONG * 36_000  # too large to travel with others
    with writer(disk, chunk=2**24) as store:
        manifest = store.commit(1, state(w=large, v=LONG))
        place, taken = bytearray(len(large)), []
        store.read(
            manifest,
            ["w", "v"],
            lambda name, *_: taken.append(name),
            lambda name, _: memoryview(place) if name == "w" else None,
        )
        assert (taken, bytes(place) == large) == (["v"], True)
        data = next(data for path, data in disk._folders[f"{ROOT}/packs"].items()).data
        data[4096 + 100] ^= 1
        with pytest.raises(DamageError, match="tensor 'w'"):
            store.read(manifest, ["w"], lambda *_: None, lambda *_: memoryview(place))


def test_a_pack_is_a_file_that_torchkeep_and_others_read(tmp_path):
    """On a real disk: the pack's header is sealed, its digests hold, and dtypes without a code keep their name."""
    tensors = {
        "w": TensorBytes.of(bytes(32), "float32", (2, 4)),
        "c": TensorBytes.of(bytes(16), "complex128", (1,)),
    }
    with Writer(LOCAL_FOLDERS, str(tmp_path / "a" / "store")) as store:
        manifest = store.commit(1, tensors)
        path = store.pack_path(manifest.body.packs[0].id)
        assert {row.name: (row.dtype, row.shape) for row in listing_of(path).rows} == {
            "w": ("float32", (2, 4)),
            "c": ("complex128", (1,)),
        }
        assert tk.load(path)["w"].shape == (2, 4)
        assert content(Archive.open(LOCAL_FOLDERS, store.root), manifest) == {"w": bytes(32), "c": bytes(16)}


def test_only_changed_pieces_are_written(disk):
    """A frozen tensor costs no bytes, and of a long one only the piece that changed."""
    with writer(disk) as store:
        store.commit(1, state(frozen=LONG, w=LONG))
        changed = LONG[:70] + b"!" + LONG[71:]
        second = store.commit(2, state(frozen=LONG, w=changed))
        new = second.body.packs[0]
        assert new.size - new.data == 64
        assert content(store, second) == {"frozen": LONG, "w": changed}


def test_bytes_that_lie_together_in_memory_are_compared_where_they_are(disk):
    """An address says as much as a copy: what changed there is found, in long pieces and in short ones."""
    memory = Buffer(10_000)
    memory.view[:] = bytes(range(250)) * 40
    with writer(disk, chunk=4 * 4096) as store:
        tensors = {
            "long": TensorBytes.whole("uint8", (9_000,), memory.view[:9_000]),
            "short": TensorBytes.whole("uint8", (100,), memory.view[9_000:9_100]),
        }
        store.commit(1, tensors)
        assert store.commit(2, tensors).summary.written == 0
        for place, name in ((8_999, "long"), (9_099, "short"), (0, "long")):
            memory.view[place] ^= 1
            before, changed = store.base, store.commit(3, tensors)
            assert {name: store.tensor(changed, name) for name in tensors} == {
                "long": memory.view[:9_000],
                "short": memory.view[9_000:9_100],
            }
            moved = [one for one in tensors if digests(changed, one) != digests(before, one)]
            assert moved == [name]


@pytest.mark.parametrize("read", [False, True], ids=["as written", "as read"])
def test_a_change_anywhere_in_a_piece_of_several_windows_is_found(disk, read):
    """What was written, or what was read and verified, is known to its last byte: one bit is a change."""
    memory = Buffer(3 * 2**20)
    tensors = {
        "seen": TensorBytes.whole("uint8", (2**20 + 5,), memory.view[: 2**20 + 5]),
        "copied": TensorBytes.of(bytes(range(256)) * 6000),
    }
    steps = count()
    with writer(disk, chunk=2**24) as store:
        last = store.commit(next(steps), tensors)
    for place in (0, 4095, 4096, 2**20 - 1, 2**20, 2**20 + 4):
        with writer(disk, chunk=2**24, prefix=f"at{place}-") as store:
            if read:
                assert set(content(store, store.latest())) == set(tensors)
            assert (store.commit(next(steps), tensors).summary.written == 0) is read
            memory.view[place] ^= 1
            changed, before = store.commit(next(steps), tensors), last
            last = store.commit(next(steps), tensors)
            assert digests(changed, "seen") == digests(last, "seen") != digests(before, "seen")
            assert digests(changed, "copied") == digests(before, "copied")
            assert changed.summary.written < 2**20 + 2**13
            assert last.summary.written == 0


def digests(manifest, name):
    return [piece.digest for piece in manifest.tensors[name].pieces]


def test_what_a_commit_returns_is_what_is_read_later(disk):
    """The manifest is not read back when it is written; all of it is as a reader finds it."""
    with writer(disk, retention=Retention(best=("loss", "min"))) as store:
        tensors = state(a=b"abc", long=LONG, none=b"") | {"half": TensorBytes.of(b"1234", "bfloat16", (2, 1))}
        for step in (1, 2):  # the second one keeps pieces of the first
            committed = store.commit(
                step,
                {**tensors, "new": TensorBytes.of(bytes([step]))},
                aliases={"tied": "long"},
                tree={"a": [1, None, "\u00e9"]},
                recipe={"id": "x"},
                metrics={"loss": float("nan"), "best": (0.5, 1)},
                versions={"torch": "2.13"},
            )
            read = Archive.open(disk, ROOT).latest()
            assert (read.path, read.summary) == (committed.path, committed.summary)
            assert msgspec.json.encode(read.body) == msgspec.json.encode(committed.body)
            assert (read.tensors, read.body.packs) == (committed.tensors, committed.body.packs)
            assert (read.tree, read.recipe) == (committed.tree, committed.recipe)


def test_pieces_that_this_process_did_not_verify_are_written_again(disk):
    """After reopening, what lies on the disk is not trusted unread; once restored, it is."""
    with writer(disk) as store:
        store.commit(1, state(w=LONG))
    with writer(disk, prefix="b") as store:
        assert store.commit(2, state(w=LONG)).summary.written > 0
    with writer(disk, prefix="c") as store:
        store.restore(lambda manifest: content(store, manifest) and None)
        assert store.commit(3, state(w=LONG)).summary.written == 0


def test_dead_space_is_bounded_and_a_frozen_minority_is_not_written_again_and_again(disk):
    """A pack that is less than half live is left; what did not change goes to a pack of its own, written once."""
    with writer(disk) as store:
        store.commit(0, state(frozen=LONG[:64], w=LONG))
        written = []
        for step in range(1, 5):
            manifest = store.commit(step, state(frozen=LONG[:64], w=bytes([step]) * 256))
            written.append([pack.size - pack.data for pack in manifest.body.packs])
    assert written == [[256, 64], [256, 64], [256, 64], [256, 64]]
    assert manifest.summary.written == manifest.body.packs[0].size


def test_a_state_committed_already_is_returned(disk):
    """The same state at the same step is no new checkpoint; other values, or metrics for it, are one."""
    with writer(disk) as store:
        first = store.commit(5, state(w=LONG), tree=[1], metrics={"loss": 1.0})
        assert store.commit(5, state(w=LONG), tree=[1]) is first
        assert store.commit(5, state(w=LONG), tree=[1], metrics={"loss": 1.0}) is first
        again = store.commit(5, state(w=LONG), tree=[1], metrics={"loss": 2.0})
        assert (again.sequence, again.summary.written) == (2, 0)
        assert store.commit(5, state(w=LONG[::-1]), tree=[1]).sequence == 3
        assert store.commit(5, state(w=LONG[::-1]), tree=[2]).sequence == 4
        assert store.commit(5, state(v=LONG[::-1]), tree=[2]).sequence == 5


def test_a_restored_state_saved_again_is_the_latest(disk):
    """After a restore of an older step, the same state at that step is a new line; it costs no bytes."""
    with writer(disk) as store:
        for step in (1, 2):
            store.commit(step, state(w=bytes([step])))
        store.restore(lambda manifest: content(store, manifest) and None, 1)
        again = store.commit(1, state(w=bytes([1])))
        assert (again.sequence, again.summary.written) == (3, 0)
        assert store.latest().step == 1


def test_a_step_that_goes_backwards_is_refused_until_an_earlier_one_is_restored(disk):
    """Also by a process that has just opened the store; after the restore a new line of history is the latest."""
    with writer(disk) as store:
        for step in (1, 2, 3):
            store.commit(step, state(w=bytes([step])))
    with writer(disk, prefix="b") as store:
        with pytest.raises(StoreError, match=r"step 2 goes backwards: .* is of step 3; restore one of step 2"):
            store.commit(2, state(w=b"x"))
        restored = store.restore(lambda _: None, 1)
        assert (restored.manifest.step, restored.skipped) == (1, ())
        store.commit(2, state(w=b"x"))
        assert [name[:2] for name in store.names()] == [(1, 1), (2, 2), (3, 3), (4, 2)]
        assert content(store, store.latest()) == content(store, store.at(2)) == {"w": b"x"}


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", 10**18])
def test_a_step_is_a_whole_number(disk, step):
    """Anything else is refused before something is written."""
    with writer(disk) as store, pytest.raises(StoreError, match="whole number"):
        store.commit(step, state(w=b"x"))


def test_what_is_not_there_is_named(disk):
    """A step, a tensor, a store: each error says what there is or what to do."""
    with pytest.raises(StoreError, match=r"no store of checkpoints: it has no torchkeep\.json"):
        Archive.open(disk, "/runs")
    with writer(disk) as store:
        assert store.restore(lambda _: None) is None
        assert store.latest() is None
        manifest = store.commit(7, state(w=b"x"))
        with pytest.raises(MissingCheckpointError, match="no checkpoint of step 8; it has 7"):
            store.restore(lambda _: None, 8)
        with pytest.raises(NoMatchError, match="no tensor named 'v'"):
            store.tensor(manifest, "v")


@pytest.mark.parametrize(
    "strange", [{"/runs/store/notes.txt": b""}, {"/runs/store/packs": None, "/runs/store/packs/x": b""}]
)
def test_a_folder_that_holds_other_things_is_left_alone(strange):
    """No store is made in a folder that is in use, nor over one that has lost its torchkeep.json."""
    image = {"/runs": None, ROOT: None, **strange}
    disk = MemoryStorage(image)
    with pytest.raises(StoreError, match=r"no store of checkpoints|no whole store"):
        writer(disk)
    assert disk.image() == image


def test_a_closed_store_takes_nothing_more(disk):
    """Closing gives the lock back, leaves nothing in staging, and a commit afterwards is refused."""
    store = writer(disk)
    store.commit(1, state(w=b"x"))
    store.close()
    store.close()
    assert not [path for path in disk.image() if path.startswith(f"{ROOT}/staging/")]
    with pytest.raises(StoreError, match="it was closed, or this process was forked"):
        store.commit(2, state(w=b"y"))
    writer(disk, prefix="b").close()
