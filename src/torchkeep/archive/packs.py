"""Write a pack: a safetensors file of pieces, each an entry, with the digests that torchkeep's own files have."""

from __future__ import annotations

from ctypes import string_at
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from torchkeep.archive.manifest import Pack, Piece
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

    from torchkeep.archive.tensors import Wanted
    from torchkeep.storage.base import WritableFile

MARK_BYTES: Final = 4096
"""How much of a piece its mark covers."""
_DIGESTS_BEFORE: Final = rb"\"digests\":\""


class Packed(NamedTuple):
    """What was written.

    Attributes:
        pack: the file.
        starts: first byte in the file of each piece, in the order they were given in.
        digests: their digests, 64 hexadecimal digits.
        marks: their marks; see `mark_of`.
    """

    pack: Pack
    starts: Sequence[int]
    digests: Sequence[str]
    marks: Sequence[int]


def piece_in(packed: Packed, position: int, wanted: Wanted, pack: int) -> Piece:
    """Return the piece that was written at ``position``, for a manifest in which the pack has number ``pack``."""
    start = packed.starts[position]
    return Piece(wanted.offset, wanted.shape, pack, start, start + wanted.nbytes, packed.digests[position])


def write_pack(file: WritableFile, pack: str, pieces: Sequence[Wanted]) -> Packed:
    """Write a pack, and sync it.

    Args:
        file: the new file.
        pack: its id.
        pieces: what it is to hold.

    Raises:
        UnsavableError: names and shapes make a longer header than readers accept.
        StorageError: the operating system refused.
    """
    header, offsets, order = _lay_out(pieces)
    chunks = [Chunk(len(header) + offsets[position], pieces[position].nbytes, position, 0) for position in order]
    marks = [0] * len(pieces)

    def give(chunk: Chunk, first: int, nbytes: int, address: int) -> None:
        pieces[chunk.tensor].give(first, nbytes, address)
        if not first:
            marks[chunk.tensor] = mark_of(beginning_at(address, nbytes))

    found = write_chunks(file, chunks, give)
    digests = [""] * len(pieces)
    for position, value in zip(order, found, strict=True):
        digests[position] = value.hex()
    text = encode_digests(found).encode()
    at = header.index(_DIGESTS_BEFORE) + len(_DIGESTS_BEFORE)
    header[at : at + len(text)] = text
    seal(header)
    write_all(file, bytes(header))
    file.sync()
    size = len(header) + sum(wanted.nbytes for wanted in pieces)
    starts = [len(header) + offset for offset in offsets]
    return Packed(Pack(pack, size, len(header), digest(header).hex()), starts, digests, marks)


class Marked:
    """The running digest of a piece, and its mark; see `torchkeep.formats.digests.Running`.

    Attributes:
        mark: see `mark_of`.
        update, hexdigest: those of the digest.
    """

    __slots__ = ("hexdigest", "mark", "update")

    def __init__(self, data: memoryview) -> None:
        running = blake3(data)
        self.mark = mark_of(data)
        self.update, self.hexdigest = running.update, running.hexdigest


def mark_of(piece: bytes | memoryview) -> int:
    """Return the mark of a piece: a hash of its first bytes, which tells most changes without reading all.

    Only for this process: Python's own, which takes a fraction of the time of a digest, as long as it lives. That
    two are equal says nothing yet.
    """
    return hash(bytes(piece[:MARK_BYTES]))


def beginning_at(address: int, nbytes: int) -> bytes:
    """Return a copy of those bytes of a piece of ``nbytes`` bytes at an address that its mark covers."""
    return string_at(address, min(nbytes, MARK_BYTES))


def write_all(file: WritableFile, content: bytes) -> None:
    """Write bytes at the beginning of a file."""
    buffer = Buffer(len(content))
    buffer.view[:] = content
    file.write(0, buffer, 0, len(content))


def _lay_out(pieces: Sequence[Wanted]) -> tuple[bytearray, list[int], list[int]]:
    """Return the header but for its digests, where each piece begins in the data, and the order of their bytes.

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
    return header, offsets, order


def _entry_name(wanted: Wanted, taken: dict[str, Entry]) -> str:
    """Name a piece in its pack, for people and other readers: the manifest goes by byte ranges."""
    name = wanted.tensor if wanted.whole else f"{wanted.tensor}@{','.join(map(str, wanted.offset))}"
    while name in taken or name in {"", "__metadata__"}:
        name += "'"
    return name
