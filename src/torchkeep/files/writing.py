"""Lay out a file and write it: whole or not at all, every chunk with its digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from torchkeep.dtypes import DTYPES
from torchkeep.errors import StorageError, UnsavableError
from torchkeep.formats.consistency import is_dense
from torchkeep.formats.digests import (
    CHUNK,
    HEADER_KEY,
    ZERO_DIGITS,
    chunk_count,
    encode_digests,
    encoded_length,
    seal,
)
from torchkeep.formats.document import DOCUMENT_KEY, VERSION, Document, as_raw, encode_document
from torchkeep.formats.locations import hides_checkpoint
from torchkeep.formats.safetensors import MAX_HEADER, MAX_NDIM, Entry, compose_header
from torchkeep.storage.buffers import Buffer, move
from torchkeep.storage.replacing import replacing
from torchkeep.storage.transfer import Chunk, write_chunks
from torchkeep.tensors.copying import copy_out, plain_address
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.sharing import Kept, kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torchkeep.files.collecting import Collected
    from torchkeep.storage.base import Storage

_PAGE: Final = 4096


class Origin(Protocol):
    """Where the bytes of a file come from when not from memory."""

    def give(self, chunk: Chunk, first: int, room: memoryview, address: int) -> None:
        """Copy a part of a chunk to memory that begins at an address; see `write_chunks`."""
        ...

    def finish(self) -> None:
        """Raise when what was given is not what it should be; until then the old file stands."""
        ...


@dataclass(frozen=True)
class Layout:
    """A file about to be written.

    Attributes:
        header: its header, complete but for the digests.
        digests_at: where in the header the digests' text goes.
        chunks: all chunks, in the order of the file; their tensors are positions in ``tensors``.
        tensors: the entries' tensors, in the order of the header.
        nbytes: size of the file.
    """

    header: bytearray
    digests_at: int
    chunks: Sequence[Chunk]
    tensors: Sequence[Tensor]
    nbytes: int


def lay_out(collected: Collected, recipe: Any = None) -> Layout:
    """Decide where every byte goes.

    Raises:
        UnsavableError: the header would be longer than readers accept.
    """
    shared = kept(collected.tensors, collected.aliases)
    # Their names were chosen apart from all others; they share nothing, and are no rows.
    shared.entries.update(collected.apart)
    shared.hidden.extend(collected.apart)
    pieces = [_piece(name, tensor) for name, tensor in shared.entries.items()]
    entries, order = _entries(pieces)
    document = _document(collected, shared, pieces, recipe)
    metadata = {HEADER_KEY: ZERO_DIGITS, "format": "pt"}
    header = compose_header(entries, {**metadata, DOCUMENT_KEY: encode_document(document)})
    if len(header) > MAX_HEADER:
        raise UnsavableError(
            f"names, shapes and plain values would make a header of {len(header)} bytes, and readers accept "
            f"{MAX_HEADER}; save large plain values as tensors, or in several files"
        )
    start = len(header)
    chunks = [
        Chunk(start + begin + offset, min(CHUNK, pieces[position].nbytes - offset), position, offset)
        for position, begin in order
        for offset in range(0, pieces[position].nbytes, CHUNK)
    ]
    return Layout(
        header,
        header.index(_MARK) + len(_MARK),
        chunks,
        [piece.tensor for piece in pieces],
        start + sum(piece.nbytes for piece in pieces),
    )


_MARK: Final = rb"\"digests\":\""
"""What stands before the digests: JSON within JSON."""


class _Piece(NamedTuple):
    """An entry to be."""

    name: str
    tensor: Tensor
    dtype: str
    itemsize: int
    nbytes: int


def _piece(name: str, tensor: Tensor) -> _Piece:
    return _Piece(name, tensor, dtype_name(tensor.dtype), tensor.element_size(), tensor.nbytes)


def _entries(pieces: Sequence[_Piece]) -> tuple[dict[str, Entry], list[tuple[int, int]]]:
    """Return the header's entries, and the pieces' positions in the order of their bytes, with where each begins.

    First come those of whole pages, so that direct I/O can carry them; then the larger elements first, so that
    each is aligned.
    """
    ranks = [(piece.nbytes % _PAGE != 0, -piece.itemsize) for piece in pieces]
    order = sorted(range(len(pieces)), key=ranks.__getitem__)
    starts = [0] * len(pieces)
    reached = 0
    for position in order:
        starts[position] = reached
        reached += pieces[position].nbytes
    entries = {}
    for piece, start in zip(pieces, starts, strict=True):
        code, shape = DTYPES[piece.dtype].code, tuple(piece.tensor.shape)
        if code is None:
            code, shape = "U8", (*shape, piece.itemsize)
        if len(shape) > MAX_NDIM:
            raise UnsavableError(f"{piece.name!r} has {len(shape)} dimensions, {MAX_NDIM} are allowed; reshape it")
        entries[piece.name] = Entry(code, shape, (start, start + piece.nbytes))
    return entries, [(position, starts[position]) for position in order]


def _document(collected: Collected, shared: Kept, pieces: Sequence[_Piece], recipe: Any) -> Document:
    names = tuple(piece.name for piece in pieces)
    in_order = not shared.aliases and not shared.views and collected.order == names[: len(collected.order)]
    strided = [piece for piece in pieces if not piece.tensor.is_contiguous()]
    return Document(
        version=VERSION,
        chunk=CHUNK,
        digests="A" * encoded_length(sum(chunk_count(piece.nbytes, CHUNK) for piece in pieces)),
        root=collected.root,
        tree=as_raw(collected.tree),
        state=as_raw(collected.state),
        order=() if in_order else collected.order,
        aliases=shared.aliases,
        views=shared.views,
        dtypes={piece.name: piece.dtype for piece in pieces if DTYPES[piece.dtype].code is None},
        strides={
            piece.name: piece.tensor.stride()
            for piece in strided
            if is_dense(tuple(piece.tensor.shape), piece.tensor.stride())
        },
        hidden=tuple(shared.hidden),
        parameters=collected.parameters,
        gradients=collected.gradients,
        module=collected.module,
        recipe=as_raw(recipe),
    )


def write_layout(storage: Storage, path: str, layout: Layout, origin: Origin | None = None) -> str:
    """Write the file in place of ``path``, durably, and return its header's digest.

    Args:
        storage: where it goes.
        path: the file.
        layout: where every byte goes.
        origin: where the bytes come from; None for the layout's own tensors.

    Raises:
        StorageError: the operating system refused; the old file is as it was. Or the path is that of a checkpoint.
    """
    if hides_checkpoint(path):
        raise StorageError(f"can't write {path!r}: that means a checkpoint in a store; choose another path")
    pointers = [plain_address(tensor) for tensor in layout.tensors] if origin is None else []

    def give(chunk: Chunk, first: int, room: memoryview, address: int) -> None:
        pointer = pointers[chunk.tensor]
        if pointer is None:
            copy_out(layout.tensors[chunk.tensor], chunk.offset + first, len(room), address)
        else:
            move(address, pointer + chunk.offset + first, len(room))

    header = layout.header
    with replacing(storage, path) as file:
        if origin is None:
            digests = write_chunks(file, layout.chunks, give)
        else:
            digests = write_chunks(file, layout.chunks, origin.give, whole=True)
            origin.finish()
        text = encode_digests(digests).encode()
        header[layout.digests_at : layout.digests_at + len(text)] = text
        hex_digest = seal(header)
        buffer = Buffer(len(header))
        buffer.view[:] = header
        file.write(0, buffer, 0, len(header))
    return hex_digest
