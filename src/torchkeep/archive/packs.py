"""Write a pack: a safetensors file of pieces, each an entry, with the digests that torchkeep's own files have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torchkeep.archive.manifest import Pack, Piece
from torchkeep.archive.marks import Mark, Marking
from torchkeep.archive.tensors import Wanted
from torchkeep.dtypes import DTYPES
from torchkeep.errors import UnsavableError
from torchkeep.formats.digests import (
    CHUNK,
    HEADER_KEY,
    ZERO_DIGITS,
    digest,
    encode_digests,
    encoded_length,
    seal,
)
from torchkeep.formats.document import DOCUMENT_KEY, Document, encode_document
from torchkeep.formats.document import VERSION as DOCUMENT_VERSION
from torchkeep.formats.safetensors import MAX_HEADER, MAX_NDIM, Entry, compose_header
from torchkeep.storage.buffers import PAGE, Buffer
from torchkeep.storage.transfer import Chunk, write_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.storage.base import WritableFile

_SHAPE: Final = Wanted._fields.index("start")
"""So many of a piece's fields decide how a pack is laid out."""
_DIGESTS_BEFORE: Final = rb"\"digests\":\""


class Packed(NamedTuple):
    """What was written.

    Attributes:
        pack: the file.
        starts: first byte in the file of each piece, in the order they were given in.
        digests: their digests, 64 hexadecimal digits.
        marks: their marks.
    """

    pack: Pack
    starts: Sequence[int]
    digests: Sequence[str]
    marks: Sequence[Mark]


def pieces_in(packed: Packed, wanted: Sequence[Wanted], pack: int) -> list[Piece]:
    """Return the pieces that were written, for a manifest in which the pack has number ``pack``."""
    return [
        Piece(want.offset, want.shape, pack, start, start + want.nbytes, digest)
        for want, start, digest in zip(wanted, packed.starts, packed.digests, strict=True)
    ]


class Layout(NamedTuple):
    """Where in a pack what will be.

    Attributes:
        header: the file's, but for its digests.
        chunks: of the pieces, in the order of the file; their tensors are positions among the pieces.
        starts: first byte in the file of each piece.
        size: of the file.
    """

    header: bytes
    chunks: Sequence[Chunk]
    starts: Sequence[int]
    size: int


class Layouts:
    """Lays packs out, and remembers the last one: what changes from save to save has mostly the same shape."""

    def __init__(self) -> None:
        self._shapes: list[tuple[Any, ...]] = []
        self._layout: Layout | None = None

    def of(self, pieces: Sequence[Wanted]) -> Layout:
        """Return the layout of a pack; raises what `write_pack` does."""
        shapes = [piece[:_SHAPE] for piece in pieces]  # all but where the bytes are, which would be kept alive
        if self._layout is None or shapes != self._shapes:
            self._layout = _lay_out(pieces)
            self._shapes = shapes
        return self._layout


def write_pack(file: WritableFile, pack: str, pieces: Sequence[Wanted], layouts: Layouts) -> Packed:
    """Write a pack, and sync it.

    Args:
        file: the new file.
        pack: its id.
        pieces: what it is to hold.
        layouts: may know already how that is laid out.

    Raises:
        UnsavableError: names and shapes make a longer header than readers accept.
        StorageError: the operating system refused.
    """
    empty, chunks, starts, size = layouts.of(pieces)
    header = bytearray(empty)
    marking: list[Marking | None] = [None] * len(pieces)

    def give(chunk: Chunk, first: int, room: memoryview, address: int) -> None:
        pieces[chunk.tensor].give(first, room, address)
        begun = marking[chunk.tensor]
        if begun is None:
            marking[chunk.tensor] = Marking(room)
        else:
            begun.update(room)

    found = write_chunks(file, chunks, give)
    digests = [""] * len(pieces)
    for chunk, value in zip(chunks, found, strict=True):
        digests[chunk.tensor] = value.hex()
    text = encode_digests(found).encode()
    at = header.index(_DIGESTS_BEFORE) + len(_DIGESTS_BEFORE)
    header[at : at + len(text)] = text
    seal(header)
    write_all(file, bytes(header))
    file.sync()
    return Packed(
        Pack(pack, size, len(header), digest(header).hex()),
        starts,
        digests,
        [one.mark for one in marking if one is not None],
    )


def write_all(file: WritableFile, content: bytes) -> None:
    """Write bytes at the beginning of a file."""
    buffer = Buffer(len(content))
    buffer.view[:] = content
    file.write(0, buffer, 0, len(content))


def _lay_out(pieces: Sequence[Wanted]) -> Layout:
    """Decide where every byte goes.

    First come those of whole pages, so that direct I/O can carry them; then the larger elements first, so that
    each is aligned.
    """
    sizes = [DTYPES[wanted.dtype].itemsize for wanted in pieces]
    ranks = [(wanted.nbytes % PAGE != 0, -size) for wanted, size in zip(pieces, sizes, strict=True)]
    order = sorted(range(len(pieces)), key=ranks.__getitem__)
    offsets, reached = [0] * len(pieces), 0
    for position in order:
        offsets[position] = reached
        reached += pieces[position].nbytes
    entries: dict[str, Entry] = {}
    dtypes: dict[str, str] = {}
    for wanted, size, start in zip(pieces, sizes, offsets, strict=True):
        name, code, shape = _entry_name(wanted, entries), DTYPES[wanted.dtype].code, wanted.shape
        if code is None:
            code, shape, dtypes[name] = "U8", (*shape, size), wanted.dtype
        if len(shape) > MAX_NDIM:
            raise UnsavableError(
                f"{wanted.tensor!r} has {len(shape)} dimensions, {MAX_NDIM} are allowed; reshape it"
            )
        entries[name] = Entry(code, shape, (start, start + wanted.nbytes))
    room = "A" * encoded_length(len(pieces))
    document = encode_document(Document(DOCUMENT_VERSION, CHUNK, room, dtypes=dtypes))
    header = compose_header(entries, {HEADER_KEY: ZERO_DIGITS, "format": "pt", DOCUMENT_KEY: document})
    if len(header) > MAX_HEADER:
        raise UnsavableError(
            f"names and shapes would make a header of {len(header)} bytes, and readers accept {MAX_HEADER}; "
            "save fewer or larger tensors"
        )
    starts = [len(header) + offset for offset in offsets]
    chunks = [Chunk(starts[position], pieces[position].nbytes, position, 0) for position in order]
    return Layout(bytes(header), chunks, starts, len(header) + reached)


def _entry_name(wanted: Wanted, taken: dict[str, Entry]) -> str:
    """Name a piece in its pack, for people and other readers: the manifest goes by byte ranges."""
    name = wanted.tensor if wanted.whole else f"{wanted.tensor}@{','.join(map(str, wanted.offset))}"
    while name in taken or name in {"", "__metadata__"}:
        name += "'"
    return name
