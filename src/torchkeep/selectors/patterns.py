"""Patterns of names, compiled: whether a name fits, in time linear in its length whatever the pattern.

A pattern is run as an automaton over the segments of a name. Its states are the bits of an int (bit ``k``: the
first ``k`` parts of the pattern are used up), so nothing is ever tried twice; what a set of states becomes under a
segment is worked out once and remembered, and so is the set that each module's path leads to.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

from torchkeep.selectors.paths import number
from torchkeep.selectors.syntax import Braces, Deep, Glob, Index, Names, Star

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torchkeep.selectors.catalogue import Catalogue
    from torchkeep.selectors.syntax import Piece, Pieces, Segment

_MOST_LITERALS = 4096
_MOST_GLOBS = 256


# One segment --------------------------------------------------------------------------------------


def segment_test(pieces: Pieces) -> Callable[[str], bool]:
    """Compile the pieces of one segment into a function that tells whether a segment fits.

    Braces are multiplied out where that gives few patterns without braces: literals become a set, the others a
    regular expression that never backtracks into a part already matched. Where they are many, all positions that
    each piece can reach are followed side by side.
    """
    plain = _multiply(pieces, _MOST_LITERALS)
    if plain is None:
        return lambda segment: len(segment) in _reach(pieces, segment, {0})
    literals = frozenset("".join(map(str, row)) for row in plain if Star() not in row)
    globs = [row for row in plain if Star() in row]
    if not globs:
        return literals.__contains__
    if len(globs) > _MOST_GLOBS:
        return lambda segment: len(segment) in _reach(pieces, segment, {0})
    matches = re.compile("|".join(map(_regex, globs)), re.DOTALL).fullmatch
    return lambda segment: segment in literals or matches(segment) is not None


def _multiply(pieces: Pieces, limit: int) -> list[tuple[str | Star, ...]] | None:
    """Return every choice of alternatives, free of braces, or None where there are more than ``limit``."""
    choices: list[list[tuple[str | Star, ...]]] = []
    total = 1
    for piece in pieces:
        rows: list[tuple[str | Star, ...]] = []
        for alternative in piece.alternatives if isinstance(piece, Braces) else ():
            found = _multiply(alternative, limit)
            if found is None:
                return None
            rows.extend(found)
        choices.append(rows if isinstance(piece, Braces) else [(piece,)])
        total *= len(choices[-1])
        if total > limit:
            return None
    return [tuple(piece for row in rows for piece in row) for rows in product(*choices)]


def _regex(row: tuple[str | Star, ...]) -> str:
    """Spell literals and stars as a regular expression for a full match.

    What lies between two stars may match at its first occurrence for good (an atomic group), as in `fnmatch`.
    """
    first, *middle, last = _between_stars(row)
    return (
        re.escape(first) + "".join(f"(?>.*?{re.escape(text)})" for text in middle if text) + ".*" + re.escape(last)
    )


def _between_stars(row: tuple[str | Star, ...]) -> list[str]:
    texts = [""]
    for piece in row:
        if isinstance(piece, Star):
            texts.append("")
        else:
            texts[-1] += piece
    return texts


def _reach(pieces: Pieces, segment: str, starts: set[int]) -> set[int]:
    """Return every position at which ``pieces`` can end when they begin at any of ``starts``."""
    for piece in pieces:
        starts = _reach_piece(piece, segment, starts)
        if not starts:
            break
    return starts


def _reach_piece(piece: Piece, segment: str, starts: set[int]) -> set[int]:
    if isinstance(piece, str):
        return {start + len(piece) for start in starts if segment.startswith(piece, start)}
    if isinstance(piece, Star):
        return set(range(min(starts), len(segment) + 1))
    return set().union(*(_reach(alternative, segment, starts) for alternative in piece.alternatives))


# A whole name -------------------------------------------------------------------------------------


class NamePattern:
    """A `Names` node, ready to be run over the paths of a listing.

    Attributes:
        segments: the node's, without a ``**`` right behind another.
    """

    def __init__(self, names: Names) -> None:
        self.segments = without_repeats(names.segments)
        self._tests = [
            segment_test(segment.pieces) if isinstance(segment, Glob) else None for segment in self.segments
        ]
        self._deep = sum(1 << k for k, segment in enumerate(self.segments) if isinstance(segment, Deep))
        self._from_end = sum(
            1 << k for k, segment in enumerate(self.segments) if isinstance(segment, Index) and segment.from_end
        )
        self._start = self._close(1)
        self._accepting = 1 << len(self.segments)
        # What a set of states becomes under a segment; and where that depends on the highest number there, too.
        self._known: dict[int, dict[str, int]] = {}
        self._known_at: dict[tuple[int, str, int | None], int] = {}

    def states(self, catalogue: Catalogue, roots: Iterable[int]) -> list[int]:
        """Return, for each path, the states there when names begin at each of ``roots``."""
        paths = catalogue.paths
        found = [0] * len(paths.parents)
        for root in roots:
            found[root] = self._start
        known = self._known
        for node, (parent, segment) in enumerate(zip(paths.parents, paths.segments, strict=True)):
            before = found[parent]
            if before and node:
                row = known.get(before)
                after = None if row is None else row.get(segment)
                found[node] |= self._step(catalogue, parent, before, segment) if after is None else after
        return found

    def fits(self, catalogue: Catalogue, roots: Iterable[int]) -> bytearray:
        """Return, for each name, whether it fits (1 or 0) as seen from any of ``roots``."""
        paths = catalogue.paths
        states, accepting = self.states(catalogue, roots), self._accepting
        found = bytearray(len(paths.owners))
        known = self._known
        for name, (owner, last) in enumerate(zip(paths.owners, paths.lasts, strict=True)):
            before = states[owner]
            if before:
                row = known.get(before)
                after = None if row is None else row.get(last)
                if after is None:
                    after = self._step(catalogue, owner, before, last)
                if after & accepting:
                    found[name] = 1
        return found

    def furthest(self, catalogue: Catalogue, roots: Iterable[int]) -> tuple[int, list[str]]:
        """Find out how far names fit.

        Returns:
            How many of `segments` are used up at most by the first segments of some name; and the segments that
            names go on with there, each once.
        """
        paths = catalogue.paths
        states = self.states(catalogue, roots)
        last = [
            self._step(catalogue, owner, states[owner], segment)
            for owner, segment in zip(paths.owners, paths.lasts, strict=True)
            if states[owner]
        ]
        most = max(states + last).bit_length() - 1
        used_up = 1 << most
        steps = zip(paths.parents[1:] + paths.owners, paths.segments[1:] + paths.lasts, strict=True)
        return most, list(dict.fromkeys(segment for parent, segment in steps if states[parent] & used_up))

    def _step(self, catalogue: Catalogue, parent: int, before: int, segment: str) -> int:
        """Return the states after one more segment behind the path ``parent``."""
        if before & self._from_end and number(segment) is not None:
            highest = catalogue.highest[parent]
            after = self._known_at.get((before, segment, highest))
            if after is None:
                after = self._known_at[before, segment, highest] = self._work_out(before, segment, highest)
            return after
        known = self._known.setdefault(before, {})
        after = known.get(segment)
        if after is None:
            after = known[segment] = self._work_out(before, segment, None)
        return after

    def _work_out(self, states: int, segment: str, highest: int | None) -> int:
        found = states & self._deep
        for k in _bits(states & ~self._deep & (self._accepting - 1)):
            test, part = self._tests[k], self.segments[k]
            if test(segment) if test is not None else _in_slice(part, segment, highest):
                found |= 2 << k
        return self._close(found)

    def _close(self, states: int) -> int:
        """Add the states reached without a segment: ``**`` may stand for none."""
        skipped = states & self._deep
        # No two `**` are neighbours, so one round is enough.
        return states | skipped << 1


def _in_slice(part: Segment, segment: str, highest: int | None) -> bool:
    value = number(segment)
    if value is None:
        return False
    assert isinstance(part, Index)
    low, high = part.low or 0, part.high
    if part.from_end:
        if highest is None:
            return False
        low = low + highest + 1 if low < 0 else low
        high = high + highest + 1 if high is not None and high < 0 else high
    if part.single:
        return value == low
    return value >= low and (high is None or value < high)


def without_repeats(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Write ``**.**`` as ``**``, which means the same."""
    found: list[Segment] = []
    for segment in segments:
        if not (found and isinstance(segment, Deep) and isinstance(found[-1], Deep)):
            found.append(segment)
    return tuple(found)


def _bits(states: int) -> Iterator[int]:
    while states:
        lowest = states & -states
        yield lowest.bit_length() - 1
        states ^= lowest
