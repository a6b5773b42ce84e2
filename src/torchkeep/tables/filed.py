"""What tables of files are read from: safetensors, files of torch.save, several files under an index.

A file is described when the table is made; each tensor is read and verified when it is asked for.
"""

from __future__ import annotations

import os
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from torchkeep.errors import SourceError
from torchkeep.formats.contents import open_contents
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.locations import store_location
from torchkeep.formats.opening import FileReader
from torchkeep.formats.pickles import pickled_of
from torchkeep.formats.pickles.machine import shown
from torchkeep.formats.sharded import Sharded, located
from torchkeep.storage.local import LOCAL
from torchkeep.tables.sources import ACCEPTED, Source
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.reading import changed, read_tensor, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from torchkeep.formats.opening import Readable
    from torchkeep.rows import Listing

_BATCH = 64 << 20
_SHOWN = 10
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def open_path(path: str | os.PathLike[str]) -> Source:
    """Return the source that reads a file, a folder, the index of several files, or a checkpoint.

    Raises:
        SourceError: the path is text that names no file.
        StoreError: there is no such store or checkpoint.
        FormatError: the file is not what it should be.
        StorageError: the file can't be read.
    """
    location = store_location(path)
    if location is not None:
        from torchkeep.archive.locating import checkpoint_at  # noqa: PLC0415 - files need none of it
        from torchkeep.tables.checkpointed import CheckpointSource  # noqa: PLC0415 - it builds on this module
        from torchkeep.tensors.checkpoints import Checkpoint  # noqa: PLC0415 - files need none of it

        return CheckpointSource(Checkpoint.of(*checkpoint_at(location)))
    # Text that names no file may be meant as something else altogether; a path object can only be a path.
    looks_like_one = not isinstance(path, str) or path.endswith(_SUFFIXES) or os.path.exists(path)  # noqa: PTH110
    if not looks_like_one:
        raise SourceError(f"there is no file {path!r}; expected {ACCEPTED}")
    found = located(path)
    if isinstance(found, Sharded):
        return ShardedSource(found, {part: _of_file(part) for part in found.parts})
    return _of_file(found)


def _of_file(path: str) -> Source:
    with FileReader(path) as file:
        return PickledSource(file) if holds_pickle(file) else FileSource(path)


class FileSource(Source):
    """A safetensors file: the header as read when the table was made; each tensor is read when it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._contents = open_contents(path)
        self._listing = self._contents.listing

    def listing(self) -> Listing:
        """Return the rows."""
        return self._listing

    def tensor(self, position: int) -> Tensor:
        """Read one tensor and verify its bytes."""
        return read_tensor(self._contents, self._listing.rows[position].name)

    def each(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Read tensors in turn, small ones some at a time, from a file that is opened only once."""
        header = self._contents.header
        with LOCAL.open(header.path) as file:
            if file.read(0, min(file.size, header.data_start)) != header.raw:
                raise changed(header.path)
            for names in batches(self._listing, positions):
                found = read_tensors(file, self._contents, names)
                yield from map(found.pop, names)

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same file with the same header."""
        if not isinstance(other, FileSource):
            return False
        mine, theirs = self._contents.header, other._contents.header  # noqa: SLF001 - its own kind
        return os.path.realpath(mine.path) == os.path.realpath(theirs.path) and mine.raw == theirs.raw


class PickledSource(Source):
    """A file of torch.save, described when the table was made; each tensor is read when it is asked for."""

    def __init__(self, file: Readable) -> None:
        self._pickled = pickled_of(file)
        left_out = self._pickled.left_out
        if left_out:
            names = ", ".join(shown(name) for name in left_out[:_SHOWN])
            more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
            self.notes = (f"attributes of tensors are left out: {names}{more}",)

    def listing(self) -> Listing:
        """Return the rows."""
        return self._pickled.listing

    def tensor(self, position: int) -> Tensor:
        """Read one tensor and verify its storage."""
        return next(self.each([position]))

    def each(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Read tensors in turn, small ones some at a time, from a file that is opened only once."""
        with LOCAL.open(self._pickled.path) as file:
            for names in batches(self.listing(), positions):
                found = PickledReader(file, self._pickled).tensors(names)
                yield from map(found.pop, names)

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same file with the same pickle."""
        if not isinstance(other, PickledSource):
            return False
        mine, theirs = self._pickled, other._pickled  # noqa: SLF001 - its own kind
        return os.path.realpath(mine.path) == os.path.realpath(theirs.path) and mine.seal == theirs.seal


class ShardedSource(Source):
    """Several files under an index, described when the table was made; each tensor is read when asked for."""

    def __init__(self, sharded: Sharded, parts: Mapping[str, Source]) -> None:
        self._listing = sharded.listing
        self._parts = parts
        self.notes = tuple(note for part in parts.values() for note in part.notes)
        # Of each row, the file and the row in that file's own listing.
        found = {row.name: at for part in parts.values() for at, row in enumerate(part.listing().rows)}
        self._places = [(sharded.where[row.name], found[row.name]) for row in self._listing.rows]

    def listing(self) -> Listing:
        """Return the rows."""
        return self._listing

    def tensor(self, position: int) -> Tensor:
        """Read one tensor, verified as its file allows."""
        path, at = self._places[position]
        return self._parts[path].tensor(at)

    def each(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Read tensors in turn; of neighbours in one file, the file is opened once."""
        places = [self._places[position] for position in positions]
        for path, near in groupby(places, key=itemgetter(0)):
            yield from self._parts[path].each([at for _, at in near])

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same files."""
        if not isinstance(other, ShardedSource):
            return False
        mine, theirs = list(self._parts.values()), list(other._parts.values())  # noqa: SLF001 - its own kind
        return len(mine) == len(theirs) and all(one.is_same(two) for one, two in zip(mine, theirs, strict=True))


def batches(listing: Listing, positions: Sequence[int]) -> Iterator[list[str]]:
    """Yield names of tensors that are no more than `_BATCH` bytes together, or of one that is larger."""
    batch: list[str] = []
    size = 0
    for position in positions:
        row = listing.rows[position]
        if batch and size + row.nbytes > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(row.name)
        size += row.nbytes
    if batch:
        yield batch
