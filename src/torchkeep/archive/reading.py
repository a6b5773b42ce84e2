"""Read from a store. No lock is needed, and nothing is written."""

from __future__ import annotations

from ctypes import memmove
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from torchkeep.archive.fetching import Fail, Place, Room, Take, check_sizes, fail_at_once, fetch
from torchkeep.archive.looking import Catalogue
from torchkeep.archive.tensors import runs_of
from torchkeep.dtypes import DTYPES
from torchkeep.errors import DamageError, NoMatchError
from torchkeep.formats.digests import CHUNK
from torchkeep.storage.buffers import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torchkeep.archive.manifest import Manifest, Name, Piece, Stored
    from torchkeep.archive.marks import Mark, Marks
    from torchkeep.storage.folders import FolderStorage


_MOST_MARKS: Final = 1_000_000


class Restored(NamedTuple):
    """What a restore ended with.

    Attributes:
        manifest: of the checkpoint that was restored.
        skipped: damage in later checkpoints, the latest first; empty where the one asked for was intact.
    """

    manifest: Manifest
    skipped: tuple[DamageError, ...]


class Archive(Catalogue):
    """A store of checkpoints, for reading.

    Args:
        storage: the file system.
        root: the store's folder.

    Attributes:
        storage: as given.
        root: as given, resolved.
        id: of the store.

    Raises:
        StoreError: the folder is no store.
        NewerFormatError: a later version made it.
        StorageError: it can't be read.
    """

    def __init__(self, storage: FolderStorage, root: str) -> None:
        super().__init__(storage, root)
        self._marks: Marks = {}

    @classmethod
    def open(cls, storage: FolderStorage, root: str) -> Self:
        """Open a store; raises what the class says."""
        return cls(storage, root)

    def restore(self, load: Callable[[Manifest], None], step: int | None = None) -> Restored | None:
        """Load a checkpoint: the latest of ``step``, or else the newest that is intact.

        Only damage falls back to an earlier checkpoint, and only without a step: every other error is raised.

        Args:
            load: reads what it wants of the checkpoint, with `read`. After damage it is called again, and where
                the checkpoint was pruned while it was read.
            step: which one.

        Returns:
            None only where there is no checkpoint at all.

        Raises:
            MissingCheckpointError: there is none of that step.
            DamageError: it is damaged, or all are.
        """

        def pick(names: Sequence[Name]) -> Restored | None:
            if step is None:
                return self._restore_newest(load, names)
            manifest = self.at(step)
            load(manifest)
            return Restored(manifest, ())

        return self._undisturbed(pick)

    def _restore_newest(self, load: Callable[[Manifest], None], names: Sequence[Name]) -> Restored | None:
        skipped: list[DamageError] = []
        for name in reversed(names):
            try:
                manifest = self.manifest(name)
                load(manifest)
            except DamageError as error:
                skipped.append(error)
            else:
                return Restored(manifest, tuple(skipped))
        if skipped:
            skipped[0].add_note(f"None of the {len(names)} checkpoints in {self.root!r} is intact.")
            raise skipped[0]
        return None

    def read(self, manifest: Manifest, names: Iterable[str], take: Take, room: Room | None = None) -> None:
        """Read tensors piece by piece; each is handed out only when its digest is right.

        Args:
            manifest: of the checkpoint.
            names: of the tensors; aliases count as their owners.
            take: called for each piece, from several threads.
            room: asked for large pieces, too; what could be read to there at once is not taken. Bytes that are
                damaged may stand there when the error is raised.

        Raises:
            NoMatchError: the checkpoint has no tensor of that name.
            DamageError: bytes are not what was written, or a pack is missing or cut short.
            StorageError: a pack can't be read.
        """
        self.read_places(manifest, _places(manifest, names), take, fail_at_once, room)

    def tensor(self, manifest: Manifest, name: str) -> bytearray:
        """Read one tensor whole: its bytes in row-major order. Raises what `read` does."""
        stored = _stored(manifest, manifest.aliases.get(name, name))
        itemsize = DTYPES[stored.dtype].itemsize
        if stored.nbytes > CHUNK:  # less is worth no look
            self.check_sizes(manifest, [name])
        buffer = Buffer(stored.nbytes)

        def take(_: str, piece: Piece, address: int) -> None:
            for start, source, nbytes in runs_of(stored.shape, piece.offset, piece.shape, itemsize):
                memmove(buffer.address + start, address + source, nbytes)

        self.read(manifest, [name], take)
        return bytearray(buffer.view[: stored.nbytes])

    def read_places(
        self,
        manifest: Manifest,
        places: Sequence[Place],
        take: Take | None,
        fail: Fail,
        room: Room | None = None,
    ) -> None:
        """Read places pack by pack; ``fail`` is told of each that is damaged, and may raise.

        Without ``take`` they are only verified.
        """
        if sum(map(len, list(self._marks.values()))) > _MOST_MARKS:
            self._marks = {}  # costs nothing but that what was read is written again

        def verified(pack: str, start: int, mark: Mark) -> None:
            self._marks.setdefault(pack, {})[start] = mark

        fetch(self, manifest, places, take, fail, room=room, verified=verified)

    def check_sizes(self, manifest: Manifest, names: Iterable[str]) -> None:
        """Look whether the packs of tensors have the bytes that the manifest promises, before memory is taken.

        Raises:
            NoMatchError: the checkpoint has no tensor of that name.
            DamageError: a pack is missing or cut short.
            StorageError: a pack can't be read.
        """
        check_sizes(self, manifest, _places(manifest, names))


def _places(manifest: Manifest, names: Iterable[str]) -> list[Place]:
    """Return all pieces of tensors; those of an alias are its owner's."""
    owners = dict.fromkeys(manifest.aliases.get(name, name) for name in names)
    return [Place(name, piece) for name in owners for piece in _stored(manifest, name).pieces]


def _stored(manifest: Manifest, name: str) -> Stored:
    found = manifest.tensors.get(name)
    if found is None:
        raise NoMatchError(f"{manifest.path!r} has no tensor named {name!r}; list what it has")
    return found
