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
from torchkeep.names import prefixes, quote_name
from torchkeep.selectors.patterns import NamePattern
from torchkeep.selectors.scopes import Scope, inside, layers, modules_of, under, whole
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
    children,
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
    return evaluate(node, whole(listing), range(len(listing.rows)))


def evaluate(node: Node, scope: Scope, items: Sequence[int]) -> list[int]:
    """Return those of ``items`` that ``node`` selects, in their order."""
    return _EVALUATORS[type(node)](node, scope, items)


def _names(node: Names, scope: Scope, items: Sequence[int]) -> list[int]:
    return scope.named(items, NamePattern(node).fits(scope.catalogue, scope.roots))


def _regex(node: Regex, scope: Scope, items: Sequence[int]) -> list[int]:
    matches = re.compile(node.pattern).fullmatch
    return list(dict.fromkeys(item for item, text in scope.texts(items) if matches(text)))


def _type(node: Type, scope: Scope, items: Sequence[int]) -> list[int]:
    paths = scope.catalogue.paths
    owning = bytearray(len(paths.parents))
    for path in _modules(scope, (node,)):
        owning[path] = 1
    return scope.named(items, [owning[owner] for owner in paths.owners])


def _inside(node: Inside, scope: Scope, items: Sequence[int]) -> list[int]:
    roots = under(scope, _modules(scope, node.types))
    stems: set[int] = set()
    for layer in [roots] if _distributes(node.inner) else layers(scope.catalogue.paths, roots):
        inner, origins = inside(scope, items, layer)
        stems.update(origins[item] for item in evaluate(node.inner, inner, range(len(origins))))
    return [item for item in items if item in stems]


def _modules(scope: Scope, types: tuple[Type, ...]) -> list[int]:
    if scope.catalogue.modules is None:
        raise MissingFieldError(
            f"`{types[0]}` asks for a module's class, which {scope.catalogue.source} does not know; "
            "name the tensors instead, or use the live model"
        )
    return modules_of(scope.catalogue, types)


def _distributes(node: Node) -> bool:
    """Tell whether a row is selected as seen from several roots at once when it is as seen from one of them.

    Then modules inside one another need not be entered one after the other.
    """
    if isinstance(node, Names | Type) or _ignores_roots(node):
        return True
    if isinstance(node, Inside):
        return _distributes(node.inner)
    if isinstance(node, Union):
        return all(map(_distributes, node.parts))
    return (
        isinstance(node, Chain) and _distributes(node.first) and all(_ignores_roots(step) for _, step in node.rest)
    )


def _ignores_roots(node: Node) -> bool:
    """Tell whether a node asks only about rows, not about names."""
    if isinstance(node, Not | Chain | Union):
        return all(map(_ignores_roots, children(node)))
    return isinstance(node, State | Field | Where)


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
        _fail_unknown(node, scope, unknown, _where_known(node, scope))
    return found


def _where_known(node: State, scope: Scope) -> str:
    """Say where a state is known: of a training checkpoint's parts, only modules know what their tensors are."""
    modules = scope.catalogue.modules or {}
    parts = [path for path in modules if path and not any(above in modules for above in prefixes(path))]
    if not parts:
        return "name the tensors instead, or use the live model"
    asked = " or ".join(f"`{quote_name(path)}.** & {node}`" for path in parts[:3])
    return f"it is known of modules alone, so ask {asked}"


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
        f"`{node}` asks what {scope.catalogue.source} does not know of {', '.join(named)}{more}; {remedy}"
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
