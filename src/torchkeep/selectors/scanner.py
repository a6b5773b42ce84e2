"""Reads a selector character by character: where the reader stands, and the patterns of names.

A `Scanner` stands at a position in the text. Each ``read_...`` function takes one operand from there and leaves
the scanner behind it; whatever does not fit is a `SelectorSyntaxError` whose caret stands where it does not.
"""

from __future__ import annotations

import re
from typing import NoReturn

from torchkeep.errors import SelectorSyntaxError
from torchkeep.names import is_bare_char
from torchkeep.selectors.syntax import (
    Braces,
    Deep,
    Glob,
    Index,
    Names,
    Piece,
    Pieces,
    Segment,
    Star,
)

MAX_DEPTH = 64
"""How deep parentheses, braces, ``~`` and ``>`` may nest: people need a handful, and Python's own stack ends."""

QUOTES = "'\""
_ESCAPE = re.compile(r"""\\(?:['"\\nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})""")
"""What a backslash may begin in quotes: a part of what Python's own strings know."""
_INDEX = re.compile(r"\s*(-?\d{1,18})?\s*(?:(:)\s*(-?\d{1,18})?\s*)?", re.ASCII)
_ENDS = ("", ")")
_STRAY = {
    "?": "`?` is no wildcard here; `*` stands for any part of a segment",
    "!": "`!` is no operator here; write `~` for everything but",
    "\\": "a backslash stands only in quotes; a regular expression is written re:'...'",
    ",": "a comma stands only in braces; write `{a,b}`, or `a | b`",
    "}": "this `}` closes nothing; remove it, or quote the segment if it is part of a name",
    "]": "this `]` closes nothing; remove it, or quote the segment if it is part of a name",
    "=": "`=` stands only in a field such as `[ndim=2]` and in `@=Linear`",
    "(": "put an operator between spaces before `(`, such as ` & `, ` - ` or ` | `",
    ":": "a state such as `:param` stands alone; join it with ` & ` between spaces",
    "@": "a class such as `@Linear` stands alone; join it with ` & ` between spaces",
    "~": "`~` stands before what it negates; put an operator between spaces in front, such as ` & ~`",
    "[": "a field stands alone; put ` & ` before it",
}


class Scanner:
    """A text and a position in it.

    Attributes:
        text: the selector.
        pos: index of the next character to read.
        depth: how many levels are open.
        deepest: the most levels that were open at once.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.depth = 0
        self.deepest = 0

    def fail(self, position: int, problem: str) -> NoReturn:
        """Raise the error whose caret stands at ``position``."""
        raise SelectorSyntaxError.at(self.text, position, problem)

    def peek(self, ahead: int = 0) -> str:
        """Return the character ``ahead`` of the next one, or ``""`` past the end."""
        return self.text[self.pos + ahead : self.pos + ahead + 1]

    def skip_space(self) -> None:
        """Go to the next character that is no white space."""
        while self.peek().isspace():
            self.pos += 1

    def enter(self) -> None:
        """Open one more level at the current position."""
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        if self.depth > MAX_DEPTH:
            self.fail(self.pos, f"nested deeper than {MAX_DEPTH} levels; split the selector and join it in Python")

    def leave(self) -> None:
        """Close the level opened last."""
        self.depth -= 1

    def at_end(self) -> bool:
        """Tell whether an operand may end here."""
        return self.peek() in _ENDS or self.peek().isspace()

    def expect_end(self) -> None:
        """Raise unless an operand may end here."""
        if not self.at_end():
            self.stray()

    def stray(self) -> NoReturn:
        """Raise for a character that can't stand here."""
        char = self.peek()
        if char in "&|>-":
            self.fail(self.pos, f"the operator `{char}` needs a space on both sides")
        quoting = f"`{char}` can't stand here; a segment that holds it is quoted, such as 'a{char}b'"
        self.fail(self.pos, _STRAY.get(char, quoting))


# Names --------------------------------------------------------------------------------------------


def read_names(scan: Scanner) -> Names:
    """Read a pattern of segments, such as ``blocks[0:6].*.'odd name'``."""
    segments: list[Segment] = []
    while True:
        segments.append(_read_index(scan) if scan.peek() == "[" else _read_segment(scan))
        while scan.peek() == "[":
            segments.append(_read_index(scan))
        if scan.peek() != ".":
            break
        scan.pos += 1
    if not scan.at_end() and isinstance(segments[-1], Index):
        scan.fail(scan.pos, "a dot must follow `]`, as in `blocks[0:6].weight`")
    scan.expect_end()
    return Names(tuple(segments))


def _read_segment(scan: Scanner) -> Segment:
    start = scan.pos
    if scan.peek() == "." or scan.at_end():
        scan.fail(
            start, "this segment is empty; remove a dot, or write `*` for any one segment, `**` for any number"
        )
    if scan.text.startswith("**", start):
        scan.pos += 2
        if scan.peek() not in (".", "[") and not scan.at_end():
            _fail_deep(scan, start)
        return Deep()
    return Glob(_read_pieces(scan, in_braces=False))


def _read_pieces(scan: Scanner, *, in_braces: bool) -> Pieces:
    pieces: list[Piece] = []
    while piece := _read_piece(scan, in_braces=in_braces):
        if isinstance(piece, tuple):
            (literal,) = piece
            if pieces and isinstance(pieces[-1], str):
                pieces[-1] += literal
            else:
                pieces.append(literal)
        else:
            pieces.append(piece)
    if len(pieces) > 1 and "" in pieces:
        pieces = [piece for piece in pieces if piece != ""]
    return tuple(pieces)


def _read_piece(scan: Scanner, *, in_braces: bool) -> Star | Braces | tuple[str] | None:
    """Read one piece; a literal comes as a tuple, since it may be empty; None where the segment ends."""
    char = scan.peek()
    if char == "*":
        if scan.peek(1) == "*":
            _fail_deep(scan, scan.pos)
        scan.pos += 1
        return Star()
    if char == "{":
        return _read_braces(scan)
    if char and char in QUOTES:
        return (read_quoted(scan, dots=False),)
    if char and is_bare_char(char):
        start = scan.pos
        while scan.peek() and is_bare_char(scan.peek()):
            scan.pos += 1
        return (scan.text[start : scan.pos],)
    if char not in (".", "[") and not scan.at_end() and not (in_braces and char in ",}"):
        scan.stray()
    return None


def _fail_deep(scan: Scanner, position: int) -> NoReturn:
    scan.fail(
        position,
        "`**` stands for whole segments, alone between dots; write `*` for part of a segment, "
        "or `a.**` for everything under `a`",
    )


def _read_braces(scan: Scanner) -> Braces:
    start = scan.pos
    scan.enter()
    alternatives = []
    separator = ","
    while separator == ",":
        scan.pos += 1  # past `{` or `,`
        scan.skip_space()
        position = scan.pos
        alternatives.append(_read_pieces(scan, in_braces=True))
        scan.skip_space()
        separator = scan.peek()
        if not separator:
            scan.fail(start, "this `{` is never closed; add `}`")
        if separator == ".":
            scan.fail(scan.pos, "braces hold alternatives of one segment, no dots; write `a.b | c.d` instead")
        if separator not in ",}":
            scan.fail(scan.pos, f"`{separator}` can't stand here; braces hold alternatives such as `{{q,k,v}}`")
        if not alternatives[-1]:
            scan.fail(position, "this alternative is empty; write each one out, such as `{norm,norm1}`")
    scan.pos += 1
    scan.leave()
    return Braces(tuple(alternatives))


def read_quoted(scan: Scanner, *, dots: bool) -> str:
    """Read a quoted text; ``dots`` says whether it may hold dots."""
    start, quote = scan.pos, scan.peek()
    scan.pos += 1
    found = []
    while (char := scan.peek()) != quote:
        if not char:
            scan.fail(start, f"this quote is never closed; add {quote}")
        length = 1
        if char == "\\":
            char, length = _read_escape(scan)
        if char == "." and not dots:
            scan.fail(
                scan.pos, "a quoted segment holds no dot: dots part segments; quote each one, as in 'a b'.'c d'"
            )
        found.append(char)
        scan.pos += length
    scan.pos += 1
    return "".join(found)


def _read_escape(scan: Scanner) -> tuple[str, int]:
    """Return the character that the escape here stands for, and how long the escape is."""
    match = _ESCAPE.match(scan.text, scan.pos)
    if match is None:
        scan.fail(
            scan.pos,
            "in quotes a backslash stands only before a quote or a backslash, and in \\n, \\r, \\t, \\x1b and "
            "\\u202e; a regular expression is written re:'...'",
        )
    return match[0].encode("ascii").decode("unicode_escape"), len(match[0])


def _read_index(scan: Scanner) -> Index:
    start = scan.pos
    match = _INDEX.match(scan.text, start + 1)
    assert match is not None  # every part of the expression is optional
    low, colon, high = match.groups()
    scan.pos = match.end()
    char = scan.peek()
    if char != "]" or not (low or colon):
        _fail_index(scan, start)
    scan.pos += 1
    return Index(None if low is None else int(low), None if high is None else int(high), single=not colon)


def _fail_index(scan: Scanner, start: int) -> NoReturn:
    char = scan.peek()
    if char == ":":
        scan.fail(scan.pos, "a slice has no step; write `[0:6]`")
    if char == ",":
        scan.fail(scan.pos, "brackets hold one number or one slice; write `.{0,3}` for a choice")
    if char == "*":
        scan.fail(scan.pos, "brackets hold numbers; write `[:]` for every number, or `.*` for any segment")
    if char.isdecimal():
        scan.fail(scan.pos, "a number here has at most 18 digits")
    if char.isidentifier() and not scan.text[start + 1 : scan.pos].strip():
        scan.fail(start, "a field stands alone; put ` & ` before it, as in `**.weight & [ndim>=2]`")
    if "]" not in scan.text[start:]:
        scan.fail(start, "this `[` is never closed; add `]`")
    scan.fail(scan.pos, "brackets hold a number or a slice, such as `[3]`, `[-1]` or `[0:6]`")
