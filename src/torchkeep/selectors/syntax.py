r"""What a selector says, as a tree, and how each node is spelled.

    Names     encoder.*.weight, blocks[0:6].**, 0.'block 1'.bias     a pattern over the segments of a name
    Regex     re:'h\.\d+\..*'                                  a regular expression over the whole name
    Type      @Linear, @=Linear, @my.pkg.Layer                       directly in a module of a class
    Inside    (@Attention | @MLP) > **.weight                        anywhere in a module of a class
    State     :param                                                 kind or state
    Field     [ndim>=2]                                              a comparison
    Where     a Python function over rows                            has no text of its own
    Not       ~a
    Chain     a & b - c                                              from left to right
    Union     a | b

``str(node)`` is canonical: it parses to an equal node, except where a `Where` is part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct

from torchkeep.names import quote_segment, quote_text
from torchkeep.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

StateName: TypeAlias = Literal["param", "buffer", "trainable", "frozen", "tied", "meta", "lazy"]
FieldName: TypeAlias = Literal["ndim", "numel", "nbytes", "dtype", "device", "shape"]
Comparison: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
FieldValue: TypeAlias = int | float | str | tuple[int, ...]


class Star(Struct, frozen=True):
    """``*`` in a segment: any characters, none too, but no dot."""

    def __str__(self) -> str:
        return "*"


class Braces(Struct, frozen=True):
    """``{q,k,v}`` in a segment: one of several alternatives, each a row of pieces."""

    alternatives: tuple[Pieces, ...]

    def __str__(self) -> str:
        return "{" + ",".join(map(_spell_pieces, self.alternatives)) + "}"


Piece: TypeAlias = str | Star | Braces
Pieces: TypeAlias = tuple[Piece, ...]


class Glob(Struct, frozen=True):
    """One segment of a name; a single literal piece is the segment itself."""

    pieces: Pieces

    @property
    def literal(self) -> str | None:
        """The segment that alone matches, or None where several may."""
        piece = self.pieces[0]
        return piece if len(self.pieces) == 1 and isinstance(piece, str) else None

    def __str__(self) -> str:
        return _spell_pieces(self.pieces)


class Deep(Struct, frozen=True):
    """``**``: any number of segments, none too."""

    def __str__(self) -> str:
        return "**"


class Index(Struct, frozen=True):
    """One numeric segment by its value: ``[3]``, ``[-1]``, ``[0:6]``, ``[-2:]``.

    Attributes:
        low: the first value; None for the smallest. Negative values count from the highest present, which is -1.
        high: one past the last value; None for no end.
        single: whether only ``low`` is meant, as in ``[3]``.
    """

    low: int | None
    high: int | None = None
    single: bool = False

    @property
    def from_end(self) -> bool:
        """Whether what it means depends on the highest number present."""
        return (self.low or 0) < 0 or (self.high or 0) < 0

    def __str__(self) -> str:
        low, high = ("" if bound is None else str(bound) for bound in (self.low, self.high))
        return f"[{low}]" if self.single else f"[{low}:{high}]"


Segment: TypeAlias = Glob | Deep | Index


class Names(Struct, frozen=True):
    """A pattern over the segments of a name, anchored at both ends."""

    segments: tuple[Segment, ...]

    @property
    def literal(self) -> str | None:
        """The name that alone matches, or None where several may."""
        found = []
        for segment in self.segments:
            literal = segment.literal if isinstance(segment, Glob) else None
            if literal is None:
                return None
            found.append(literal)
        return ".".join(found)

    def __str__(self) -> str:
        dotted = "".join(
            str(segment) if isinstance(segment, Index) else f".{segment}" for segment in self.segments
        )
        return dotted.removeprefix(".")


class Regex(Struct, frozen=True):
    """A regular expression that must match the whole name.

    Attributes:
        pattern: as `re` takes it.
    """

    pattern: str

    def __str__(self) -> str:
        unescaped = _without_escapes(self.pattern)
        quote = '"' if "'" in unescaped else "'"
        return f"re:{quote}{self.pattern}{quote}"


class Type(Struct, frozen=True):
    """A module's class.

    Attributes:
        name: the class's name, or a dotted path that ends with it.
        exact: whether subclasses are left out.
    """

    name: str
    exact: bool = False

    def __str__(self) -> str:
        bare = all(part.isidentifier() for part in self.name.split("."))
        spelled = self.name if bare else quote_text(self.name)
        return f"@{'=' if self.exact else ''}{spelled}"


class Inside(Struct, frozen=True):
    """``@Attention > **.weight``: the inner node on names relative to each module of one of the classes."""

    types: tuple[Type, ...]
    inner: Node

    def __str__(self) -> str:
        outer = " | ".join(map(str, self.types))
        return f"{outer if len(self.types) == 1 else f'({outer})'} > {_spell_operand(self.inner)}"


class State(Struct, frozen=True):
    """A kind or a state that a tensor has or has not."""

    name: StateName

    def __str__(self) -> str:
        return f":{self.name}"


class Field(Struct, frozen=True):
    """A comparison with a field of the row.

    Attributes:
        name: the field.
        comparison: only ``=`` and ``!=`` for dtype, device and shape.
        value: a number for ndim, numel, nbytes; torch's dtype name; a device; a shape.
    """

    name: FieldName
    comparison: Comparison
    value: FieldValue

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, tuple):
            value = "x".join(map(str, value)) or "()"
        return f"[{self.name}{self.comparison}{value}]"


class Where(Struct, frozen=True):
    """A Python function that decides."""

    function: Callable[[Row], bool]

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"where({name})"


class Not(Struct, frozen=True):
    """Everything but the inner node."""

    inner: Node

    def __str__(self) -> str:
        return f"~{_spell_operand(self.inner)}"


class Chain(Struct, frozen=True):
    """``a & b - c``: the first node, then each next one kept (``&``) or taken away (``-``), from left to right."""

    first: Node
    rest: tuple[tuple[Literal["&", "-"], Node], ...]

    def __str__(self) -> str:
        rest = (f" {sign} {_spell_operand(node)}" for sign, node in self.rest)
        return f"{_spell_operand(self.first)}{''.join(rest)}"


class Union(Struct, frozen=True):
    """``a | b``: what any part selects."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


Node: TypeAlias = Names | Regex | Type | Inside | State | Field | Where | Not | Chain | Union


def union(parts: Iterable[Node]) -> Node:
    """Join nodes with ``|``; unions among them are laid flat, so that long ones nest no deeper than short ones."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Union) else (part,))
    return flat[0] if len(flat) == 1 else Union(tuple(flat))


def chain(first: Node, rest: Iterable[tuple[Literal["&", "-"], Node]]) -> Node:
    """Follow a node with ``&`` and ``-`` steps; a chain in first place is laid flat."""
    steps = tuple(rest)
    if not steps:
        return first
    return Chain(first.first, first.rest + steps) if isinstance(first, Chain) else Chain(first, steps)


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes directly in ``node``."""
    match node:
        case Inside():
            return (*node.types, node.inner)
        case Not():
            return (node.inner,)
        case Chain():
            return (node.first, *(step for _, step in node.rest))
        case Union():
            return node.parts
        case _:
            return ()


def _spell_pieces(pieces: Pieces) -> str:
    return "".join(quote_segment(piece) if isinstance(piece, str) else str(piece) for piece in pieces)


def _spell_operand(node: Node) -> str:
    return f"({node})" if isinstance(node, Chain | Union) else str(node)


def _without_escapes(pattern: str) -> str:
    """Drop each backslash with the character that it escapes."""
    plain, escaped = [], False
    for char in pattern:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            plain.append(char)
    return "".join(plain)
