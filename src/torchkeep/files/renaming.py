"""Renames: anchored patterns that say what a source's names are called in the model.

A pattern is a name in which ``*`` stands for one segment or a part of one, ``**`` for any number of whole
segments, and ``blocks[0:6]`` for the numeric segments 0 to 5 below ``blocks``. What ends with a dot is a beginning
of names, of which the rest stays (the empty pattern is the beginning of every name). Each wildcard's text goes, in
order, into the same wildcard of the other pattern; a slice may move: ``blocks[0:6].`` to ``layers[6:12].``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from torchkeep.errors import SelectorError, SelectorSyntaxError

if TYPE_CHECKING:
    from collections.abc import Sequence

Renames: TypeAlias = Mapping[str, str] | list[tuple[str, str]]

_SLICE: Final = re.compile(r"\[(?:(\d*):(\d*)|(\d+))\]")
_QUOTED: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_DIGITS: Final = 18


@dataclass(frozen=True)
class Literal:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Star:
    """A part of a segment, or all of it."""


@dataclass(frozen=True)
class Deep:
    """Any number of whole segments."""


@dataclass(frozen=True)
class Slice:
    """A numeric segment.

    Attributes:
        start: the smallest.
        stop: one past the largest; None where there is no end.
    """

    start: int
    stop: int | None


Token: TypeAlias = Literal | Star | Deep | Slice


@dataclass(frozen=True)
class Pattern:
    """One side of a rename.

    Attributes:
        text: as given.
        segments: the tokens of each segment.
        is_beginning: whether any further segments may follow.
    """

    text: str
    segments: tuple[tuple[Token, ...], ...]
    is_beginning: bool

    @property
    def wildcards(self) -> list[Token]:
        """The tokens that stand for text, in order."""
        return [token for segment in self.segments for token in segment if not isinstance(token, Literal)]


@dataclass(frozen=True)
class Rename:
    """One rename.

    Attributes:
        source: the pattern of names in the source.
        target: what they are called in the model.
        regex: matches the source pattern.
    """

    source: Pattern
    target: Pattern
    regex: re.Pattern[str]

    def __call__(self, name: str) -> str | None:
        """Return what ``name`` is called in the model, or None when it does not match."""
        # With a dot behind every segment, all segments and any number of them look alike.
        found = self.regex.fullmatch(f"{name}.")
        if found is None:
            return None
        texts = iter(found.groups())
        filled = []
        for mine, theirs in zip(self.source.wildcards, self.target.wildcards, strict=True):
            text = next(texts)
            if isinstance(mine, Slice) and isinstance(theirs, Slice):
                if not mine.start <= int(text) < (int(text) + 1 if mine.stop is None else mine.stop):
                    return None
                text = str(int(text) - mine.start + theirs.start)
            filled.append(text)
        rest = next(texts, "")
        return (_spelled(self.target, filled) + rest)[:-1]


def renames_of(renames: Renames | None) -> list[Rename]:
    """Compile renames, in order.

    Raises:
        SelectorSyntaxError: a pattern can't be read, or its wildcards are not those of its other side.
        SelectorError: ``renames`` is neither a mapping nor pairs of texts.
    """
    if renames is None:
        return []
    pairs = renames.items() if isinstance(renames, Mapping) else renames
    try:
        return [_rename(source, target) for source, target in pairs]
    except (TypeError, ValueError) as cause:
        if isinstance(cause, SelectorError):
            raise
        raise SelectorError(
            f"rename is a mapping from patterns to patterns, such as {{'module.': ''}}, or pairs of them; "
            f"found {renames!r}"
        ) from cause


def new_name(renames: Sequence[Rename], name: str) -> tuple[str, Rename | None]:
    """Return what ``name`` is called in the model, and by which rename: the last that matches."""
    for rename in reversed(renames):
        renamed = rename(name)
        if renamed is not None:
            return renamed, rename
    return name, None


def _rename(source_text: str, target_text: str) -> Rename:
    source, target = _parse(source_text), _parse(target_text)
    if source.is_beginning != target.is_beginning:
        odd = target_text if source.is_beginning else source_text
        raise SelectorSyntaxError.at(
            odd,
            len(odd),
            f"{source_text!r} and {target_text!r} must both end with a dot (or be empty), or neither",
        )
    if [type(token) for token in source.wildcards] != [type(token) for token in target.wildcards]:
        raise SelectorSyntaxError.at(
            target_text,
            0,
            f"the wildcards of {source_text!r} must stand in {target_text!r} too, in the same order",
        )
    for mine, theirs in zip(source.wildcards, target.wildcards, strict=True):
        if isinstance(mine, Slice) and isinstance(theirs, Slice) and _length(mine) != _length(theirs):
            raise SelectorSyntaxError.at(
                target_text, 0, f"the slices of {source_text!r} and {target_text!r} must be equally long"
            )
    return Rename(source, target, _regex(source))


def _parse(text: str) -> Pattern:
    if not isinstance(text, str):
        raise TypeError(text)
    segments: list[list[Token]] = [[]]
    position = 0
    while position < len(text):
        position = _scan(text, position, segments)
    is_beginning = not segments[-1]
    if is_beginning:
        segments.pop()
    if any(not segment for segment in segments):
        raise SelectorSyntaxError.at(text, 0, "a name's segment is empty")
    return Pattern(text, tuple(map(tuple, segments)), is_beginning)


def _scan(text: str, position: int, segments: list[list[Token]]) -> int:
    """Read one token into the segments, and return where the next one begins."""
    char, segment = text[position], segments[-1]
    if char == ".":
        segments.append([])
        return position + 1
    if char == "*":
        deep = text.startswith("**", position)
        if deep and (segment or text[position + 2 : position + 3] not in {"", ".", "["}):
            raise SelectorSyntaxError.at(text, position, "`**` stands for whole segments; put dots around it")
        segment.append(Deep() if deep else Star())
        return position + 1 + deep
    if char == "[":
        return _scan_slice(text, position, segments)
    if char in "'\"":
        quoted = _QUOTED.match(text, position)
        if quoted is None:
            raise SelectorSyntaxError.at(text, position, "this quote has no end")
        segment.append(Literal(re.sub(r"\\(.)", r"\1", quoted[1] if quoted[1] is not None else quoted[2])))
        return quoted.end()
    if char in "{}":
        raise SelectorSyntaxError.at(text, position, "alternatives can't stand in a rename; write one for each")
    segment.append(Literal(char))
    return position + 1


def _scan_slice(text: str, position: int, segments: list[list[Token]]) -> int:
    found = _SLICE.match(text, position)
    if found is None:
        raise SelectorSyntaxError.at(
            text, position, "a slice is `[3]`, `[0:6]`, `[2:]` or `[:]`, of whole numbers"
        )
    if segments[-1]:
        segments.append([])  # `blocks[0:6]` is the segment `blocks` and a numeric one below it
    if found[3]:
        segments[-1].append(Slice(int(found[3]), int(found[3]) + 1))
    else:
        segments[-1].append(Slice(int(found[1] or 0), int(found[2]) if found[2] else None))
    if text[found.end() : found.end() + 1] not in {"", ".", "["}:
        raise SelectorSyntaxError.at(text, found.end(), "a slice is a whole segment; put a dot behind it")
    return found.end()


def _length(token: Slice) -> int | None:
    return None if token.stop is None else token.stop - token.start


def _regex(pattern: Pattern) -> re.Pattern[str]:
    """Return what matches names with a dot behind every segment."""
    parts: list[str] = []
    for segment in pattern.segments:
        for token in segment:
            if isinstance(token, Literal):
                parts.append(re.escape(token.text))
            else:
                parts.append(_REGEXES[type(token)])
        parts.append("" if segment == (Deep(),) else r"\.")
    return re.compile("".join(parts) + ("(.+)" if pattern.is_beginning else ""), re.DOTALL)


_REGEXES: Final[dict[type, str]] = {Star: r"([^.]*)", Deep: r"((?:[^.]*\.)*)", Slice: rf"(\d{{1,{_DIGITS}}})"}


def _spelled(pattern: Pattern, filled: Sequence[str]) -> str:
    texts = iter(filled)
    parts: list[str] = []
    for segment in pattern.segments:
        parts.extend(token.text if isinstance(token, Literal) else next(texts) for token in segment)
        parts.append("" if segment == (Deep(),) else ".")
    return "".join(parts)
