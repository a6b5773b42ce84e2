"""Evaluates a selector's tree over a listing.

What is selected are *items*. In the whole listing an item is a row. Right of ``@Attention >`` an item is a row as
seen from one module of that class, under names relative to it; a row in several such modules is several items
there, so that ``@A > (a - b)`` is decided for each module by itself.

Every node takes candidates and returns those of them that it selects. ``&`` and ``-`` hand on only what their left
side left, so a field is asked only of rows that still matter.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, NoReturn

from torchkeep.errors import MissingFieldError
from torchkeep.names import quote_name
from torchkeep.selectors.patterns import NamePattern
from torchkeep.selectors.scopes import Scope, Source
from torchkeep.selectors.syntax import (
    Chain,
    Field,
    Inside,
    Names,
    Not,
    Regex,
    State,
    Type,
    Union,
    Where,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.rows import Listing, Row
    from torchkeep.selectors.syntax import Node


def select_rows(node: Node, listing: Listing) -> list[int]:
    """Return the positions of the rows that ``node`` selects, in ascending order.

    Raises:
        MissingFieldError: the listing does not know what the selector asks about.
    """
    return evaluate(node, Scope.whole(Source(listing)), range(len(listing.rows)))


def evaluate(node: Node, scope: Scope, items: Sequence[int]) -> list[int]:
    """Return those of ``items`` that ``node`` selects, in their order."""
    return _EVALUATORS[type(node)](node, scope, items)


def _names(node: Names, scope: Scope, items: Sequence[int]) -> list[int]:
    pattern = NamePattern(node)
    source, roots = scope.source, scope.roots
    if roots is None or not pattern.from_end:
        return scope.named(items, pattern.tester(source.highest))
    testers: dict[str, Callable[[str], bool]] = {}
    found = []
    for item in items:
        root = roots[item]
        if root not in testers:
            testers[root] = pattern.tester(_highest_from(source, root))
        if any(map(testers[root], scope.names_of(item))):
            found.append(item)
    return found


def _highest_from(source: Source, root: str) -> Callable[[str | None], int | None]:
    if root == "":
        return source.highest
    return lambda path: source.highest(root if path is None else f"{root}.{path}")


def _regex(node: Regex, scope: Scope, items: Sequence[int]) -> list[int]:
    matches = re.compile(node.pattern).fullmatch
    return scope.named(items, lambda name: matches(name) is not None)


def _type(node: Type, scope: Scope, items: Sequence[int]) -> list[int]:
    paths = scope.source.paths_of((node,))
    if scope.roots is None:
        return scope.named(items, lambda name: name.rpartition(".")[0] in paths)
    return [item for item in items if any(owner in paths for owner in scope.owners_of(item))]


def _inside(node: Inside, scope: Scope, items: Sequence[int]) -> list[int]:
    inner, origins = scope.inside(items, scope.source.paths_of(node.types))
    found = evaluate(node.inner, inner, range(len(inner.rows)))
    stems = {origin for item in found for origin in origins[item]}
    return [item for item in items if item in stems]


def _where(node: Where, scope: Scope, items: Sequence[int]) -> list[int]:
    return [item for item in items if node.function(scope.row(item))]


def _not(node: Not, scope: Scope, items: Sequence[int]) -> list[int]:
    return _without(items, evaluate(node.inner, scope, items))


def _chain(node: Chain, scope: Scope, items: Sequence[int]) -> list[int]:
    found = evaluate(node.first, scope, items)
    for sign, step in node.rest:
        hit = evaluate(step, scope, found)
        found = hit if sign == "&" else _without(found, hit)
    return found


def _union(node: Union, scope: Scope, items: Sequence[int]) -> list[int]:
    hit = {item for part in node.parts for item in evaluate(part, scope, items)}
    return [item for item in items if item in hit]


def _without(items: Sequence[int], removed: Sequence[int]) -> list[int]:
    gone = set(removed)
    return [item for item in items if item not in gone]


# What rows know -----------------------------------------------------------------------------------


def _state(node: State, scope: Scope, items: Sequence[int]) -> list[int]:
    holds = STATES[node.name]
    found, unknown = [], []
    for item in items:
        held = holds(scope.row(item))
        if held is None:
            unknown.append(item)
        elif held:
            found.append(item)
    if unknown:
        _fail_unknown(node, scope, unknown, "name the tensors instead, or use the live model")
    return found


def _is_param(row: Row) -> bool | None:
    return None if row.kind is None else row.kind == "parameter"


def _is_buffer(row: Row) -> bool | None:
    return None if row.kind is None else row.kind == "buffer"


def _is_trainable(row: Row) -> bool | None:
    return False if row.kind == "buffer" else row.trainable


def _is_frozen(row: Row) -> bool | None:
    if row.kind == "buffer" or row.trainable:
        return False
    return None if row.trainable is None else _is_param(row)


STATES: dict[str, Callable[[Row], bool | None]] = {
    "param": _is_param,
    "buffer": _is_buffer,
    "trainable": _is_trainable,
    "frozen": _is_frozen,
    "tied": lambda row: bool(row.aliases),
    "meta": lambda row: row.device.partition(":")[0] == "meta",
    "lazy": lambda row: row.lazy,
}
"""Whether a row has a state; None where its source does not say."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _field(node: Field, scope: Scope, items: Sequence[int]) -> list[int]:
    if node.name == "device":
        return [item for item in items if _is_on(scope.row(item), node.value) == (node.comparison == "=")]
    if node.name != "dtype" and (lazy := [item for item in items if scope.row(item).lazy]):
        _fail_unknown(node, scope, lazy, f"run the model once, or leave such rows out first: `~:lazy & {node}`")
    field, compare = operator.attrgetter(node.name), _COMPARE[node.comparison]
    return [item for item in items if compare(field(scope.row(item)), node.value)]


def _is_on(row: Row, device: object) -> bool:
    return row.device == device or row.device.partition(":")[0] == device


def _fail_unknown(node: State | Field, scope: Scope, items: Sequence[int], remedy: str) -> NoReturn:
    named = [quote_name(scope.row(item).name) for item in items[:3]]
    more = f" and {len(items) - len(named)} more" if len(items) > len(named) else ""
    raise MissingFieldError(
        f"`{node}` asks what {scope.source.listing.source} does not know of {', '.join(named)}{more}; {remedy}"
    )


_EVALUATORS: dict[type, Callable[[Any, Scope, Sequence[int]], list[int]]] = {
    Names: _names,
    Regex: _regex,
    Type: _type,
    Inside: _inside,
    State: _state,
    Field: _field,
    Where: _where,
    Not: _not,
    Chain: _chain,
    Union: _union,
}
