"""What a selector is evaluated on: a listing, seen whole or from modules in it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torchkeep.errors import MissingFieldError
from torchkeep.names import join, prefixes
from torchkeep.selectors.patterns import number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from torchkeep.rows import Listing, Row, TypeInfo
    from torchkeep.selectors.syntax import Type


class Source:
    """A listing, with what is worked out from it when a selector first asks.

    Attributes:
        listing: the rows.
    """

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    @cached_property
    def _highest(self) -> dict[str | None, int]:
        """Highest number present under each path (None: where names begin), counting persistent rows' names only.

        Only those stand in a file, and a selector must mean the same there as on the live module.
        """
        found: dict[str | None, int] = {}
        seen: set[str] = set()
        for row in self.listing.rows:
            for name in row.names if row.persistent else ():
                path: str | None = name
                while path is not None and path not in seen:
                    seen.add(path)
                    head, dot, last = path.rpartition(".")
                    path = head if dot else None
                    value = number(last)
                    if value is not None and value > found.get(path, -1):
                        found[path] = value
        return found

    def highest(self, path: str | None) -> int | None:
        """Return the highest number present under ``path``, or None where there is none."""
        return self._highest.get(path)

    def paths_of(self, types: Iterable[Type]) -> set[str]:
        """Return the paths of all modules of one of ``types``.

        Raises:
            MissingFieldError: the source knows no classes.
        """
        wanted = tuple(types)
        modules = self.listing.modules
        if modules is None:
            raise MissingFieldError(
                f"`{wanted[0]}` asks for a module's class, which {self.listing.source} does not know; "
                "name the tensors instead, or use the live model"
            )
        verdicts: dict[int, bool] = {}
        found = set()
        for path, info in modules.items():
            verdict = verdicts.get(id(info))
            if verdict is None:
                verdict = verdicts[id(info)] = any(is_type(info, one) for one in wanted)
            if verdict:
                found.add(path)
        return found


class Scope:
    """Items as seen from where names begin: the whole listing, or modules of a class.

    Attributes:
        source: the listing.
        rows: each item's position in the listing.
        roots: path of the module that each item is seen from; None where items are seen from outside.
        names: an item's first name, relative to its root.
        others: the further names of the items that have some.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int],
        roots: Sequence[str] | None,
        names: Sequence[str],
        others: dict[int, tuple[str, ...]],
    ) -> None:
        self.source, self.rows, self.roots = source, rows, roots
        self.names, self.others = names, others

    @classmethod
    def whole(cls, source: Source) -> Scope:
        """Return the scope in which items are the rows themselves."""
        names, others = [], {}
        for item, row in enumerate(source.listing.rows):
            names.append(row.name)
            if row.aliases or row.plain:
                others[item] = (*row.aliases, *row.plain)
        return cls(source, range(len(names)), None, names, others)

    def row(self, item: int) -> Row:
        """Return an item's row."""
        return self.source.listing.rows[self.rows[item]]

    def names_of(self, item: int) -> tuple[str, ...]:
        """Return all names of an item, relative to its root."""
        return (self.names[item], *self.others.get(item, ()))

    def owners_of(self, item: int) -> Iterator[str]:
        """Yield the paths, seen from outside, of the modules that own an item."""
        root = self.roots[item] if self.roots is not None else ""
        for name in self.names_of(item):
            yield join(root, name.rpartition(".")[0])

    def named(self, items: Iterable[int], fits: Callable[[str], bool]) -> list[int]:
        """Return the items of which a name fits."""
        names, others = self.names, self.others
        if not others:
            return [item for item in items if fits(names[item])]
        return [
            item
            for item in items
            if fits(names[item]) or (item in others and any(fits(name) for name in others[item]))
        ]

    def inside(self, items: Iterable[int], paths: Collection[str]) -> tuple[Scope, list[list[int]]]:
        """Go into modules.

        Returns:
            The scope of ``items`` as seen from each of ``paths`` that lies on the way to them; and, for each item
            in it, the items of this scope that it stems from.
        """
        positions: dict[tuple[str, int], int] = {}
        rows: list[int] = []
        roots: list[str] = []
        names: list[list[str]] = []
        origins: list[list[int]] = []
        on_the_way: dict[str, list[str]] = {}
        for item in items:
            outer = self.roots[item] if self.roots is not None else ""
            for relative in self.names_of(item):
                name = join(outer, relative)
                owner = name.rpartition(".")[0]
                entered = on_the_way.get(owner)
                if entered is None:
                    around = (*prefixes(owner), owner) if owner else ("",)
                    entered = on_the_way[owner] = [path for path in around if path in paths]
                for root in entered:
                    if len(root) < len(outer):
                        continue
                    row = self.rows[item]
                    position = positions.setdefault((root, row), len(rows))
                    if position == len(rows):
                        rows.append(row)
                        roots.append(root)
                        names.append([])
                        origins.append([])
                    short = name[len(root) + 1 :] if root else name
                    if short not in names[position]:
                        names[position].append(short)
                    if item not in origins[position]:
                        origins[position].append(item)
        others = {item: tuple(found[1:]) for item, found in enumerate(names) if len(found) > 1}
        return Scope(self.source, rows, roots, [found[0] for found in names], others), origins


def is_type(info: TypeInfo, wanted: Type) -> bool:
    """Tell whether a module's class is ``wanted``, or where that is not exact, descends from it."""
    lineage = info.lineage[:1] if wanted.exact else info.lineage
    return any(_is_called(module, qualname, wanted.name) for module, qualname in lineage)


def _is_called(module: str, qualname: str, wanted: str) -> bool:
    if wanted in (qualname, qualname.rpartition(".")[2]):
        return True
    # `torch.nn.Linear` lives in torch.nn.modules.linear: the module named may stand above the defining one.
    home = wanted.removesuffix("." + qualname)
    return home != wanted and (module == home or module.startswith(home + "."))
