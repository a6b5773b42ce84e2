"""The explorer finds mistakes: each is planted on purpose, and must be caught."""

from __future__ import annotations

import errno

import pytest
from msgspec import structs

from archive_states import ROOT
from crash_explorer import Explorer, Life, quietly
from torchkeep.archive import Retention, Writer
from torchkeep.archive.publishing import Publisher, Ready
from torchkeep.errors import DamageError, TorchkeepError
from torchkeep.storage.journal import FileSynced, FolderSynced
from torchkeep.storage.memory import MemoryStorage


def saves_and_prunes(life):
    life.open()
    for number in range(4):
        life.save(number, number)
        life.prune(Retention(last=2))


def expect(promise, life, kind=Writer, start=0):
    """Expect the explorer to find that a promise is broken, and for that reason."""
    with pytest.raises((AssertionError, TorchkeepError), match=promise):
        Explorer(kind).explore(life, start)


def publishing(kind):
    """Return a writer that publishes in that way."""
    return type(kind.__name__, (Writer,), {"_publisher": kind})


@pytest.mark.parametrize("what", [FileSynced, FolderSynced])
def test_a_missing_sync_is_found(what, monkeypatch):
    """A sync of files, or of directories, that does nothing."""
    journal_of = MemoryStorage.__init__

    def forgetful(self, *args, **options):
        journal_of(self, *args, **options)
        self.journal = Forgetful(what)

    class Forgetful(list):
        def __init__(self, what):
            super().__init__()
            self.what = what

        def append(self, step):
            if not isinstance(step, self.what):
                super().append(step)

    life = Life()
    saves_and_prunes(life)
    Explorer().explore(life)
    monkeypatch.setattr(MemoryStorage, "__init__", forgetful)
    life = Life()
    saves_and_prunes(life)
    expect(r"torchkeep\.json", life)


@pytest.mark.parametrize("folder", ["packs", "checkpoints"])
def test_a_directory_that_is_not_synced_after_a_rename_is_found(folder):
    """Packs whose names are not durable before the manifest is, or a manifest's when a save returns."""

    @publishing
    class Hasty(Publisher):
        def publish(self, files, into):
            if into != folder:
                super().publish(files, into)
                return
            for file in files:
                self.storage.rename(file.staged, file.final)

    life = Life(Hasty)
    saves_and_prunes(life)
    expect("is missing" if folder == "packs" else "lost: ", life, Hasty)


def test_a_manifest_before_its_pack_is_found():
    """The commit is the manifest's rename; what it names must be there before."""

    @publishing
    class Eager(Publisher):
        waiting = ()

        def publish(self, files, into):
            if into == "packs":
                self.waiting = files
                return
            super().publish(files, into)
            super().publish(self.waiting, "packs")

    life = Life(Eager)
    saves_and_prunes(life)
    expect("is missing", life, Eager)


@pytest.mark.parametrize("how", ["packs first", "no sync between"])
def test_a_prune_in_the_wrong_order_is_found(how):
    """Packs may go only when the manifests that name them are gone for good."""

    @publishing
    class Careless(Publisher):
        def remove(self, manifests, packs):
            if how == "packs first":
                for path in packs:
                    self.storage.remove(path)
                super().remove(manifests, [])
                return
            for path in [*manifests, *packs]:
                self.storage.remove(path)

    life = Life(Careless)
    saves_and_prunes(life)
    expect("damaged: .*is missing", life, Careless)


def test_a_prune_that_forgets_what_the_last_good_checkpoint_needs_is_found():
    """A pack is removed only when no kept checkpoint has a piece in it; it may have reused it."""

    class Forgetful(Writer):
        def _packs_of(self, name):
            return frozenset(list(super()._packs_of(name))[:1])

    life = Life(Forgetful)
    saves_and_prunes(life)
    expect("damaged: .*is missing", life, Forgetful)


def withdrawn(kind):
    """Let a save fail when its manifest has its name, restore what was before, and go on."""
    life = Life(kind)
    life.open()
    life.save(1, 1)
    probe = Life(kind)
    probe.open()
    probe.save(1, 1)
    begun = len(probe.calls)
    probe.save(2, 2)
    life.fail(probe.calls.index(("sync_directory", f"{ROOT}/checkpoints/"), begun) - begun, errno.EIO)
    quietly(life.save, 2, 2)
    assert not life.unused_fault()
    assert life.restore().number == 1
    return life


def test_a_withdrawal_that_is_not_durable_is_found():
    """A failed save whose manifest is gone must not come back after an earlier checkpoint was restored."""

    @publishing
    class Careless(Publisher):
        def _withdraw(self, manifest):
            self.storage.remove(manifest.final)

    expect("lost: .* came back", withdrawn(Careless), Careless)
    Explorer().explore(withdrawn(Writer))


class _TrustingPublisher(Publisher):
    def settle(self):
        self.storage.sync_directory(f"{self.root}/")

    def publish(self, files, into):
        new = [file for file in files if file.staged != file.final]
        if new:
            super().publish(new, into)


class Trusting(Writer):
    """Trusts what a listing shows: syncs nothing when it opens, and takes packs that it finds for durable."""

    _publisher = _TrustingPublisher

    def _write_packs(self, wanted, groups):
        known = {pack.removesuffix(".safetensors") for pack in self.storage.names(f"{self.root}/packs")}
        needed = {pack.id for name in self.names() for pack in self.manifest(name).body.packs}
        filled = super()._write_packs(wanted, groups)
        return [self._found(one, sorted(known - needed)) or one for one in filled]

    def _found(self, one, orphans):
        """Use a pack that is there with the same bytes instead of the one just written."""
        for orphan in orphans:
            path = self.pack_path(orphan)
            image = self.storage.image()
            if image[path] == image[one.ready.staged]:
                self.storage.remove(one.ready.staged)
                packed = one.packed._replace(pack=structs.replace(one.packed.pack, id=orphan))
                return one._replace(ready=Ready(path, path), packed=packed)
        return None


def killed_between_rename_and_sync(kind, folder):
    """Kill a save between the renames into a folder and their sync, and save the same bits again."""
    life = Life(kind)
    life.open()
    life.save(1, 1)
    position = len(life.calls)
    probe = Life(kind)
    probe.open()
    probe.save(1, 1)
    probe.save(2, 2)
    sync = next(
        index
        for index, (call, path) in enumerate(probe.calls)
        if index > position and call == "sync_directory" and path.endswith(f"/{folder}/")
    )
    life.fail(sync - position)
    quietly(life.save, 2, 2)
    assert not life.unused_fault()
    start = len(life.storage.journal)
    life.open()
    life.restore()
    life.save(2, 2)
    return life, start


@pytest.mark.parametrize("folder", ["packs", "checkpoints"])
def test_trust_in_what_was_never_made_durable_is_found(folder):
    """A pack, or a whole checkpoint, that a dead process left visible is used for an acknowledged save."""
    life, start = killed_between_rename_and_sync(Trusting, folder)
    expect("is missing" if folder == "packs" else "lost: ", life, Trusting, start)


@pytest.mark.parametrize("folder", ["packs", "checkpoints"])
def test_the_same_without_the_mistake_is_sound(folder):
    """The scenario that catches the mistakes above passes with the writer as it is."""
    life, start = killed_between_rename_and_sync(Writer, folder)
    Explorer().explore(life, start)


def test_a_reuse_that_is_not_verified_is_found():
    """A second process takes pieces of the last checkpoint, whose bytes it never read, for good."""
    known = {}

    class Blind(Writer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self._marks = dict(known)

        def close(self):
            known.update(self._marks)
            super().close()

    life = Life(Blind)
    life.open()
    life.save(1, 1)
    life.store.close()
    pack = next(path for path in life.storage.image() if path.endswith(".safetensors"))
    folder, _, name = pack.rpartition("/")
    life.storage._folders[folder][name].data[-1] ^= 1
    life.open()
    life.save(2, 1)
    with pytest.raises(DamageError, match="tensor 'long'"):
        life.store.tensor(life.store.latest(), "long")
