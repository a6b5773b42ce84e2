"""What a file holds: tensors under names, some tied, some sharing memory; checked against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from torchkeep.caching import cached_property
from torchkeep.dtypes import BY_CODE
from torchkeep.errors import DamageError, FormatError
from torchkeep.formats.consistency import check
from torchkeep.formats.describing import Known, names_of_ties
from torchkeep.formats.digests import HEADER_KEY, ChunkDigests, seal_holds
from torchkeep.formats.document import DOCUMENT_KEY, Document, View, decode_document
from torchkeep.formats.opening import FileReader
from torchkeep.formats.safetensors import Header, header_of
from torchkeep.rows import Listing, Row

if TYPE_CHECKING:
    import os


_NAMES: Final = {code: info.name for code, info in BY_CODE.items()}


class Stored(Struct, frozen=True, gc=False):
    """One tensor's bytes in a file.

    Attributes:
        name: its name.
        dtype: torch's name.
        shape: sizes.
        start: its first byte, counted from the start of the file.
        stop: one past its last byte.
        strides: steps in elements of the memory it came from, None for the usual (row-major) order. The bytes
            themselves are always in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


class Contents:
    """A file's header together with what torchkeep's own metadata says, if it has any.

    Attributes:
        header: the header.
        document: torchkeep's metadata; None for a file that something else wrote.

    Raises:
        DamageError: the header is not the one that was written.
        FormatError: the metadata contradicts the header or itself.
        NewerFormatError: a later version wrote it.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.document: Document | None = None
        if DOCUMENT_KEY in header.metadata or HEADER_KEY in header.metadata:
            if not seal_holds(header.raw):
                raise _damaged_header(header)
            self.document = decode_document(header.metadata.get(DOCUMENT_KEY, "{}"), header.path)
            try:
                check(self.document, header)
            except FormatError as cause:
                raise FormatError(
                    f"torchkeep's metadata in {header.path!r} contradicts itself: {cause}"
                ) from cause

    @property
    def path(self) -> str:
        """The file."""
        return self.header.path

    @cached_property
    def digests(self) -> ChunkDigests | None:
        """The digests of all chunks; None for a file that something else wrote."""
        if self.document is None:
            return None
        try:
            return ChunkDigests(self.document.digests, self.document.chunk, self.header.entries)
        except FormatError as cause:
            raise _contradiction(self.path, cause) from cause

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name, aliases and views included, in the order of what was saved; hidden entries are not."""
        if self.document is None:
            return tuple(self.header.entries)
        if self.document.order:
            return self.document.order
        hidden = set(self.document.hidden)
        return tuple(name for name in self.header.entries if name not in hidden)

    def owner(self, name: str) -> str:
        """Return the name that a tensor is kept under: itself, unless it is an alias."""
        return name if self.document is None else self.document.aliases.get(name, name)

    def view(self, name: str) -> View | None:
        """Return how an owner's tensor shares the memory of an entry; None when it is an entry itself."""
        return None if self.document is None else self.document.views.get(name)

    def stored(self, name: str) -> Stored:
        """Return where the bytes of entry ``name`` are, and what they mean."""
        entry = self.header.entries[name]
        start, stop = self.header.span(name)
        dtype, shape, strides = _NAMES[entry.dtype], entry.shape, None
        if self.document is not None:
            strides = self.document.strides.get(name)
            if name in self.document.dtypes:
                dtype, shape = self.document.dtypes[name], shape[:-1]
        return Stored(name, dtype, shape, start, stop, strides)

    def kind(self, owner: str) -> tuple[str, tuple[int, ...]]:
        """Return the dtype, as torch calls it, and the shape of an owner's tensor."""
        entry = self.header.entries.get(owner)
        if entry is None or (self.document is not None and owner in self.document.dtypes):
            found = self.view(owner) or self.stored(owner)
            return found.dtype, found.shape
        return _NAMES[entry.dtype], entry.shape

    @cached_property
    def listing(self) -> Listing:
        """The rows: the same that the live model gave, its non-persistent buffers excepted."""
        if self.document is None:
            rows = [Row(name, entry.shape, _NAMES[entry.dtype]) for name, entry in self.header.entries.items()]
            return Listing(rows, None, self.path)
        modules = None if self.known is None else self.known.modules
        return Listing(_rows(self, self.document), modules, self.path)

    @cached_property
    def known(self) -> Known | None:
        """What the module that was saved knew of its tensors; None where it was none."""
        facts = None if self.document is None else self.document.module
        return None if facts is None else Known(facts)


def open_contents(path: str | os.PathLike[str]) -> Contents:
    """Read the header of a file and what it says.

    Raises:
        FormatError: it is no file that can be read, or it contradicts itself.
        DamageError: it is cut short, or its header is not the one that was written.
        NewerFormatError: a later version of torchkeep wrote it.
        StorageError: the file can't be read.
    """
    with FileReader(path) as file:
        return Contents(header_of(file))


def _contradiction(path: str, cause: FormatError) -> FormatError:
    return FormatError(f"torchkeep's metadata in {path!r} contradicts itself: {cause}")


def _damaged_header(header: Header) -> DamageError:
    error = DamageError(
        f"the header of {header.path!r} (bytes 0 to {header.data_start}) is not the one that torchkeep wrote: its "
        "digest differs, so it is damaged, or another tool has changed it; copy or save the file again"
    )
    error.file, error.start, error.stop = header.path, 0, header.data_start
    return error


def _rows(contents: Contents, document: Document) -> list[Row]:
    further = names_of_ties(document.aliases)
    known = contents.known
    rows = []
    for owner in dict.fromkeys(map(contents.owner, contents.names)):
        dtype, shape = contents.kind(owner)
        names = (owner, *further.get(owner, ()))
        if known is None:
            rows.append(Row(owner, shape, dtype, aliases=names[1:]))
        else:
            rows.append(known.row(names, shape, dtype))
    return rows
