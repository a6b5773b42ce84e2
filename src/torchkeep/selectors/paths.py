"""Names as a tree whose nodes are numbers, so that selectors work on numbers rather than on text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.caching import cached_property

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_DIGITS = 18
_LONGEST_TEXT = 512


def number(segment: str) -> int | None:
    """Return the value of a numeric segment (ASCII digits, at most 18), or None when it is not one."""
    if segment.isdecimal() and segment.isascii() and len(segment) <= _DIGITS:
        return int(segment)
    return None


class Paths:
    """The paths of the modules on the way to names.

    Paths are numbered so that a path comes after its parent; 0 is where names begin (the root module's path).

    Attributes:
        parents: for each path, the path without its last segment; 0 for path 0.
        segments: for each path, its last segment.
        owners: for each name, the path of the module that owns the tensor.
        lasts: for each name, its last segment.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.parents, self.segments = [0], [""]
        self.owners: list[int] = []
        self.lasts: list[str] = []
        self._by_text: dict[str, int] = {}
        # Long paths are found from their parents instead: their texts together would take quadratic space.
        self._by_parent: dict[tuple[int, str], int] = {}
        by_text = self._by_text
        for name in names:
            head, dot, last = name.rpartition(".")
            owner = by_text.get(head) if dot else 0
            self.owners.append(self._add(head) if owner is None else owner)
            self.lasts.append(last)

    def _add(self, path: str) -> int:
        """Number a path, and its parents where they have no number yet."""
        if len(path) > _LONGEST_TEXT:
            return self._add_long(path)
        head, dot, last = path.rpartition(".")
        parent = self._by_text.get(head) if dot else 0
        node = self._by_text[path] = self._append(self._add(head) if parent is None else parent, last)
        return node

    def _add_long(self, path: str) -> int:
        top, rest = _split_long(path)
        node = 0 if top is None else self._by_text.get(top)
        node = self._add(top) if node is None and top is not None else node
        assert node is not None
        for segment in rest:
            found = self._by_parent.get((node, segment))
            if found is None:
                found = self._by_parent[node, segment] = self._append(node, segment)
            node = found
        return node

    def _append(self, parent: int, segment: str) -> int:
        self.parents.append(parent)
        self.segments.append(segment)
        return len(self.parents) - 1

    def find(self, path: str) -> int | None:
        """Return the number of a module's path, or None where there is no tensor in that module."""
        if path == "":
            return 0
        if len(path) <= _LONGEST_TEXT:
            return self._by_text.get(path)
        top, rest = _split_long(path)
        node = 0 if top is None else self._by_text.get(top)
        for segment in rest:
            node = None if node is None else self._by_parent.get((node, segment))
        return node

    def find_all(self, paths: Collection[str]) -> list[int | None]:
        """Return the number of each of ``paths``, as `find` does."""
        found = list(map(self._by_text.get, paths))  # right for nearly all, and twice as quick
        return [
            self.find(path) if node is None or path == "" else node
            for path, node in zip(paths, found, strict=True)
        ]

    @cached_property
    def cuts(self) -> list[int]:
        """For each path, how many characters of a name stand before what is relative to the path."""
        cuts = [0]
        for node in range(1, len(self.parents)):
            cuts.append(cuts[self.parents[node]] + len(self.segments[node]) + 1)
        return cuts


def _split_long(path: str) -> tuple[str | None, list[str]]:
    """Part a long path into its longest start that is found by its text (None: there is none), and segments."""
    end = path.rfind(".", 0, _LONGEST_TEXT + 1)
    return (None, path.split(".")) if end < 0 else (path[:end], path[end + 1 :].split("."))
