"""An optimizer's state by the names of its parameters."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchkeep.files.collecting import Gatherer
from torchkeep.formats.paths import Path
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.keepable import why_not_kept
from torchkeep.training.state.contents import Content, layout_of, refuse_objects
from torchkeep.training.state.keepers import Keeper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torchkeep.formats.values import Node
    from torchkeep.training.state.naming import Names

_PLAIN: Final = frozenset({torch.Tensor, nn.Parameter})
_HOOKS: Final = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def has_own_format(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer's state_dict is more than groups and state: its class or hooks change it."""
    kind = type(optimizer)
    return (
        kind.state_dict is not Optimizer.state_dict
        or kind.load_state_dict is not Optimizer.load_state_dict
        or not vars(optimizer).keys().isdisjoint({"state_dict", "load_state_dict"})
        or any(getattr(optimizer, hooks, None) for hooks in _HOOKS)
    )


class Named(NamedTuple):
    """The parameters in an optimizer's groups.

    Attributes:
        source: where the names are from.
        groups: the parameters themselves, by group.
        names: theirs, by group.
        by_id: name by identity.
        table: dtype, shape, and the device where that is not the CPU, by name.
        stray: those that are in no module of the state.
        layout: where these lie.
    """

    source: Names
    groups: list[list[Tensor]]
    names: list[list[str]]
    by_id: dict[int, str]
    table: dict[str, list[Any]]
    stray: list[Tensor]
    layout: object


class _Shape(NamedTuple):
    """How the state of an optimizer was nested, where all in it were tensors.

    Attributes:
        holders: identities of the parameters, in the order in which the optimizer has their state.
        keys: of each one's state.
        names: of the tensors.
        node: the state in the checkpoint's tree.
        on_cpu: names of tensors on the CPU beside a parameter that is elsewhere.
        addresses: of the tensors.
    """

    holders: list[int]
    keys: list[tuple[Any, ...]]
    names: tuple[str, ...]
    node: Node
    on_cpu: list[str]
    addresses: list[int]


class OptimizerKeeper(Keeper):
    """Keeps an optimizer: hyperparameters by group, state by the names of the parameters."""

    def __init__(self, part: str, obj: Optimizer) -> None:
        super().__init__(part, obj)
        self._named: Named | None = None
        self._shape: _Shape | None = None

    def named(self, names: Names) -> Named:
        """Return the optimizer's parameters under their names."""
        groups, known = self.obj.param_groups, self._named
        if known is None or known.source is not names or not _are_same(known, groups):
            found = names.of_groups(groups)
            by_id = {
                id(one): name
                for group, given in zip(groups, found, strict=True)
                for one, name in zip(group["params"], given, strict=True)
            }
            held = [list(group["params"]) for group in groups]
            # The others' shapes are known to be the same as long as the names are from the same surveys.
            stray = [one for group in held for one in group if names.of(one) is None]
            known = Named(names, held, found, by_id, _table(held, found), stray, layout_of(stray))
            self._named, self._shape = known, None
        return known

    def content(self, names: Names) -> Content:
        """Take the optimizer apart: its state first, which only its steps change."""
        named = self.named(names)
        gatherer = Gatherer(self.part, hook=refuse_objects)
        shape = self._same_shape()
        if shape is None:
            names_, tensors, state, on_cpu, shared = self._encode_state(gatherer, named, names)
            layout: object = layout_of(tensors)
        else:
            names_, tensors, state, on_cpu, shared = shape.names, self._flat(), shape.node, shape.on_cpu, None
            layout = (id(shape.node), shape.addresses)
        stepped, gatherer.tensors = len(names_), {}
        groups = [self._group(gatherer, number, given) for number, given in enumerate(named.names)]
        others = gatherer.tensors
        if others and any(not one.is_cpu for group in named.groups for one in group):
            on_cpu = [*on_cpu, *(name for name, one in others.items() if one.is_cpu)]
        value = {
            "class": type(self.obj).__qualname__,
            "groups": groups,
            "parameters": {"dict": named.table},
            "state": {"dict": state},
            **({"on_cpu": on_cpu} if on_cpu else {}),
            **({"shared": shared} if shared else {}),
        }
        return Content(
            names=(*names_, *others) if others else names_,
            tensors=[*tensors, *others.values()],
            node={"dict": value},
            layout=(layout, layout_of(list(others.values()))),
            problems=gatherer.encoder.problems,
            stepped=stepped,
            parameters=[one for group in named.groups for one in group],
            order=(*names_, *others),
        )

    def _group(self, gatherer: Gatherer, number: int, names: list[str]) -> Node:
        group = self.obj.param_groups[number]
        options = {key: value for key, value in group.items() if key != "params"}
        node = gatherer.encoder.encode(options, Path(Path(gatherer.root, "groups"), number))
        content = node.get("dict") if isinstance(node, dict) else None
        if isinstance(content, dict):
            content["params"] = names
        else:
            where = Path(Path(gatherer.root, "groups"), number)
            gatherer.encoder.problems.append((where, "its keys must be texts; rename them"))
        return node

    def _flat(self) -> list[Tensor]:
        return [one for held in self.obj.state.values() for one in held.values()]

    def _same_shape(self) -> _Shape | None:
        """Return how the state was nested, if it still is like that and there are only plain tensors in it."""
        shape, state = self._shape, self.obj.state
        if shape is None or list(map(id, state)) != shape.holders:
            return None
        if {type(held) for held in state.values()} - {dict} or list(map(tuple, state.values())) != shape.keys:
            return None
        flat = self._flat()
        if not set(map(type, flat)) <= _PLAIN:
            return None
        try:
            addresses = [one.data_ptr() for one in flat]
        except RuntimeError:  # one is sparse now; a closer look tells which
            return None
        return shape if addresses == shape.addresses else None

    def _encode_state(
        self, gatherer: Gatherer, named: Named, names: Names
    ) -> tuple[tuple[str, ...], list[Tensor], Node, list[str], Node]:
        """Encode the state of each parameter; what is under no parameter comes last.

        Returns:
            Names, tensors, the state by parameter, names of what is on the CPU beside a parameter that is not, and
            what is under no parameter.
        """
        root, state = Path(gatherer.root, "state"), {}
        encoder, on_cpu, flat = gatherer.encoder, list[str](), list[Any]()
        simple = True
        shared: dict[Any, Any] = {}
        for holder, held in list(self.obj.state.items()):
            if not isinstance(holder, torch.Tensor):
                shared[holder] = held
                simple = False
                continue
            name = named.by_id.get(id(holder)) or names.of(holder)
            if name is None:
                encoder.problems.append((root, _stray(holder)))
                continue
            before = len(gatherer.tensors)
            state[name] = encoder.encode(held, Path(root, name))
            added = list(islice(reversed(gatherer.tensors.items()), len(gatherer.tensors) - before))[::-1]
            if not holder.is_cpu:
                on_cpu += [key for key, one in added if one.is_cpu]
            values = list(held.values()) if type(held) is dict else [None]
            simple = simple and len(values) == len(added) and all(map(_is, values, (one for _, one in added)))
            flat += values
        node = encoder.encode(shared, Path(gatherer.root, "shared")) if shared else None
        found = dict(gatherer.tensors)
        if simple and not encoder.problems:
            self._shape = _Shape(
                list(map(id, self.obj.state)),
                list(map(tuple, self.obj.state.values())),
                tuple(found),
                state,
                on_cpu,
                [one.data_ptr() for one in flat],
            )
        else:
            self._shape = None
        return tuple(found), list(found.values()), state, on_cpu, node


def _is(one: object, other: object) -> bool:
    return one is other


def _are_same(known: Named, groups: Sequence[dict[str, Any]]) -> bool:
    """Tell whether groups hold the very same parameters as before."""
    return (
        len(known.groups) == len(groups)
        and all(
            list(map(id, one)) == list(map(id, group["params"]))
            for one, group in zip(known.groups, groups, strict=True)
        )
        and layout_of(known.stray) == known.layout
    )


def _table(groups: Sequence[Sequence[Tensor]], names: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """Describe the parameters."""
    table: dict[str, list[Any]] = {}
    for group, given in zip(groups, names, strict=True):
        for one, name in zip(group, given, strict=True):
            if not is_lazy(one):
                table[name] = [dtype_name(one.dtype), list(one.shape)]
                if not one.is_cpu:
                    table[name].append(str(one.device))
    return table


def _stray(holder: Tensor) -> str:
    """Say what to do about the state of a parameter that is in no group."""
    return why_not_kept(holder, any_class=True) or (
        f"it has the state of a parameter of shape {list(holder.shape)} that is in none of its groups and in no "
        "module of the state; delete it from optimizer.state"
    )
