"""Tables of a model that lies in several files under an index."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from torchkeep.tables.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from torchkeep.formats.sharded import Sharded
    from torchkeep.rows import Listing


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
