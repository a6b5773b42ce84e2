"""Look into a store and read from it. No lock is needed, and nothing is written."""

from __future__ import annotations

from contextlib import closing
from ctypes import memmove
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from torchkeep.archive.fetching import Fail, Place, Room, Take, check_sizes, fail_at_once, fetch
from torchkeep.archive.lines import all_of, first_line
from torchkeep.archive.manifest import (
    Manifest,
    Name,
    Piece,
    Stored,
    Summary,
    decode_manifest,
    decode_summary,
    name_of,
)
from torchkeep.archive.marker import read_marker
from torchkeep.archive.packs import mark_of
from torchkeep.archive.retaining import Best, best_of
from torchkeep.archive.tensors import runs_of
from torchkeep.dtypes import DTYPES
from torchkeep.errors import (
    DamageError,
    FormatError,
    MissingCheckpointError,
    MissingFileError,
    NoMatchError,
    StoreError,
)
from torchkeep.formats.digests import CHUNK
from torchkeep.storage.buffers import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torchkeep.storage.folders import FolderStorage


@dataclass(frozen=True)
class Listed:
    """A checkpoint as a listing shows it.

    Attributes:
        name: what its file's name says.
        summary: its first line; None where that can't be read.
        error: why not.
    """

    name: Name
    summary: Summary | None
    error: FormatError | None = None


class Restored(NamedTuple):
    """What a restore ended with.

    Attributes:
        manifest: of the checkpoint that was restored.
        skipped: damage in later checkpoints, the latest first; empty where the one asked for was intact.
    """

    manifest: Manifest
    skipped: tuple[DamageError, ...]


class Archive:
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
        self.storage = storage
        self.root = storage.resolve(root)
        self.id = read_marker(storage, self.root)
        self._marks: dict[tuple[str, int], bytes] = {}

    @classmethod
    def open(cls, storage: FolderStorage, root: str) -> Self:
        """Open a store; raises what the class says."""
        return cls(storage, root)

    def pack_path(self, pack: str) -> str:
        """Return the path of a pack's file."""
        return f"{self.root}/packs/{pack}.safetensors"

    def manifest_path(self, file: str) -> str:
        """Return the path of a manifest's file."""
        return f"{self.root}/checkpoints/{file}"

    # Looking

    def names(self) -> list[Name]:
        """Return the names of all checkpoints, in the order they were committed; nothing of them is read."""
        return sorted(filter(None, map(name_of, self.storage.names(f"{self.root}/checkpoints"))))

    def listing(self) -> list[Listed]:
        """Return all checkpoints in the order they were committed, reading only their first lines.

        One that can't be read is listed with the reason; one that is pruned meanwhile is left out.
        """
        found = []
        for name in self.names():
            path = self.manifest_path(name.file)
            try:
                with closing(self.storage.open(path)) as file:
                    found.append(Listed(name, decode_summary(path, first_line(file))))
            except MissingFileError:
                continue
            except FormatError as error:
                found.append(Listed(name, None, error))
        return found

    def summaries(self) -> list[Summary]:
        """Return the summaries of all checkpoints in the order they were committed.

        Raises:
            DamageError: one can't be read.
        """
        listing = self.listing()
        for one in listing:
            if one.error is not None:
                raise one.error
        return [one.summary for one in listing if one.summary is not None]

    def latest(self) -> Manifest | None:
        """Return the checkpoint with the highest sequence; None where there is none."""
        names = self.names()
        return self.manifest(names[-1]) if names else None

    def best(self, metric: str | None = None, mode: Literal["min", "max"] | None = None) -> Manifest | None:
        """Return the best checkpoint by a metric; None where none has it.

        Args:
            metric: its name; left out, that of the rule which the latest checkpoint was written under.
            mode: whether the lowest or the highest value is the best; left out, as in that rule.

        Raises:
            StoreError: something was left out, and there is no such rule, or it is for another metric.
        """
        readable = [one.summary for one in self.listing() if one.summary is not None]
        if not readable:
            return None
        found = best_of(readable, *self._rule(metric, mode, readable[-1].best))
        return None if found is None else self.manifest(self._named(lambda name: name.sequence == found.sequence))

    def _rule(self, metric: str | None, mode: Literal["min", "max"] | None, recorded: Best | None) -> Best:
        """Fill in what was left out."""
        if metric is not None and mode is not None:
            return metric, mode
        if recorded is None:
            raise StoreError(
                f"{self.root!r} does not say which of its checkpoints is the best: they were saved without a rule "
                "for it; give a metric and 'min' or 'max', or save with Retention(best=(metric, mode))"
            )
        if metric not in {None, recorded[0]}:
            raise StoreError(
                f"the rule in {self.root!r} for the best checkpoint is {recorded!r}, and says nothing of "
                f"{metric!r}; give 'min' or 'max' as well"
            )
        return recorded[0], mode or recorded[1]

    def at(self, step: int) -> Manifest:
        """Return the latest checkpoint of a step.

        Raises:
            MissingCheckpointError: there is none; the nearest steps are named.
        """
        steps = sorted({name.step for name in self.names()}, key=lambda found: (abs(found - step), found))
        if step not in steps:
            nearest = ", ".join(map(str, sorted(steps[:5]))) or "none"
            raise MissingCheckpointError(f"{self.root!r} has no checkpoint of step {step}; it has {nearest}")
        return self.manifest(self._named(lambda name: name.step == step))

    def _named(self, is_it: Callable[[Name], bool]) -> Name:
        return [name for name in self.names() if is_it(name)][-1]

    def manifest(self, name: Name) -> Manifest:
        """Read a whole manifest.

        Raises:
            DamageError: it is not what was written.
            NewerFormatError: a later version wrote it.
            MissingCheckpointError: it is not there any more.
        """
        path = self.manifest_path(name.file)
        try:
            with closing(self.storage.open(path)) as file:
                content = all_of(file)
        except MissingFileError as cause:
            raise MissingCheckpointError(f"{path!r} is not there any more: it was pruned") from cause
        return decode_manifest(path, content)

    # Reading

    def restore(self, load: Callable[[Manifest], None], step: int | None = None) -> Restored | None:
        """Load a checkpoint: the latest of ``step``, or else the newest that is intact.

        Only damage falls back to an earlier checkpoint, and only without a step: every other error is raised.

        Args:
            load: reads what it wants of the checkpoint, with `read`; after damage it is called again.
            step: which one.

        Returns:
            None only where there is no checkpoint at all.

        Raises:
            MissingCheckpointError: there is none of that step.
            DamageError: it is damaged, or all are.
        """
        if step is not None:
            manifest = self.at(step)
            load(manifest)
            return Restored(manifest, ())
        names = self.names()
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
        take: Take,
        fail: Fail,
        room: Room | None = None,
    ) -> None:
        """Read places pack by pack; ``fail`` is told of each that is damaged, and may raise."""

        def verified(pack: str, start: int, view: memoryview) -> None:
            self._marks[pack, start] = mark_of(view)

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
