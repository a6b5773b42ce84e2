"""A prune removes what the rules don't keep, and never what must stay."""

from __future__ import annotations

from threading import Thread

import pytest

from archive_states import ROOT, content, state, writer
from torchkeep.archive import Archive, Retention, TensorBytes, verify
from torchkeep.errors import DamageError, MissingCheckpointError, StoreError
from torchkeep.storage.memory import MemoryStorage


@pytest.fixture
def disk():
    return MemoryStorage({"/runs": None})


def data_of(disk, path):
    folder, _, name = path.rpartition("/")
    return disk._folders[folder][name].data


def steps(store):
    return [name.step for name in store.names()]


def filled(disk, count, **options):
    """Return a store with checkpoints of steps 0, 1, 2..., whose losses are 3, 2, 1, 2, 3..."""
    store = writer(disk, **options)
    for step in range(count):
        store.commit(step, state(w=bytes([step]) * 100), metrics={"loss": 1 + abs(step - 2)})
    return store


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(last=2), [4, 5]),
        (Retention(last=None), [0, 1, 2, 3, 4, 5]),
        (Retention(last=1, every=2), [0, 2, 4, 5]),
        (Retention(last=1, best=("loss", "min")), [2, 5]),
        (Retention(last=1, best=("loss", "max")), [5]),
        (Retention(last=1, best=("accuracy", "max")), [5]),
    ],
)
def test_the_rules_say_what_stays(disk, retention, left):
    """What any rule keeps stays, whole; the packs of the others go."""
    store = filled(disk, 6)
    report = store.prune(retention)
    assert steps(store) == left
    assert [summary.step for summary in report.removed] == [step for step in range(6) if step not in left]
    assert report.packs == 6 - len(left) == 6 - len(disk.names(f"{ROOT}/packs"))
    assert verify(store, store.names()).ok


@pytest.mark.parametrize(
    "rules", [{"last": 0}, {"last": 2.0}, {"every": True}, {"best": "loss"}, {"best": ("loss", "least")}]
)
def test_rules_that_can_not_be_are_refused(rules):
    """At once, and not when the first checkpoint is lost by them."""
    with pytest.raises(StoreError, match="takes a"):
        Retention(**rules)


def test_of_several_checkpoints_of_a_step_the_latest_counts(disk):
    """Saved again with metrics, one step does not push others out; neither does a new line of history."""
    store = filled(disk, 4)
    for loss in (5, 4, 3):
        store.commit(3, state(w=bytes([3]) * 100), metrics={"loss": loss})
    assert [name[:2] for name in store.names()][-4:] == [(4, 3), (5, 3), (6, 3), (7, 3)]
    store.prune(Retention(last=2))
    assert [name[:2] for name in store.names()] == [(3, 2), (7, 3)]
    store.commit(4, state(w=b"4"))
    store.restore(lambda _: None, 2)
    for step in (3, 4):
        store.commit(step, state(w=b"new"))
    store.prune(Retention(last=1, every=2))
    assert [name[:2] for name in store.names()] == [(3, 2), (10, 4)]


def test_the_first_step_is_a_multiple_of_any_number(disk):
    """Step 0 is kept by every rule of that kind."""
    with filled(disk, 6) as store:
        store.prune(Retention(last=1, every=1000))
        assert steps(store) == [0, 5]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equals_the_latest_is_the_best_and_infinity_counts(disk, mode):
    """And a superseded checkpoint may be the best one."""
    with writer(disk) as store:
        for step, loss in enumerate([1.0, 1.0]):
            store.commit(step, state(w=bytes([step])), metrics={"loss": loss})
        assert store.best("loss", mode).step == 1
        extreme = float("-inf") if mode == "min" else 10**400
        store.commit(2, state(w=b"a"), metrics={"loss": extreme})
        store.commit(2, state(w=b"b"), metrics={"loss": 1.0})
        store.prune(Retention(last=1, best=("loss", mode)))
        assert (store.best("loss", mode).sequence, store.at(2).sequence) == (3, 4)


def test_nan_is_never_the_best(disk):
    """Neither the lowest nor the highest, and text is no number."""
    with writer(disk) as store:
        for step, loss in enumerate([2.0, float("nan"), 1.0, "low", True]):
            store.commit(step, state(w=bytes([step])), metrics={"loss": loss})
        assert (store.best("loss", "min").step, store.best("loss", "max").step) == (2, 0)
        assert store.best("accuracy", "max") is None


def test_the_rule_for_the_best_is_noted_for_who_reads(disk):
    """The best is found without saying by what; the rule is that of the latest, or the writer's own."""
    with writer(disk, retention=Retention(best=("loss", "min"))) as store:
        for step, loss in enumerate([2.0, 1.0, 3.0]):
            store.commit(step, state(w=bytes([step])), metrics={"loss": loss, "accuracy": loss})
        assert store.summaries()[0].best == ("loss", "min")
        assert Archive.open(disk, ROOT).best().step == 1
    with writer(disk, prefix="b", retention=Retention(best=("accuracy", "max"))) as store:
        assert store.best().step == 2
        assert Archive.open(disk, ROOT).best().step == 1
        store.commit(3, state(w=b"x"), metrics={"accuracy": 5.0})
        archive = Archive.open(disk, ROOT)
        assert (archive.best().step, archive.best("accuracy").step, archive.best(mode="min").step) == (3, 3, 1)
        with pytest.raises(StoreError, match=r"is \('accuracy', 'max'\), and says nothing of 'loss'; give 'min'"):
            archive.best("loss")


def test_without_a_rule_nothing_is_the_best(disk):
    """An empty store has no best checkpoint; one whose checkpoints were saved without a rule must be told one."""
    with writer(disk) as store:
        assert store.best() is None
        store.commit(1, state(w=b"x"), metrics={"loss": 1.0})
        with pytest.raises(StoreError, match=r"does not say .* give a metric and 'min' or 'max'"):
            Archive.open(disk, ROOT).best()
        assert store.best("loss", "max").step == 1


def test_the_checkpoint_that_is_built_on_stays(disk):
    """After a restore of an old step nothing removes it until another is committed on it."""
    store = filled(disk, 5)
    store.restore(lambda _: None, 1)
    store.prune(Retention(last=1))
    assert steps(store) == [1, 4]
    store.commit(2, state(w=b"new"))
    store.prune(Retention(last=1))
    assert steps(store) == [2]


def test_the_last_good_one_stays_although_later_ones_are_kept(disk):
    """A new process that has read nothing reads before it prunes, and keeps the newest that is intact."""
    filled(disk, 4).close()
    with writer(disk, prefix="b") as store:
        for step in (2, 3):
            pack = store.at(step).body.packs[0].id
            data_of(disk, store.pack_path(pack))[-1] ^= 1
        store.prune(Retention(last=1))
        assert steps(store) == [1, 3]
        restored = store.restore(lambda manifest: content(store, manifest) and None)
        assert restored.manifest.step == 1
        assert [error.tensor for error in restored.skipped] == ["w"]


def test_a_manifest_that_can_not_be_read_stops_a_prune(disk):
    """What it needs is not known, so nothing is removed; it is named."""
    filled(disk, 4).close()
    store = writer(disk)  # another one, which does not know what it needs
    path = store.manifest_path(store.names()[3].file)
    data_of(disk, path)[-5] ^= 1
    before = disk.image()
    with pytest.raises(DamageError, match=r"nothing was pruned in .*or remove it, and its checkpoint") as caught:
        store.prune(Retention(last=2))
    assert caught.value.file == path
    assert disk.image() == before


def test_what_a_failed_save_left_is_removed(disk):
    """A pack that no manifest names goes with the next prune."""
    store = filled(disk, 2)
    disk._folders[f"{ROOT}/packs"]["orphan.safetensors"] = type(disk._folders[f"{ROOT}"]["lock"])(b"x")
    disk._folders[f"{ROOT}/packs"]["notes.txt"] = type(disk._folders[f"{ROOT}"]["lock"])(b"mine")
    assert store.prune(Retention(last=None)).packs == 1
    assert "notes.txt" in disk.names(f"{ROOT}/packs")


def test_a_prune_waits_for_a_save_in_flight(disk):
    """Started while a commit copies its bytes, it removes nothing that the commit needs."""
    store = filled(disk, 3)
    pruning = Thread(target=store.prune, args=(Retention(last=1),))

    def copy(_start, _nbytes, _address):
        if not pruning.ident:
            pruning.start()

    manifest = store.commit(3, {**state(w=bytes([2]) * 100), "slow": TensorBytes.whole("uint8", (4096,), copy)})
    pruning.join()
    assert steps(store) == [3]
    assert content(store, manifest)["w"] == bytes([2]) * 100


READS = {
    "latest": lambda archive: content(archive, archive.latest()),
    "at": lambda archive: content(archive, archive.at(1)),
    "best": lambda archive: content(archive, archive.best("loss", "min")),
    "listing": lambda archive: [one.name.step for one in archive.listing() if one.error is None],
    "verify": lambda archive: verify(archive, archive.names()).ok,
    "restore": lambda archive: restored_by(archive, None),
    "restore a step": lambda archive: restored_by(archive, 1),
}


def restored_by(archive, step):
    found = []
    archive.restore(lambda manifest: found.append(content(archive, manifest)), step)
    return found[-1]


@pytest.mark.parametrize("read", READS)
def test_who_reads_while_others_prune_gets_its_bytes_or_is_told(disk, read):
    """Before each of its calls all but the latest go: what is read is whole, or was pruned; never damaged."""
    seen = set()
    for at in range(200):
        disk = MemoryStorage({"/runs": None})
        store = filled(disk, 3)
        archive, calls = Archive.open(disk, ROOT), []

        def before(call, path):
            calls.append((call, path))  # noqa: B023 - called in this round only
            if len(calls) == at + 1:  # noqa: B023 - same
                store.commit(3, state(w=b"new"), metrics={"loss": 0})  # noqa: B023 - same
                store.prune(Retention(last=1))  # noqa: B023 - same

        disk.before = before
        try:
            found = READS[read](archive)
        except MissingCheckpointError:
            found = "pruned"
        seen.add(str(found))
        if len(calls) <= at:
            break
    expected = {
        "latest": {"{'w': b'new'}", str({"w": bytes([2]) * 100}), "pruned"},
        "at": {"pruned", str({"w": bytes([1]) * 100})},
        "best": {"{'w': b'new'}", str({"w": bytes([2]) * 100}), "pruned"},
        "restore": {"{'w': b'new'}", str({"w": bytes([2]) * 100})},
        "restore a step": {"pruned", str({"w": bytes([1]) * 100})},
        "verify": {"True"},
        "listing": {"[3]", "[0, 1, 2]"},
    }[read]
    assert seen <= expected
    assert len(seen) > 1 or read == "verify"


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_no_damage(disk):
    """Who reads without the lock is told so, with its manifest read or not."""
    store = filled(disk, 3)
    archive = Archive.open(disk, ROOT)
    manifest, name = archive.at(0), archive.names()[1]
    store.prune(Retention(last=1))
    with pytest.raises(MissingCheckpointError, match="was pruned while it was read"):
        archive.tensor(manifest, "w")
    with pytest.raises(MissingCheckpointError, match="it was pruned"):
        archive.manifest(name)
