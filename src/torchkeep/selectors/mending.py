"""Says why a pattern of names fits none, and mends it: the nearest patterns that fit something."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torchkeep.names import natural_key, quote_name, quote_segment
from torchkeep.selectors.patterns import NamePattern, number, without_repeats
from torchkeep.selectors.suggest import nearest
from torchkeep.selectors.syntax import Deep, Glob, Index, Names, Regex, Star

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torchkeep.selectors.syntax import Segment

_WANTED = 3
_SHOWN = 4
_ROUNDS = 3
_DEEP = Deep()
_STAR = Glob((Star(),))


def explain_regex(node: Regex, names: Sequence[str]) -> tuple[str, tuple[Regex, ...]]:
    """Say why a regular expression matches none of ``names``, as a clause, and give a wider one that does."""
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


def explain_names(
    node: Names, names: Sequence[str], highest: Callable[[str | None], int | None]
) -> tuple[str, tuple[Names, ...]]:
    """Say why a pattern fits none of ``names``, as a clause, and give the nearest patterns that fit one.

    Args:
        node: the pattern.
        names: at least one.
        highest: the highest number present under a path, as `NamePattern.tester` takes it.
    """
    return _Mender(names, highest).explain(node)


class _Mender:
    """The names that a pattern should have fitted."""

    def __init__(self, names: Sequence[str], highest: Callable[[str | None], int | None]) -> None:
        self.names, self.highest = names, highest

    def explain(self, node: Names) -> tuple[str, tuple[Names, ...]]:
        pattern = NamePattern(node)
        done, following = pattern.furthest(self.names, self.highest)
        close: list[Names] = []
        for attempts in self._attempts(pattern.segments, done, following, _ROUNDS):
            fitting = next(filter(self._fits, attempts), None)
            if fitting is not None and fitting not in close:
                close.append(fitting)
            if len(close) == _WANTED:
                break
        return _why(pattern.segments, done, following), tuple(close)

    def _fits(self, node: Names) -> bool:
        return any(map(NamePattern(node).tester(self.highest), self.names))

    def _attempts(
        self, segments: tuple[Segment, ...], done: int, following: set[str], rounds: int
    ) -> Iterator[Iterator[Names]]:
        """Yield ways to mend, the likeliest first; of each, the first attempt that fits is to be taken."""
        if done == len(segments):
            yield iter([_of(*segments, _DEEP)])
        elif segments[0] != _DEEP:
            yield iter([_of(_DEEP, *segments), _of(_DEEP, *segments, _DEEP)])
        if done < len(segments):
            for segment in _near(segments[done], following):
                yield self._with(segments, done, segment, rounds)
        if _STAR in segments:
            yield iter([_of(*(_DEEP if segment == _STAR else segment for segment in segments))])
        literal = Names(segments).literal
        if literal is not None:
            for name in nearest(literal, self.names):
                yield iter([Names(tuple(Glob((segment,)) for segment in name.split(".")))])

    def _with(
        self, segments: tuple[Segment, ...], position: int, segment: Segment, rounds: int
    ) -> Iterator[Names]:
        """Yield the pattern with one segment replaced, then with what else it takes to fit."""
        replaced = (*segments[:position], segment, *segments[position + 1 :])
        yield Names(replaced)
        yield _of(*replaced, _DEEP)
        done, following = NamePattern(Names(replaced)).furthest(self.names, self.highest)
        if rounds > 1 and position < done < len(replaced):
            for near in _near(replaced[done], following)[:1]:
                yield from self._with(replaced, done, near, rounds - 1)


def _why(segments: tuple[Segment, ...], done: int, following: set[str]) -> str:
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
        there = f"found: {_some(map(quote_segment, sorted(following, key=natural_key)))}"
    if done == 0:
        return f"no name begins with {what} ({there})"
    if before.segments == (_DEEP,):
        return f"no name has the segment {what}"
    return f"no name goes on with {what} after `{before}` ({there})"


def _near(segment: Segment, following: set[str]) -> list[Segment]:
    """Return what may have been meant instead of ``segment``, of all the segments that stand there."""
    if isinstance(segment, Index):
        return [Index(-1, single=True)]
    assert isinstance(segment, Glob)  # `**` fits whatever stands there
    text = "".join(str(piece) for piece in segment.pieces if not isinstance(piece, Star))
    return [Glob((found,)) for found in nearest(text, sorted(following))]


def _of(*segments: Segment) -> Names:
    return Names(without_repeats(segments))


def _some(texts: Iterator[str]) -> str:
    """List the first few texts."""
    shown = [f"`{text}`" for text, _ in zip(texts, range(_SHOWN + 1), strict=False)]
    return ", ".join(shown) if len(shown) <= _SHOWN else f"{', '.join(shown[:_SHOWN])}, ..."
