"""Says why a selector matches nothing: which part of it found nothing, and what is near.

Only run when there is an error to write, so it may evaluate parts of the selector, and corrected ones, again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from torchkeep.errors import MissingFieldError, NoMatchError
from torchkeep.selectors.matching import evaluate
from torchkeep.selectors.mending import explain_names, explain_regex
from torchkeep.selectors.scopes import Scope, inside, is_type, layers, modules_of, under, whole
from torchkeep.selectors.suggest import alternatives, nearest
from torchkeep.selectors.syntax import (
    Chain,
    Deep,
    Field,
    Inside,
    Names,
    Node,
    Not,
    Regex,
    State,
    Type,
    Union,
    Where,
    chain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.rows import Listing

_SHOWN = 3
LENIENCY = "where that is all right, use tk.select(..., allow_empty=True)"
"""What to do where nothing is near; the command line says something else."""


class Reason(NamedTuple):
    """Why a node matches nothing, as a clause, and the nearest selectors that match something."""

    why: str
    nearest: tuple[Node, ...] = ()


def no_match(node: Node, text: str, listing: Listing) -> NoMatchError:
    """Build the error for a selector that selects nothing.

    Args:
        node: the selector's tree.
        text: the selector as the user knows it.
        listing: what it was evaluated on.
    """
    scope = whole(listing)
    items = range(len(listing.rows))
    why, found = _explain(node, scope, items) if items else Reason(f"{listing.source} has no tensors")
    close = tuple(dict.fromkeys(map(str, found)))[:_SHOWN]
    hint = f"did you mean {alternatives(close)}?" if close else LENIENCY
    error = NoMatchError(f"`{text}` matches nothing in {listing.source}: {why}; {hint}")
    error.wanted, error.nearest = text, close
    return error


def _explain(node: Node, scope: Scope, items: Sequence[int]) -> Reason:
    """Explain why ``node`` selects none of ``items``, of which there are some."""
    return _EXPLAINERS[type(node)](node, scope, items)


def _explain_names(node: Names, scope: Scope, items: Sequence[int]) -> Reason:
    return Reason(*explain_names(node, scope, items))


def _explain_regex(node: Regex, scope: Scope, items: Sequence[int]) -> Reason:
    return Reason(*explain_regex(node, scope, items))


def _explain_state(node: State, scope: Scope, items: Sequence[int]) -> Reason:
    del scope, items
    return Reason(f"no tensor is `{node}`")


def _explain_not(node: Not, scope: Scope, items: Sequence[int]) -> Reason:
    del scope, items
    return Reason(f"`{node.inner}` matches everything")


def _explain_where(node: Where, scope: Scope, items: Sequence[int]) -> Reason:
    del scope
    return Reason(f"`{node}` is true of none of {len(items)} tensors")


def _explain_type(node: Type, scope: Scope, items: Sequence[int]) -> Reason:
    if not _is_present([node], scope):
        classes = _near_classes(node, scope)
        close = [one if evaluate(one, scope, items) else Inside((one,), Names((Deep(),))) for one in classes]
        return Reason(f"no module is of class `{node}`", tuple(close))
    around = Inside((node,), Names((Deep(),)))
    why = f"modules of class `{node}` own no tensor directly"
    if evaluate(around, scope, items):
        return Reason(f"{why}, only through modules in them", (around,))
    return Reason(f"{why} or through modules in them")


def _explain_inside(node: Inside, scope: Scope, items: Sequence[int]) -> Reason:
    what = alternatives(map(str, node.types))
    if not _is_present(node.types, scope):
        corrected = [
            Inside((near,), node.inner) for one in node.types for near in _near_classes(one, scope)[:_SHOWN]
        ]
        close: list[Node] = []
        for one in corrected:
            close += [one] if evaluate(one, scope, items) else _explain_inside(one, scope, items).nearest
        return Reason(f"no module is of class {what}", tuple(close))
    roots = layers(scope.catalogue.paths, under(scope, modules_of(scope.catalogue, node.types)))
    # Where such modules lie in one another, the outermost see every name that the others see.
    inner, origins = inside(scope, items, roots[0] if roots else [])
    if not origins:
        return Reason(f"modules of class {what} hold no tensor")
    why, near = _explain(node.inner, inner, range(len(origins)))
    return Reason(f"in modules of class {what}, {why}", tuple(Inside(node.types, one) for one in near))


def _is_present(types: Sequence[Type], scope: Scope) -> bool:
    """Tell whether any module, one without tensors too, is of one of ``types``."""
    infos = {id(info): info for info in (scope.catalogue.modules or {}).values()}.values()
    return any(is_type(info, one) for info in infos for one in types)


def _near_classes(node: Type, scope: Scope) -> list[Type]:
    """Return the classes present that may have been meant: of the same name elsewhere, else of a similar one."""
    infos = {id(info): info for info in (scope.catalogue.modules or {}).values()}.values()
    classes = [one for info in infos for one in (info.lineage[:1] if node.exact else info.lineage)]
    wanted = node.name.rpartition(".")[2]
    elsewhere = dict.fromkeys(f"{module}.{name}" for module, name in classes if name.rpartition(".")[2] == wanted)
    close = elsewhere or nearest(wanted, (name.rpartition(".")[2] for _, name in classes))
    return [Type(name, node.exact) for name in close]


def _explain_field(node: Field, scope: Scope, items: Sequence[int]) -> Reason:
    rows = [scope.row(item) for item in items]
    if node.name in ("ndim", "numel", "nbytes"):
        values = [getattr(row, node.name) for row in rows]
        low, high = min(values), max(values)
        found = f"runs from {low} to {high}" if low < high else f"is always {low}"
        return Reason(f"no tensor has `{node}`: {node.name} {found}")
    counts = Counter(getattr(row, node.name) for row in rows)
    present = [Field(node.name, "=", value) for value, _ in counts.most_common(_SHOWN)]
    return Reason(f"no tensor has `{node}`", tuple(present) if node.comparison == "=" else ())


def _explain_chain(node: Chain, scope: Scope, items: Sequence[int]) -> Reason:
    found = evaluate(node.first, scope, items)
    if not found:
        return _of_part(node.first, scope, items)
    position = 0
    while True:  # until the step that leaves nothing
        sign, step = node.rest[position]
        hit = set(evaluate(step, scope, found))
        left = [item for item in found if (item in hit) == (sign == "&")]
        if not left:
            break
        found, position = left, position + 1
    before = chain(node.first, node.rest[:position])
    if sign == "-":
        return Reason(f"`{step}` takes away all that `{before}` matches")
    if _finds_nothing(step, scope, items):
        return _of_part(step, scope, items)
    return Reason(f"no tensor that `{before}` matches is matched by `{step}` too")


def _finds_nothing(node: Node, scope: Scope, items: Sequence[int]) -> bool:
    try:
        return not evaluate(node, scope, items)
    except MissingFieldError:  # it is asked here of rows that the selector had left out before it asked
        return False


def _explain_union(node: Union, scope: Scope, items: Sequence[int]) -> Reason:
    reasons = [_of_part(part, scope, items) for part in node.parts[:_SHOWN]]
    more = len(node.parts) - len(reasons)
    whys = [reason.why for reason in reasons] + ([f"nor do {more} more parts"] if more else [])
    return Reason("; ".join(whys), tuple(one for reason in reasons for one in reason.nearest))


def _of_part(node: Node, scope: Scope, items: Sequence[int]) -> Reason:
    why, close = _explain(node, scope, items)
    return Reason(f"`{node}` finds nothing, as {why}", close)


_EXPLAINERS: dict[type, Callable[[Any, Scope, Sequence[int]], Reason]] = {
    Names: _explain_names,
    Regex: _explain_regex,
    Type: _explain_type,
    Inside: _explain_inside,
    State: _explain_state,
    Field: _explain_field,
    Where: _explain_where,
    Not: _explain_not,
    Chain: _explain_chain,
    Union: _explain_union,
}
