"""Reads a whole selector: operands joined by operators.

    union    = chain ("|" chain)*
    chain    = unary (("&" | "-") unary)*           from left to right
    unary    = "~" unary | operand | classes ">" unary
    classes  = class | "(" class ("|" class)* ")"
    operand  = names | regex | class | state | field | "(" union ")"

Every operator but ``~`` stands between spaces, since ``-`` is also a character of names. Time is linear in the
length of the text; nesting is bounded, so that no text exhausts Python's stack.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from torchkeep.selectors.atoms import read_field, read_regex, read_state, read_type, starts_field
from torchkeep.selectors.scanner import Scanner, read_names
from torchkeep.selectors.syntax import Inside, Node, Not, Type, Union, chain, union

if TYPE_CHECKING:
    from typing import NoReturn

_OPERATORS = "&|->"
_WORDS = {"and": "&", "or": "|", "not": "~", "minus": "-"}
_WORD = re.compile(r"\w+")
_LONE_MINUS = re.compile(r"-\s+[^\s)&|>-]")
"""A minus that an operand follows; behind a segment called ``-`` stands an operator or nothing."""


class Parsed(NamedTuple):
    """A selector's tree, and how deep it nests."""

    node: Node
    depth: int


def parse(text: str) -> Parsed:
    """Read a selector.

    Raises:
        SelectorSyntaxError: the text is none; the caret stands at the first character that does not fit.
    """
    scan = Scanner(text)
    scan.skip_space()
    if not scan.peek():
        scan.fail(0, "the selector is empty; write `**` for everything")
    node = _read_union(scan)
    if scan.peek():
        scan.fail(scan.pos, "this `)` closes nothing; remove it, or add `(`")
    return Parsed(node, scan.deepest)


def _read_union(scan: Scanner) -> Node:
    parts = [_read_chain(scan)]
    while _take(scan, "|"):
        parts.append(_read_chain(scan))
    return union(parts)


def _read_chain(scan: Scanner) -> Node:
    first = _read_unary(scan)
    steps = []
    while sign := _take(scan, "&") or _take(scan, "-"):
        steps.append((cast(Literal["&", "-"], sign), _read_unary(scan)))
    return chain(first, steps)


def _read_unary(scan: Scanner) -> Node:
    scan.skip_space()
    if scan.peek() == "~":
        scan.enter()
        scan.pos += 1
        inner = _read_unary(scan)
        scan.leave()
        return Not(inner)
    start = scan.pos
    operand = _read_operand(scan)
    end = scan.pos
    if not _take(scan, ">"):
        return operand
    types = operand.parts if isinstance(operand, Union) else (operand,)
    if not all(isinstance(part, Type) for part in types):
        where = scan.text.index(">", end)
        what = scan.text[start:end]
        scan.fail(where, f"`>` stands after a class, such as `@Attention > **.weight`; `{what}` is none")
    scan.enter()
    inner = _read_unary(scan)
    scan.leave()
    return Inside(cast(tuple[Type, ...], types), inner)


def _read_operand(scan: Scanner) -> Node:
    char = scan.peek()
    if scan.text.startswith("re:", scan.pos):
        return read_regex(scan)
    if char == "(":
        return _read_group(scan)
    if char == "@":
        return read_type(scan)
    if char == ":":
        return read_state(scan)
    if char == "[" and starts_field(scan):
        return read_field(scan)
    _expect_operand(scan)
    return read_names(scan)


def _read_group(scan: Scanner) -> Node:
    start = scan.pos
    scan.enter()
    scan.pos += 1
    scan.skip_space()
    if scan.peek() == ")":
        scan.fail(scan.pos, "these parentheses hold nothing; write a selector in them or remove them")
    inner = _read_union(scan)
    if not scan.peek():
        scan.fail(start, "this `(` is never closed; add `)`")
    scan.pos += 1
    scan.leave()
    scan.expect_end()
    return inner


def _expect_operand(scan: Scanner) -> None:
    """Raise where an operator stands in the place of an operand, or nothing at all."""
    char = scan.peek()
    if char in ("", ")"):
        before = scan.text[: scan.pos].rstrip()
        if not before:
            scan.fail(scan.pos, f"a selector is expected before `{char}`")
        scan.fail(len(before) - 1, f"a selector is expected after `{before[-1]}`")
    if char in "&|>" or _LONE_MINUS.match(scan.text, scan.pos):
        scan.fail(scan.pos, f"a selector is expected before `{char}`")


def _take(scan: Scanner, wanted: str) -> str:
    """Go past the operator ``wanted`` if it stands next, after an operand, and return it; else return ``""``."""
    after = scan.pos
    scan.skip_space()
    char, following = scan.peek(), scan.peek(1)
    if char in ("", ")"):
        return ""
    if char not in _OPERATORS:
        _fail_joint(scan, after)
    if following not in ("", ")") and not following.isspace():
        _fail_spacing(scan, char, following)
    if char != wanted:
        return ""
    scan.pos += 1
    return char


def _fail_spacing(scan: Scanner, char: str, following: str) -> NoReturn:
    """Raise for an operator with a space before but none after it."""
    if following == char:
        scan.fail(scan.pos, f"write one `{char}`")
    name = _WORD.match(scan.text, scan.pos + 1)
    example = f"write `a {char} b`"
    if char == "-" and name:
        example = f"write `- {name[0]}`, or `'-{name[0]}'` if the segment is called so"
    scan.fail(scan.pos, f"the operator `{char}` needs a space on both sides; {example}")


def _fail_joint(scan: Scanner, after: int) -> NoReturn:
    """Raise for two operands without an operator between them."""
    word = _WORD.match(scan.text, scan.pos)
    if word and word[0].lower() in _WORDS:
        scan.fail(scan.pos, f"write `{_WORDS[word[0].lower()]}` for `{word[0]}`")
    if scan.text[after - 1] == "-":
        scan.fail(after - 1, "the operator `-` needs a space on both sides; write `a - b`")
    scan.fail(
        scan.pos, "an operator is missing here: one of & - | between spaces; a segment with a space is quoted"
    )
