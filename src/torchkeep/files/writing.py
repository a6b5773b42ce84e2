"""Lay out a file and write it: whole or not at all, every chunk with its digest."""

from __future__ import annotations

from ctypes import memmove
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torchkeep.dtypes import DTYPES
from torchkeep.errors import UnsavableError
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
from torchkeep.formats.safetensors import MAX_HEADER, MAX_NDIM, Entry, compose_header
from torchkeep.storage.buffers import Buffer
from torchkeep.storage.replacing import replacing
from torchkeep.storage.transfer import Chunk, write_chunks
from torchkeep.tensors.copying import copy_out, plain_address
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.sharing import Kept, kept

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from torchkeep.files.collecting import Collected
    from torchkeep.storage.base import Storage

_PAGE: Final = 4096


@dataclass(frozen=True)
class Layout:
    """A file about to be written.

    Attributes:
        header: its header, complete but for the digests.
        digests_at: where in the header the digests' text goes.
        chunks: all chunks, in the order of the file; their tensors are positions in ``tensors``.
        tensors: the entries' tensors, in the order of the header.
    """

    header: bytearray
    digests_at: int
    chunks: Sequence[Chunk]
    tensors: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(map(_nbytes, self.tensors))


def lay_out(collected: Collected, recipe: Any = None) -> Layout:
    """Decide where every byte goes.

    Raises:
        UnsavableError: the header would be longer than readers accept, or a name can't be written.
    """
    shared = kept(collected.tensors, collected.aliases)
    # Their names were chosen apart from all others; they share nothing, and are no rows.
    shared.entries.update(collected.apart)
    shared.hidden.extend(collected.apart)
    names = list(shared.entries)
    tensors = list(shared.entries.values())
    entries, order = _entries(names, tensors)
    document = _document(collected, shared, entries, recipe)
    metadata = {HEADER_KEY: ZERO_DIGITS, "format": "pt"}
    try:
        header = compose_header(entries, {**metadata, DOCUMENT_KEY: encode_document(document)})
    except UnicodeEncodeError as cause:
        raise UnsavableError(f"a name can't be saved: {cause}; rename it") from cause
    if len(header) > MAX_HEADER:
        raise UnsavableError(
            f"names, shapes and plain values would make a header of {len(header)} bytes, and readers accept "
            f"{MAX_HEADER}; save large plain values as tensors, or in several files"
        )
    starts = [len(header) + entry.data_offsets[0] for entry in entries.values()]
    chunks = [
        Chunk(starts[position] + offset, min(CHUNK, _nbytes(tensors[position]) - offset), position, offset)
        for position in order
        for offset in range(0, _nbytes(tensors[position]), CHUNK)
    ]
    return Layout(header, header.index(_MARK) + len(_MARK), chunks, tensors)


_MARK: Final = rb"\"digests\":\""
"""What stands before the digests: JSON within JSON."""


def _entries(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[dict[str, Entry], list[int]]:
    """Return the header's entries and the order of the tensors' bytes.

    First come those of whole pages, so that direct I/O can carry them; then the larger elements first, so that
    each is aligned.
    """
    order = sorted(
        range(len(tensors)),
        key=lambda position: (_nbytes(tensors[position]) % _PAGE != 0, -tensors[position].element_size()),
    )
    starts = [0] * len(tensors)
    reached = 0
    for position in order:
        starts[position] = reached
        reached += _nbytes(tensors[position])
    entries = {}
    for name, tensor, start in zip(names, tensors, starts, strict=True):
        code, shape = DTYPES[dtype_name(tensor.dtype)].code, tuple(tensor.shape)
        if code is None:
            code, shape = "U8", (*shape, tensor.element_size())
        if len(shape) > MAX_NDIM:
            raise UnsavableError(f"{name!r} has {len(shape)} dimensions, and {MAX_NDIM} are allowed; reshape it")
        entries[name] = Entry(code, shape, (start, start + _nbytes(tensor)))
    return entries, order


def _document(collected: Collected, shared: Kept, entries: Mapping[str, Entry], recipe: Any) -> Document:
    count = sum(chunk_count(_nbytes(tensor), CHUNK) for tensor in shared.entries.values())
    ordered = shared.aliases or shared.views or list(collected.order) != list(entries)[: len(collected.order)]
    return Document(
        version=VERSION,
        chunk=CHUNK,
        digests="A" * encoded_length(count),
        root=collected.root,
        tree=as_raw(collected.tree),
        state=as_raw(collected.state),
        order=collected.order if ordered else (),
        aliases=shared.aliases,
        views=shared.views,
        dtypes={
            name: dtype
            for name, tensor in shared.entries.items()
            if DTYPES[dtype := dtype_name(tensor.dtype)].code is None
        },
        strides={
            name: tensor.stride()
            for name, tensor in shared.entries.items()
            if not tensor.is_contiguous() and is_dense(tuple(tensor.shape), tensor.stride())
        },
        hidden=tuple(shared.hidden),
        parameters=collected.parameters,
        gradients=collected.gradients,
        module=collected.module,
        recipe=as_raw(recipe),
    )


def write_layout(storage: Storage, path: str, layout: Layout) -> str:
    """Write the file in place of ``path``, durably, and return its header's digest.

    Raises:
        StorageError: the operating system refused; the old file is as it was.
    """
    pointers = [plain_address(tensor) for tensor in layout.tensors]

    def give(chunk: Chunk, address: int) -> None:
        pointer = pointers[chunk.tensor]
        if pointer is None:
            copy_out(layout.tensors[chunk.tensor], chunk.offset, chunk.nbytes, address)
        else:
            memmove(address, pointer + chunk.offset, chunk.nbytes)

    header = layout.header
    with replacing(storage, path) as file:
        text = encode_digests(write_chunks(file, layout.chunks, give)).encode()
        header[layout.digests_at : layout.digests_at + len(text)] = text
        hex_digest = seal(header)
        buffer = Buffer(len(header))
        buffer.view[:] = header
        file.write(0, buffer, 0, len(header))
    return hex_digest


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
