"""Read checkpoints again and compare every byte with its digest; what is wrong is listed, not raised."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from torchkeep.archive.fetching import Place
from torchkeep.archive.manifest import Name, missing
from torchkeep.errors import DamageError, MissingCheckpointError, MissingFileError
from torchkeep.formats.digests import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.archive.manifest import Manifest, Pack, Piece
    from torchkeep.archive.reading import Archive

_Key: TypeAlias = tuple[str, int, int, str]


class Damage(Struct, frozen=True):
    """A part of a checkpoint that is not what was written.

    Attributes:
        sequence: the checkpoint's number of commit.
        step: its step.
        tensor: the tensor that lies there; empty for a manifest or the header of a pack.
        file: path of the file.
        start: first byte in the file.
        stop: one past the last; 0 where the whole file is missing.
        problem: what is wrong.
    """

    sequence: int
    step: int
    tensor: str
    file: str
    start: int
    stop: int
    problem: str


class VerifyReport(Struct, frozen=True):
    """What was found.

    Attributes:
        root: the store.
        checkpoints: the names of those that were verified, in the order they were committed.
        nbytes: bytes of tensors that were compared, each once.
        damage: by checkpoint, the latest first.
    """

    root: str
    checkpoints: tuple[Name, ...]
    nbytes: int
    damage: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is what was written."""
        return not self.damage


def verify(archive: Archive, names: Sequence[Name]) -> VerifyReport:
    """Verify checkpoints; what several share is read once, and one that is pruned meanwhile is left out.

    Raises:
        StorageError: something can't be read.
        NewerFormatError: a later version wrote it.
    """
    work = _Verifier(archive)
    found: dict[Name, list[Damage]] = {}
    for name in reversed(names):
        with suppress(MissingCheckpointError):
            found[name] = work.checkpoint(name)
    there = archive.names() if any(found.values()) else names  # what was pruned has lost its packs, too
    damage = [one for name, ones in found.items() for one in ones if name in there]
    left = tuple(name for name in names if name in found and name in there)
    return VerifyReport(archive.root, left, work.nbytes, tuple(damage))


class _Verifier:
    def __init__(self, archive: Archive) -> None:
        self.nbytes = 0
        self._archive = archive
        self._pieces: dict[_Key, str | None] = {}
        self._packs: dict[str, DamageError | None] = {}

    def checkpoint(self, name: Name) -> list[Damage]:
        """Verify one checkpoint."""
        try:
            manifest = self._archive.manifest(name)
        except DamageError as error:
            return [_damage(name, error)]
        lost: set[int] = set()
        found: list[Damage] = []
        for number, pack in enumerate(manifest.body.packs):
            if pack.id not in self._packs:
                self._packs[pack.id] = self._pack(pack)
            problem = self._packs[pack.id]
            if problem is not None:
                found.append(_damage(name, problem))
                if not problem.stop:
                    lost.add(number)
        places = [
            Place(tensor, piece)
            for tensor, stored in manifest.tensors.items()
            for piece in stored.pieces
            if piece.pack not in lost
        ]
        self._read(manifest, [place for place in places if _key(manifest, place.piece) not in self._pieces])
        for tensor, piece in places:
            key = _key(manifest, piece)
            wrong = self._pieces[key]
            if wrong is not None:
                path = self._archive.pack_path(key[0])
                found.append(Damage(name.sequence, name.step, tensor, path, piece.start, piece.stop, wrong))
        return found

    def _read(self, manifest: Manifest, places: Sequence[Place]) -> None:
        for place in places:
            self._pieces[_key(manifest, place.piece)] = None
            self.nbytes += place.piece.stop - place.piece.start

        def fail(place: Place, _: str, problem: str) -> None:
            self._pieces[_key(manifest, place.piece)] = problem

        self._archive.read_places(manifest, places, None, fail)

    def _pack(self, pack: Pack) -> DamageError | None:
        """Compare a pack's size and header; the pieces are compared one by one."""
        path = self._archive.pack_path(pack.id)
        try:
            file = self._archive.storage.open(path)
        except MissingFileError:
            return missing(path)
        with closing(file):
            if file.size < pack.data or digest(file.read(0, pack.data)).hex() != pack.header:
                return _whole(path, pack.data, "the digest of its header differs")
            if file.size != pack.size:
                return _whole(path, pack.size, f"it has {file.size} bytes, {pack.size} were written")
        return None


def _whole(path: str, stop: int, problem: str) -> DamageError:
    error = DamageError(problem)
    error.file, error.stop = path, stop
    return error


def _key(manifest: Manifest, piece: Piece) -> _Key:
    return manifest.body.packs[piece.pack].id, piece.start, piece.stop, piece.digest


def _damage(name: Name, error: DamageError) -> Damage:
    problem = error.problem or str(error)
    return Damage(name.sequence, name.step, error.tensor, error.file, error.start, error.stop, problem)
