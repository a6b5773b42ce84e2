"""What selectors work out of a listing, once for each listing."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

from torchkeep.caching import cached_property
from torchkeep.selectors.paths import Paths, number

if TYPE_CHECKING:
    from torchkeep.rows import Listing, Row, TypeInfo


class Catalogue:
    """All names of a listing, numbered: each row's own name by the row's position, then aliases and plain names.

    Attributes:
        source: what errors call the listing.
        modules: the listing's.
        names: every name, in full.
        rows: for each name, its row's position.
        further: by row's position, the numbers of a row's further names, where it has some.
    """

    # It never refers to the listing itself, which would then live for ever.
    def __init__(self, listing: Listing) -> None:
        self.source, self.modules = listing.source, listing.modules
        self._rows = listing.rows
        self.names = [row.name for row in listing.rows]
        self.rows = list(range(len(self.names)))
        self.further: dict[int, tuple[int, ...]] = {}
        self._plain: set[int] = set()
        for position, row in enumerate(listing.rows):
            if row.aliases or row.plain:
                start = len(self.names)
                self.names += row.aliases + row.plain
                end = len(self.names)
                self.further[position] = tuple(range(start, end))
                self._plain.update(range(end - len(row.plain), end))
                self.rows += [position] * (end - start)

    def row(self, name: int) -> Row:
        """Return the row that a name belongs to."""
        return self._rows[self.rows[name]]

    def relative(self, name: int, root: int) -> str:
        """Return a name as seen from the module whose path is ``root``."""
        return self.names[name][self.paths.cuts[root] :] if root else self.names[name]

    @cached_property
    def paths(self) -> Paths:
        """The tree of the names."""
        return Paths(self.names)

    @cached_property
    def highest(self) -> list[int | None]:
        """For each path, the highest number among the segments that follow it, or None where there is none.

        Only persistent rows' names count, and no plain names: those alone stand in a file, and a selector must
        mean the same there as on the live module.
        """
        paths = self.paths
        found: list[int | None] = [None] * len(paths.parents)
        present = bytearray(len(paths.parents))
        absent = {row for row, held in enumerate(self._rows) if not held.persistent}
        for name, (row, owner, last) in enumerate(zip(self.rows, paths.owners, paths.lasts, strict=True)):
            if row not in absent and name not in self._plain:
                present[owner] = True
                _raise(found, owner, last)
        for node in range(len(paths.parents) - 1, 0, -1):
            if present[node]:
                parent = paths.parents[node]
                present[parent] = True
                _raise(found, parent, paths.segments[node])
        return found

    @cached_property
    def types(self) -> list[TypeInfo | None]:
        """For each path, the class of the module there; None where it is not known."""
        found: list[TypeInfo | None] = [None] * len(self.paths.parents)
        modules = self.modules or {}
        for node, info in zip(self.paths.find_all(modules), modules.values(), strict=True):
            if node is not None:
                found[node] = info
        return found


def _raise(found: list[int | None], node: int, segment: str) -> None:
    value = number(segment)
    if value is not None:
        found[node] = max(value, found[node] or 0)


_KEPT: dict[int, tuple[ref[Listing], Catalogue]] = {}


def catalogue_of(listing: Listing) -> Catalogue:
    """Return what is worked out of a listing, the same for as long as it lives."""
    # A listing can be referred to weakly, but not hashed (its rows may be a list): hence its id.
    key = id(listing)
    kept = _KEPT.get(key)
    if kept is not None and kept[0]() is listing:
        return kept[1]
    catalogue = Catalogue(listing)
    _KEPT[key] = (ref(listing, lambda _: _KEPT.pop(key, None)), catalogue)
    return catalogue
