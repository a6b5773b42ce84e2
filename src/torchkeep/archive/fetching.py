"""Read pieces out of packs: verified before they are handed out, and told by name where they are damaged."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torchkeep.archive.lines import damaged
from torchkeep.archive.manifest import Piece, missing
from torchkeep.archive.marks import DigestAndMark
from torchkeep.errors import MissingCheckpointError, MissingFileError
from torchkeep.storage.transfer import Chunk, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torchkeep.archive.manifest import Manifest
    from torchkeep.archive.marks import Mark
    from torchkeep.archive.reading import Archive
    from torchkeep.storage.base import ReadableFile

Take: TypeAlias = "Callable[[str, Piece, int], None]"
"""Is given a tensor's name, a piece of it, and the address where its bytes lie until it returns."""

Room: TypeAlias = "Callable[[str, Piece], memoryview | None]"
"""Is given a tensor's name and a piece of it, and gives memory of that size where it may be read to at once."""


class Place(NamedTuple):
    """A piece of a tensor that is to be read."""

    tensor: str
    piece: Piece


Fail: TypeAlias = "Callable[[Place, str, str], None]"
"""Is told of a piece that is damaged, with the path of its pack and what is wrong; it may raise."""


def fail_at_once(place: Place, path: str, problem: str) -> None:
    """Raise the DamageError for a piece."""
    raise damaged(path, place.piece.start, place.piece.stop, problem, place.tensor)


def fetch(
    archive: Archive,
    manifest: Manifest,
    places: Sequence[Place],
    take: Take | None,
    fail: Fail,
    *,
    room: Room | None,
    verified: Callable[[str, int, Mark], None],
) -> None:
    """Read places pack by pack.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        places: what to read.
        take: as for `Archive.read`; None where they are only verified.
        fail: is told of each that is damaged.
        room: as for `Archive.read`.
        verified: is told of each that is not: its pack, its first byte there, and its mark.

    Raises:
        DamageError: a pack is missing.
        MissingCheckpointError: the checkpoint was pruned meanwhile.
        StorageError: a pack can't be read.
    """
    for pack, found in _by_pack(manifest, places):
        with closing(_open(archive, manifest, pack)) as file:
            whole = _those_inside(file, found, fail)
            _read(file, whole, take, fail, room=room, verified=lambda *of: verified(pack, *of))  # noqa: B023 - called in here


def check_sizes(archive: Archive, manifest: Manifest, places: Sequence[Place]) -> None:
    """Raise what `fetch` would where packs are missing or cut short; nothing is read, and no memory is needed."""
    for pack, found in _by_pack(manifest, places):
        with closing(_open(archive, manifest, pack)) as file:
            _those_inside(file, found[-1:], fail_at_once)


def _by_pack(manifest: Manifest, places: Sequence[Place]) -> Iterator[tuple[str, list[Place]]]:
    """Yield the ids of packs, and what lies in each in the order of the file."""
    found: dict[int, list[Place]] = {}
    for place in sorted(places, key=lambda place: place.piece.start):
        found.setdefault(place.piece.pack, []).append(place)
    for number, inside in found.items():
        yield manifest.body.packs[number].id, inside


def _open(archive: Archive, manifest: Manifest, pack: str) -> ReadableFile:
    """Open a pack; tell one that was lost from one that was pruned, with its manifest, while it was read."""
    path = archive.pack_path(pack)
    try:
        return archive.storage.open(path)
    except MissingFileError as cause:
        if manifest.path.rpartition("/")[2] in {name.file for name in archive.names()}:
            raise missing(path) from cause
        raise MissingCheckpointError(
            f"{manifest.path!r} was pruned while it was read; read a later checkpoint"
        ) from cause


def _those_inside(file: ReadableFile, places: Sequence[Place], fail: Fail) -> Sequence[Place]:
    """Return the places that lie within the file; those behind its end are damaged."""
    inside = [place for place in places if place.piece.stop <= file.size]
    for place in places[len(inside) :]:
        fail(place, file.path, f"the file has only {file.size} bytes")
    return inside


def _read(
    file: ReadableFile,
    places: Sequence[Place],
    take: Take | None,
    fail: Fail,
    *,
    room: Room | None,
    verified: Callable[[int, Mark], None],
) -> None:
    bad: set[int] = set()

    def check(chunk: Chunk, found: DigestAndMark) -> None:
        place = places[chunk.tensor]
        if found.hexdigest() != place.piece.digest:
            bad.add(chunk.tensor)
            fail(place, file.path, "the digest of these bytes differs")
        else:
            verified(place.piece.start, found.marking.mark)

    def hand(chunk: Chunk, address: int) -> None:
        if take is not None and chunk.tensor not in bad:
            take(*places[chunk.tensor], address)

    chunks = [
        Chunk(place.piece.start, place.piece.stop - place.piece.start, position, 0)
        for position, place in enumerate(places)
    ]
    place = None if room is None else lambda chunk: room(*places[chunk.tensor])
    read_chunks(file, chunks, None if take is None else hand, check, place, summing=DigestAndMark)
