"""Read any part of any tensor in files, in little memory: elements in row-major order, verified.

Of a tensor whose elements lie otherwise in its file (a transposed one of torch.save, say) some rows are read at a
time; where that would be too many small pieces, the memory that it lies in is read whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final
from zlib import crc32

import torch

from torchkeep.archive.locating import locate
from torchkeep.dtypes import DTYPES
from torchkeep.formats.consistency import is_row_major
from torchkeep.formats.contents import Contents
from torchkeep.formats.digests import CHUNK, digest
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.opening import differing
from torchkeep.formats.pickles import pickled_of
from torchkeep.formats.pickles.checksums import joined_crc
from torchkeep.formats.safetensors import header_of
from torchkeep.formats.sharded import Sharded, located
from torchkeep.storage.buffers import PAGE, Buffer
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.reading import changed, read_tensors
from torchkeep.tensors.strided import Held, Rows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from torchkeep.archive.described import Described as DescribedState
    from torchkeep.formats.pickles.objects import Extent, TensorRef
    from torchkeep.formats.sharded import Described
    from torchkeep.rows import Listing
    from torchkeep.storage.base import ReadableFile, Storage

_PIECE: Final = 4 * 1024 * 1024
"""Read at a time where no digest asks for more."""


class Elements(ABC):
    """The elements of the tensors in one or several files.

    Attributes:
        listing: the rows.
        described: what the file holds, or the files under an index, or the checkpoint.
    """

    listing: Listing
    described: Described | Sharded | DescribedState

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return bytes of a tensor's elements in row-major order, as uint8; they stay only until the next read.

        Raises:
            DamageError: they are not what was written.
            StorageError: they can't be read.
        """

    def same_as(self, name: str, other: Elements, theirs: str) -> bool | None:
        """Tell without reading whether a tensor has the bits of another source's of the same shape and dtype.

        None where that can't be told.
        """
        del name, other, theirs
        return None

    @abstractmethod
    def finish(self) -> None:
        """Verify what could not be verified while it was read: nothing that was read may be relied on before.

        Raises:
            DamageError: what was read is not what was written.
            FormatError: a file was changed while it was read.
            StorageError: it can't be read.
        """


class Scratch:
    """Memory for one piece of a file at a time, shared by all files of a source."""

    def __init__(self) -> None:
        self._buffer = Buffer(CHUNK + PAGE)
        self._bytes = torch.frombuffer(self._buffer.view, dtype=torch.uint8)
        self._held: tuple[str, int, int] | None = None

    def fill(self, file: ReadableFile, start: int, nbytes: int, check: Callable[[memoryview], None]) -> Tensor:
        """Return a piece of a file, read and checked unless it is the one that is held."""
        begin = start % PAGE
        key = file.path, start, nbytes
        if key != self._held:
            self._held = None
            file.fill(start, self._buffer, begin, begin + nbytes)
            check(self._buffer.view[begin : begin + nbytes])
            self._held = key
        return self._bytes[begin : begin + nbytes]

    def crc(self, file: ReadableFile, start: int, nbytes: int) -> int:
        """Read a piece of a file and return its CRC-32."""
        self._held = None
        file.fill(start, self._buffer, start % PAGE, start % PAGE + nbytes)
        return crc32(self._buffer.view[start % PAGE : start % PAGE + nbytes])


class _ContentsElements(Elements):
    """An open safetensors file."""

    def __init__(self, file: ReadableFile, scratch: Scratch) -> None:
        self._file, self._scratch = file, scratch
        self.described = self._contents = Contents(header_of(file))
        self._held = Held()
        document = self._contents.document
        self._size = _PIECE if document is None else document.chunk
        self.listing = self._contents.listing

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return bytes of a tensor's elements."""
        owner = self._contents.owner(name)
        view = self._contents.view(owner)
        if view is None:
            return self._bytes(owner, start, stop)
        if is_row_major(view.shape, view.stride) and self._contents.stored(view.base).strides is None:
            first = view.offset * DTYPES[view.dtype].itemsize
            return self._bytes(view.base, first + start, first + stop)
        return self._held.read(owner, lambda: self._load(owner), start, stop)

    def _load(self, owner: str) -> Tensor:
        return read_tensors(self._file, self._contents, [owner])[owner]

    def _bytes(self, entry: str, start: int, stop: int) -> Tensor:
        """Return bytes of an entry, of which whole chunks are read, since those have digests."""
        size = self._size
        parts: list[Tensor] = []
        for index in range(start // size, -(-stop // size)):
            chunk = self._chunk(entry, index)
            part = chunk[max(start - index * size, 0) : stop - index * size]
            parts.append(part if stop <= (index + 1) * size and not parts else part.clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _chunk(self, entry: str, index: int) -> Tensor:
        begin, end = self._contents.header.span(entry)
        start = begin + index * self._size
        nbytes = min(self._size, end - start)

        def check(view: memoryview) -> None:
            digests = self._contents.digests
            if digests is not None and digest(view) != digests.of(entry, index):
                raise differing(self._file.path, start, start + nbytes, entry)

        return self._scratch.fill(self._file, start, nbytes, check)

    def finish(self) -> None:
        """See that the file has not changed; digests were compared on the way."""
        if self._file.has_changed():
            raise changed(self._file.path)


class _PickledElements(Elements):
    """An open file of torch.save: it has one checksum for each storage, compared at the end."""

    def __init__(self, file: ReadableFile, scratch: Scratch) -> None:
        self._file, self._scratch = file, scratch
        self.described = self._pickled = pickled_of(file)
        self._rows = Rows(file)
        self._held = Held()
        # Of each storage, checksum and length of the pieces read so far, by where they begin.
        self._pieces: dict[str, dict[int, tuple[int, int]]] = {}
        self._users: dict[str, str] = {}
        self.listing = self._pickled.listing

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return bytes of a tensor's elements."""
        described = self._pickled.tensors[name]
        storage = described.storage
        assert storage is not None  # one on the meta device has no elements to ask for
        plain = not (described.conj or described.neg) and self._pickled.byte_order == "little"
        if not plain or not is_row_major(described.shape, described.stride):
            rows = self._rows_of(described, (start, stop)) if plain else None
            if rows is None:
                return self._held.read(name, lambda: self._load(name), start, stop)
            self._users.setdefault(storage.key, name)
            self._pieces.setdefault(storage.key, {})
            return rows
        self._users.setdefault(storage.key, name)
        parts = []
        for at in range(start, stop, _PIECE):
            length = min(_PIECE, stop - at)
            part = self._piece(storage.key, described.start + at, length)
            parts.append(part if length == stop - start else part.clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows_of(self, described: TensorRef, span: tuple[int, int]) -> Tensor | None:
        if 0 in described.stride:  # expanded
            return None
        assert described.storage is not None
        begin = self._pickled.extents[described.storage.key].start + described.start
        itemsize = DTYPES[described.dtype].itemsize
        return self._rows.read(begin, described.shape, described.stride, itemsize, span)

    def _load(self, name: str) -> Tensor:
        return PickledReader(self._file, self._pickled).tensors([name])[name]

    def _piece(self, key: str, inside: int, length: int) -> Tensor:
        extent = self._pickled.extents[key]
        seen = self._pieces.setdefault(key, {})

        def check(view: memoryview) -> None:
            if extent.crc is not None and seen.get(inside, (0, 0))[1] < length:
                seen[inside] = crc32(view), length

        return self._scratch.fill(self._file, extent.start + inside, length, check)

    def finish(self) -> None:
        """Compare checksums of all storages that were read; what was not read of them is read for that."""
        for key, seen in self._pieces.items():
            extent = self._pickled.extents[key]
            if extent.crc is not None and self._crc(extent, seen) != extent.crc:
                stop = extent.start + extent.nbytes
                raise differing(self._file.path, extent.start, stop, self._users[key], "checksum")
        if self._file.has_changed():
            raise changed(self._file.path)

    def _crc(self, extent: Extent, seen: Mapping[int, tuple[int, int]]) -> int:
        crc = reached = 0
        while reached < extent.nbytes:
            if reached in seen:
                following, length = seen[reached]
            else:
                length = min(_PIECE, extent.nbytes - reached)
                following = self._scratch.crc(self._file, extent.start + reached, length)
            crc = joined_crc(crc, following, length)
            reached += length
        return crc


class _ShardedElements(Elements):
    """The open files under an index."""

    def __init__(self, sharded: Sharded, parts: Mapping[str, Elements]) -> None:
        self.listing, self.described = sharded.listing, sharded
        self._sharded = sharded
        self._where, self._parts = sharded.where, parts
        for path, part in parts.items():
            if any(sharded.where.get(name) != path for row in part.listing.rows for name in row.names):
                raise changed(path)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return bytes of a tensor's elements."""
        return self._parts[self._where[name]].read(name, start, stop)

    def finish(self) -> None:
        """Finish every file."""
        for part in self._parts.values():
            part.finish()
        self._sharded.refuse_changed()


@contextmanager
def opened_elements(storage: Storage, path: str | os.PathLike[str]) -> Iterator[Elements]:
    """Open a file, an index, a folder or a checkpoint.

    Raises what `torchkeep.formats.sharded.located`, `torchkeep.archive.locating.locate` and reading raise.
    """
    scratch = Scratch()
    kept = locate(path)
    with ExitStack() as stack:
        if kept is not None:
            from torchkeep.tensors.piecewise import CheckpointElements  # noqa: PLC0415 - it builds on this module

            yield CheckpointElements(*kept, scratch, stack)
            return

        def of_file(path: str) -> Elements:
            file = stack.enter_context(closing(storage.open(path)))
            return (_PickledElements if holds_pickle(file) else _ContentsElements)(file, scratch)

        found = located(path)
        if isinstance(found, Sharded):
            yield _ShardedElements(found, {part: of_file(part) for part in found.parts})
        else:
            yield of_file(found)
