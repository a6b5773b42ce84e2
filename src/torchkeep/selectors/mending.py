"""Says why a pattern of names fits none, and mends it: the nearest patterns that fit something."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torchkeep.names import quote_name, quote_segment
from torchkeep.selectors.paths import number
from torchkeep.selectors.patterns import NamePattern, without_repeats
from torchkeep.selectors.suggest import nearest
from torchkeep.selectors.syntax import Deep, Glob, Index, Names, Regex, Star

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torchkeep.selectors.scopes import Scope
    from torchkeep.selectors.syntax import Segment

_WANTED = 3
_SHOWN = 4
_ROUNDS = 3
_LONGEST_SEARCHED = 500
_DEEP = Deep()


def explain_regex(node: Regex, scope: Scope, items: Sequence[int]) -> tuple[str, tuple[Regex, ...]]:
    """Say why a regular expression matches no name of ``items``, as a clause, and give a wider one that does."""
    # Searching may take the square of a name's length, where the user's own full match does not.
    names = [text for _, text in scope.texts(items) if len(text) <= _LONGEST_SEARCHED]
    search = re.compile(node.pattern).search
    if not any(map(search, names)):
        return f"no name holds what `{node}` describes; names are such as {_some(map(quote_name, names))}", ()
    why = f"`{node}` describes only part of a name, and must match the whole"
    wider = f".*(?:{node.pattern}).*"
    try:
        fits = any(map(re.compile(wider).fullmatch, names))
    except re.error:  # global flags must stand first
        fits = False
    return why, (Regex(wider),) if fits else ()


def explain_names(node: Names, scope: Scope, items: Sequence[int]) -> tuple[str, tuple[Names, ...]]:
    """Say why a pattern fits no name of ``items``, as a clause, and give the nearest patterns that fit one."""
    return _Mender(scope, items).explain(node)


class _Mender:
    """The names that a pattern should have fitted."""

    def __init__(self, scope: Scope, items: Sequence[int]) -> None:
        self.scope, self.items = scope, items

    def explain(self, node: Names) -> tuple[str, tuple[Names, ...]]:
        pattern = NamePattern(node)
        done, following = self._furthest(pattern)
        close: list[Names] = []
        for attempts in self._attempts(pattern.segments, done, following, _ROUNDS):
            fitting = next(filter(self._fits, attempts), None)
            if fitting is not None and fitting not in close:
                close.append(fitting)
            if len(close) == _WANTED:
                break
        return _why(pattern.segments, done, following), tuple(close)

    def _furthest(self, pattern: NamePattern) -> tuple[int, list[str]]:
        return pattern.furthest(self.scope.catalogue, self.scope.roots)

    def _fits(self, node: Names) -> bool:
        return bool(self.scope.named(self.items, NamePattern(node).fits(self.scope.catalogue, self.scope.roots)))

    def _attempts(
        self, segments: tuple[Segment, ...], done: int, following: list[str], rounds: int
    ) -> Iterator[Iterator[Names]]:
        """Yield ways to mend, the likeliest first; of each, the first attempt that fits is to be taken."""
        if done == len(segments):
            yield iter([_of(*segments, _DEEP)])
        else:
            yield self._skipping(segments, done)
            for segment in _near(segments[done], following):
                yield self._with(segments, done, segment, rounds)
        if 0 < done < len(segments) and segments[0] != _DEEP:
            yield self._skipping(segments, 0)
        literal = Names(segments).literal
        if literal is not None:
            for name in nearest(literal, (text for _, text in self.scope.texts(self.items))):
                yield iter([Names(tuple(Glob((segment,)) for segment in name.split(".")))])

    def _skipping(self, segments: tuple[Segment, ...], position: int) -> Iterator[Names]:
        """Yield the pattern with ``**`` at a position, where names hold more segments than it says."""
        yield _of(*segments[:position], _DEEP, *segments[position:])
        yield _of(*segments[:position], _DEEP, *segments[position:], _DEEP)

    def _with(
        self, segments: tuple[Segment, ...], position: int, segment: Segment, rounds: int
    ) -> Iterator[Names]:
        """Yield the pattern with one segment replaced, then with what else it takes to fit."""
        replaced = (*segments[:position], segment, *segments[position + 1 :])
        yield Names(replaced)
        yield _of(*replaced, _DEEP)
        done, following = self._furthest(NamePattern(Names(replaced)))
        if position < done < len(replaced):
            yield from self._skipping(replaced, done)
            for near in _near(replaced[done], following)[:1] if rounds > 1 else ():
                yield from self._with(replaced, done, near, rounds - 1)


def _why(segments: tuple[Segment, ...], done: int, following: list[str]) -> str:
    """Say where names stop fitting: behind ``done`` segments of the pattern."""
    before = Names(segments[:done])
    if done == len(segments):
        return f"`{before}` is a module, not a tensor" if before.literal else f"`{before}` fits only modules"
    if not following:
        return f"nothing stands under `{before}`"
    segment = segments[done]
    what = f"`{segment}`"
    if isinstance(segment, Index):
        what = f"a number in `{segment}`"
        numbers = sorted(value for value in map(number, following) if value is not None)
        there = f"numbers there run from {numbers[0]} to {numbers[-1]}" if numbers else "no numbers stand there"
    else:
        there = f"found: {_some(map(quote_segment, following))}"
    if done == 0:
        return f"no name begins with {what} ({there})"
    if before.segments == (_DEEP,):
        return f"no name has the segment {what}"
    return f"no name goes on with {what} after `{before}` ({there})"


def _near(segment: Segment, following: list[str]) -> list[Segment]:
    """Return what may have been meant instead of ``segment``, of all the segments that stand there."""
    if isinstance(segment, Index):
        return [Index(-1, single=True)]
    assert isinstance(segment, Glob)  # `**` fits whatever stands there
    text = "".join(str(piece) for piece in segment.pieces if not isinstance(piece, Star))
    return [Glob((found,)) for found in nearest(text, following)]


def _of(*segments: Segment) -> Names:
    return Names(without_repeats(segments))


def _some(texts: Iterator[str]) -> str:
    """List the first few texts."""
    shown = [f"`{text}`" for text, _ in zip(texts, range(_SHOWN + 1), strict=False)]
    return ", ".join(shown) if len(shown) <= _SHOWN else f"{', '.join(shown[:_SHOWN])}, ..."
