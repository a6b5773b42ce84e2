"""The selector language: which tensors of a listing are meant.

One parser reads it (`torchkeep.selectors.parser`), one evaluator answers it (`torchkeep.selectors.matching`), the
same way for a live module, a state_dict and a file. The language is described in docs/selectors.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from torchkeep.errors import SelectorError, SelectorSyntaxError
from torchkeep.selectors.matching import select_rows
from torchkeep.selectors.parser import parse
from torchkeep.selectors.scanner import MAX_DEPTH
from torchkeep.selectors.syntax import Chain, Names, Not, State, Union, Where, chain, children, union

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.rows import Listing, Row
    from torchkeep.selectors.syntax import Node

__all__ = ["Selector", "as_literal", "as_selector", "select", "where"]


class Selector:
    """Which tensors are meant; made by `tk.select` and `tk.where`, and taken wherever a string selector is.

    ``a | b``, ``a & b``, ``a - b`` and ``~a`` combine selectors as in the language; one side may be a string. A
    combination may be empty only if every Selector in it may.
    """

    __slots__ = ("_allow_empty", "_depth", "_node", "_text")

    def __init__(self, node: Node, text: str | None, depth: int, *, allow_empty: bool = False) -> None:
        self._node, self._text, self._depth = node, text, depth
        self._allow_empty = allow_empty

    @property
    def allow_empty(self) -> bool:
        """Whether matching nothing is no error."""
        return self._allow_empty

    @property
    def text(self) -> str:
        """The selector as it was given; of a combination, its canonical spelling.

        A part made by `tk.where` shows as ``where(<name of the function>)``, which can't be pasted back.
        """
        return str(self._node) if self._text is None else self._text

    @property
    def mentions_buffers(self) -> bool:
        """Whether ``:buffer`` stands anywhere in the selector."""
        pending: list[Node] = [self._node]
        while pending:
            node = pending.pop()
            if node == State("buffer"):
                return True
            pending.extend(children(node))
        return False

    def indices(self, listing: Listing) -> list[int]:
        """Return the positions of the selected rows, in ascending order.

        A row is matched under any of its names, and is there once.

        Raises:
            NoMatchError: no row is selected, and the selector was not made with ``allow_empty=True``.
            MissingFieldError: the listing does not know what the selector asks about.
        """
        found = select_rows(self._node, listing)
        if not found and not self.allow_empty:
            from torchkeep.selectors.explaining import no_match  # noqa: PLC0415 - only errors need it

            raise no_match(self._node, self.text, listing)
        return found

    def __or__(self, other: str | Selector) -> Selector:
        return _combined(self, other, "|")

    def __and__(self, other: str | Selector) -> Selector:
        return _combined(self, other, "&")

    def __sub__(self, other: str | Selector) -> Selector:
        return _combined(self, other, "-")

    def __ror__(self, other: str) -> Selector:
        return _combined(other, self, "|")

    def __rand__(self, other: str) -> Selector:
        return _combined(other, self, "&")

    def __rsub__(self, other: str) -> Selector:
        return _combined(other, self, "-")

    def __invert__(self) -> Selector:
        return _built(Not(self._node), self._depth + 1, allow_empty=self.allow_empty)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selector):
            return NotImplemented
        return self._node == other._node and self.allow_empty == other.allow_empty

    def __hash__(self) -> int:
        return hash((self._node, self.allow_empty))

    def __repr__(self) -> str:
        return f"select({self.text!r}{', allow_empty=True' if self.allow_empty else ''})"


def as_selector(expr: str | Selector) -> Selector:
    """Return ``expr`` itself if it is a Selector, else the selector that it spells.

    Raises:
        SelectorSyntaxError: the text is no selector.
        SelectorError: ``expr`` is neither text nor a Selector.
    """
    if isinstance(expr, Selector):
        return expr
    if not isinstance(expr, str):
        raise SelectorError(f"a selector is a string or a Selector, not {type(expr).__name__}: {expr!r}")
    node, depth = parse(expr)
    return Selector(node, expr.strip(), depth)


def select(expr: str | Selector, *, allow_empty: bool = False) -> Selector:
    """Make a selector of its text.

    Args:
        expr: the text, or a Selector, whose ``allow_empty`` then makes way for the one given here.
        allow_empty: whether matching nothing is no error.

    Raises:
        SelectorSyntaxError: the text is no selector; the error shows it with a caret.
    """
    found = as_selector(expr)
    return Selector(found._node, found._text, found._depth, allow_empty=allow_empty)  # noqa: SLF001 - its own kind


def where(fn: Callable[[Row], bool]) -> Selector:
    """Make a selector of a function.

    Args:
        fn: takes a row (name, shape, dtype, ...) and tells whether it is meant.

    Raises:
        SelectorError: ``fn`` can't be called.
    """
    if not callable(fn):
        raise SelectorError(
            f"where() takes a function of a row, not {type(fn).__name__}; selectors are for select()"
        )
    return _built(Where(fn), 0, allow_empty=False)


def as_literal(text: str) -> str | None:
    """Return the one name that ``text``, read as a selector, spells out; None where it is no plain name.

    ``"0.'block 1'.bias"`` spells ``"0.block 1.bias"``; ``"0.*.bias"`` and ``":param"`` spell none.
    """
    try:
        node = parse(text).node
    except SelectorSyntaxError:
        return None
    return node.literal if isinstance(node, Names) else None


def _combined(left: str | Selector, right: str | Selector, sign: Literal["|", "&", "-"]) -> Selector:
    operands: tuple[Any, Any] = (left, right)  # Python hands over whatever stood beside the operator
    if not all(isinstance(operand, str | Selector) for operand in operands):
        return cast(Selector, NotImplemented)  # which makes Python raise its TypeError
    first, second = map(as_selector, operands)
    left_node, right_node = first._node, second._node  # noqa: SLF001 - its own kind
    # Unions, and chains on the left, are laid flat: they do not nest.
    flat_left = isinstance(left_node, Union if sign == "|" else Chain)
    flat_right = sign == "|" and isinstance(right_node, Union)
    depth = max(first._depth + (not flat_left), second._depth + (not flat_right))  # noqa: SLF001 - same
    node = union([left_node, right_node]) if sign == "|" else chain(left_node, [(sign, right_node)])
    lenient = all(operand.allow_empty for operand in operands if isinstance(operand, Selector))
    return _built(node, depth, allow_empty=lenient)


def _built(node: Node, depth: int, *, allow_empty: bool) -> Selector:
    if depth > MAX_DEPTH:
        raise SelectorError(f"this selector nests deeper than {MAX_DEPTH} levels; join its parts with fewer steps")
    return Selector(node, None, depth, allow_empty=allow_empty)
