"""What a selector is evaluated on: a listing, seen whole or from modules in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torchkeep.selectors.catalogue import catalogue_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torchkeep.rows import Listing, Row, TypeInfo
    from torchkeep.selectors.catalogue import Catalogue
    from torchkeep.selectors.paths import Paths
    from torchkeep.selectors.syntax import Type


class Scope(NamedTuple):
    """Items, each a row under those of its names that can be seen from some modules, the roots.

    Attributes:
        catalogue: the listing.
        roots: paths of the roots; ``(0,)`` where the listing is seen whole.
        first: for each item, one of its names.
        more: the further names of the items that have some.
    """

    catalogue: Catalogue
    roots: Sequence[int]
    first: Sequence[int]
    more: Mapping[int, tuple[int, ...]]

    def row(self, item: int) -> Row:
        """Return an item's row."""
        return self.catalogue.row(self.first[item])

    def names_of(self, item: int) -> tuple[int, ...]:
        """Return the numbers of an item's names."""
        return (self.first[item], *self.more.get(item, ()))

    def texts(self, items: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield the items' names, as seen from the roots, none of which may lie under another."""
        catalogue = self.catalogue
        if self.roots == (0,):
            yield from ((item, catalogue.names[name]) for item in items for name in self.names_of(item))
            return
        above = nearest_above(catalogue.paths, self.roots)
        for item in items:
            for name in self.names_of(item):
                root = above[catalogue.paths.owners[name]]
                assert root is not None  # else the item would not be in this scope
                yield item, catalogue.relative(name, root)

    def named(self, items: Iterable[int], fits: Sequence[object]) -> list[int]:
        """Return the items of which a name fits; ``fits`` says so for each name."""
        first, more = self.first, self.more
        if not more:
            return [item for item in items if fits[first[item]]]
        return [
            item
            for item in items
            if fits[first[item]] or (item in more and any(fits[name] for name in more[item]))
        ]


def whole(listing: Listing) -> Scope:
    """Return the scope in which items are the rows themselves."""
    catalogue = catalogue_of(listing)
    return Scope(catalogue, (0,), range(len(listing.rows)), catalogue.further)


def inside(scope: Scope, items: Iterable[int], roots: Sequence[int]) -> tuple[Scope, list[int]]:
    """Go into modules.

    Args:
        scope: where ``items`` are seen from.
        items: what to see from inside.
        roots: paths at or under the scope's roots.

    Returns:
        The scope of the items as seen from ``roots``, one item for each row and root; and, for each item in it,
        the item that it stems from. Where roots lie under one another, an item is seen from all of them at once.
    """
    paths = scope.catalogue.paths
    above, owners = nearest_above(paths, roots), paths.owners
    nested = any(above[paths.parents[root]] is not None for root in roots if root)
    first: list[int] = []
    more: dict[int, tuple[int, ...]] = {}
    origins: list[int] = []
    for item in items:
        if item not in scope.more:
            if above[owners[scope.first[item]]] is not None:
                first.append(scope.first[item])
                origins.append(item)
            continue
        by_root: dict[int, list[int]] = {}
        for name in scope.names_of(item):
            root = above[owners[name]]
            if root is not None:
                by_root.setdefault(0 if nested else root, []).append(name)
        for names in by_root.values():
            if len(names) > 1:
                more[len(first)] = tuple(names[1:])
            first.append(names[0])
            origins.append(item)
    return Scope(scope.catalogue, roots, first, more), origins


def under(scope: Scope, paths: Iterable[int]) -> list[int]:
    """Return those of ``paths`` that lie at or under a root of the scope."""
    if 0 in scope.roots:
        return list(paths)
    above = nearest_above(scope.catalogue.paths, scope.roots)
    return [path for path in paths if above[path] is not None]


def layers(paths: Paths, roots: Sequence[int]) -> list[list[int]]:
    """Part roots into layers, in each of which none lies under another."""
    wanted = set(roots)
    depths = [0] * len(paths.parents)
    found: list[list[int]] = []
    for node, parent in enumerate(paths.parents):
        depth = depths[parent] if node else 0
        if node in wanted:
            if depth == len(found):
                found.append([])
            found[depth].append(node)
            depth += 1
        depths[node] = depth
    return found


def nearest_above(paths: Paths, roots: Iterable[int]) -> list[int | None]:
    """Return, for each path, the nearest of ``roots`` at or above it, or None where there is none."""
    found: list[int | None] = [None] * len(paths.parents)
    wanted = set(roots)
    for node, parent in enumerate(paths.parents):
        found[node] = node if node in wanted else found[parent]
    return found


def modules_of(catalogue: Catalogue, types: Sequence[Type]) -> list[int]:
    """Return the paths of the modules of one of ``types``, those without any tensor left out."""
    verdicts: dict[int, bool] = {}
    found = []
    for node, info in enumerate(catalogue.types):
        verdict = verdicts.get(id(info))
        if verdict is None:
            verdict = verdicts[id(info)] = info is not None and any(is_type(info, one) for one in types)
        if verdict:
            found.append(node)
    return found


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
