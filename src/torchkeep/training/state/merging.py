"""Put the parts of a state together: what is tied across them, and what only an optimizer's step changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torchkeep.tensors.identity import overlapping, tensor_key
from torchkeep.tensors.sharing import suspects
from torchkeep.training.state.contents import layout_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.training.state.contents import Content


class Shared(NamedTuple):
    """How the tensors of a state share memory.

    Attributes:
        aliases: owner by alias, over all parts.
        stepped: names, owners only, of what only the steps of the given optimizers change.
        order: all names in order; empty where there is no alias.
    """

    aliases: Mapping[str, str]
    stepped: frozenset[str]
    order: tuple[str, ...]


class Merger:
    """Finds out how tensors share memory, and remembers it until something moves.

    Args:
        remembering: whether there is another time.
    """

    def __init__(self, *, remembering: bool = True) -> None:
        self._remembering = remembering
        self._layout: object = None
        self._shared = Shared({}, frozenset(), ())

    def shared(self, contents: Mapping[str, Content]) -> Shared:
        """Return how the parts' tensors share memory."""
        if not self._remembering:
            return _shared(contents)
        layout = [
            (part, one.names, _layout(one), list(map(id, one.parameters)), list(map(id, one.restless)))
            for part, one in contents.items()
        ]
        if layout != self._layout:
            self._shared = _shared(contents)
            self._layout = layout
        return self._shared


def _layout(content: Content) -> object:
    if content.fresh:
        return None
    return layout_of(content.tensors) if content.layout is None else content.layout


def _shared(contents: Mapping[str, Content]) -> Shared:
    # Modules first: their names are the owners' wherever they can be.
    ranked = sorted(contents.values(), key=lambda one: one.facts is None)
    named = {
        name: tensor
        for one in ranked
        if not one.fresh
        for name, tensor in zip(one.names, one.tensors, strict=True)
    }
    suspected = suspects(named)
    across = _ties(suspected)
    aliases = {
        alias: across.get(owner, owner) for one in contents.values() for alias, owner in one.aliases.items()
    }
    aliases |= across
    stepped = _stepped(ranked, suspected) - across.keys()
    order = tuple(name for one in contents.values() for name in one.order) if aliases else ()
    return Shared(aliases, stepped, order)


def _ties(suspected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the owner, the first in order, of every further name of a tensor."""
    owners: dict[Hashable, str] = {}
    found = {}
    for name, tensor in suspected.items():
        owner = owners.setdefault(tensor_key(tensor), name)
        if owner != name:
            found[name] = owner
    return found


def _stepped(contents: Sequence[Content], suspected: Mapping[str, Tensor]) -> frozenset[str]:
    """Return what only optimizers' steps change: parameters in groups, and state, that share with nothing else."""
    parameters = {id(one) for content in contents for one in content.parameters}
    parameters -= {id(one) for content in contents for one in content.restless}
    found: set[str] = set()
    for content in contents:
        found.update(content.names[: content.stepped])
        found.update(
            name
            for name, tensor in zip(content.names, content.tensors, strict=True)
            if id(tensor) in parameters and all(id(other) in parameters for other in content.further.get(name, ()))
        )
    names = list(suspected)
    for group in overlapping(list(suspected.values())):
        members = {names[position] for position in group}
        if not members <= found:
            found -= members
    return frozenset(found)
