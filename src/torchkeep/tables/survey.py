"""Survey a live module: every tensor under its canonical name, where it hangs, and what is tied.

A name is canonical when it does not depend on how the module happens to be wrapped: the attribute under which a
wrapper (see `torchkeep.tables.modules`) holds the wrapped module is no part of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.caching import cached_property
from torchkeep.errors import SourceError
from torchkeep.names import join, natural_key, parent
from torchkeep.rows import Kind, Listing, Row
from torchkeep.tables.modules import parametrized, type_info, unwrap, unwrapped, wrappers
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import overlapping, tensor_key
from torchkeep.tensors.sharing import suspects

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from torch import Tensor

TieKind: TypeAlias = Literal["module", "parameter", "storage"]

OWNERS_ATTRIBUTE = "_torchkeep_owners"
"""Holds, on the module that `tk.tie` was given, the declared owners' names; copied and pickled with the module."""


class Place(Struct, frozen=True):
    """One place where a tensor hangs.

    Attributes:
        name: canonical name of the tensor at this place.
        module: the module that registered it.
        key: its key in ``module._parameters`` or ``module._buffers``.
        kind: which of the two.
    """

    name: str
    module: nn.Module
    key: str
    kind: Kind

    @property
    def registry(self) -> dict[str, Tensor | None]:
        """The module's own dict that holds the tensor."""
        if self.kind == "buffer":
            return self.module._buffers  # noqa: SLF001 - no public way leads to the dict itself
        return self.module._parameters  # type: ignore[return-value]  # noqa: SLF001 - a Parameter is a Tensor

    @property
    def tensor(self) -> Tensor:
        """The tensor that hangs there now."""
        tensor = self.registry[self.key]
        assert tensor is not None
        return tensor


@dataclass(frozen=True)
class TieGroup:
    """One tensor under several names.

    Attributes:
        owner: the declared owner's name, else the naturally smallest.
        aliases: the other names, in natural order.
        kind: ``"module"`` (one module in several places), ``"parameter"`` (one tensor object registered in
            several places) or ``"storage"`` (several tensor objects over the same memory).
    """

    owner: str
    aliases: tuple[str, ...]
    kind: TieKind


@dataclass(frozen=True)
class Survey:
    """What was found in a module. Rows, tensors and places run in parallel.

    Attributes:
        net: the module, without wrappers.
        listing: the rows, in the order of the state_dict, each at its first name's place.
        tensors: the live parameters and buffers themselves, of the owner's place.
        places: every place of each tensor, the owner's first.
        modules: live module by canonical path; a shared module stands under each of its paths.
    """

    net: nn.Module
    listing: Listing
    tensors: tuple[Tensor, ...]
    places: tuple[tuple[Place, ...], ...]
    modules: Mapping[str, nn.Module]

    @cached_property
    def ties(self) -> tuple[TieGroup, ...]:
        """Every tensor that has several names, in row order."""
        return tuple(
            TieGroup(row.name, row.aliases, _tie_kind(places))
            for row, places in zip(self.listing.rows, self.places, strict=True)
            if row.aliases
        )

    @cached_property
    def overlaps(self) -> tuple[tuple[str, ...], ...]:
        """Owners' names of distinct tensors whose bytes overlap without their being ties, by group."""
        owners = [row.name for row in self.listing.rows]
        suspected = suspects(dict(zip(owners, self.tensors, strict=True)))
        names = list(suspected)
        return tuple(
            tuple(names[position] for position in group) for group in overlapping(list(suspected.values()))
        )


def survey(net: nn.Module) -> Survey:
    """Walk ``net`` once and describe every parameter and buffer in it.

    Raises:
        SourceError: ``net`` is no module, contains itself, holds something under a name that is empty or no text,
            two tensors under one name, or a nested tensor.
    """
    if not isinstance(net, nn.Module):
        raise SourceError(f"expected a torch.nn.Module, found {type(net).__name__}; give the model itself")
    root = unwrap(net)
    modules: dict[str, nn.Module] = {}
    declared: set[str] = set()
    places: list[Place] = []
    plain: dict[str, str] = {}
    for path, module in _walk(root):
        modules[path] = module
        declared.update(join(path, name) for name in module.__dict__.get(OWNERS_ATTRIBUTE, ()))
        plain |= {join(path, "parametrizations", key): join(path, key) for key in parametrized(module)}
        places += places_of(path, module)
    classes = {cls: type_info(cls) for cls in set(map(type, modules.values()))}
    types = {path: classes[type(module)] for path, module in modules.items()}
    named = _by_name(places)
    groups = _tied(places, named, declared)
    tensors = tuple([named[group[0].name] for group in groups])
    owners = [_holder(group, plain, modules) for group in groups]
    class_names = {cls: info.name for cls, info in classes.items()}
    rows = [
        _row(group, tensor, class_names[type(owner)], plain)
        for group, tensor, owner in zip(groups, tensors, owners, strict=True)
    ]
    return Survey(root, Listing(rows, types, "the model"), tensors, tuple(groups), modules)


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its canonical path, parents first, a shared one once for each path."""
    known = wrappers()
    pending: list[tuple[str, nn.Module, frozenset[int]]] = [("", root, frozenset())]
    while pending:
        path, module, above = pending.pop()
        if id(module) in above:
            raise SourceError(f"the module at {path!r} contains itself, so its names never end; remove the loop")
        yield path, module
        children = module._modules  # noqa: SLF001 - children() skips a shared child's second place
        if not children:
            continue
        above |= {id(module)}
        prefix = f"{path}." if path else ""
        for key, child in reversed(children.items()):
            if child is not None:
                pending.append((prefix + _checked(key, path), unwrapped(child, known), above))


def places_of(path: str, module: nn.Module) -> Iterator[Place]:
    """Yield the places of the tensors that a module itself holds; ``path`` is its own, for their names."""
    prefix = f"{path}." if path else ""
    # named_parameters would hide ties and raise on lazy parameters.
    for key, parameter in module._parameters.items():  # noqa: SLF001 - the dict itself
        if parameter is not None:
            yield Place(prefix + _checked(key, path), module, key, "parameter")
    for key, buffer in module._buffers.items():  # noqa: SLF001 - same
        if buffer is not None:
            yield Place(prefix + _checked(key, path), module, key, "buffer")


def _checked(key: object, path: str) -> str:
    """Return the key under which a module holds something; torch's own ways of registering let no other pass."""
    if isinstance(key, str) and key:
        return key
    where = f"the module at {path!r}" if path else "the model"
    raise SourceError(f"{where} holds something under {key!r}, which is no name; register it under a text")


def _by_name(places: Sequence[Place]) -> dict[str, Tensor]:
    """Return the tensor of each place, and raise for what rows can't describe."""
    named = {place.name: place.tensor for place in places}
    if len(named) < len(places):
        twice = next(name for name, count in Counter(place.name for place in places).items() if count > 1)
        raise SourceError(f"the model has two tensors called {twice!r}, as a key in it holds a dot; rename one")
    for name, tensor in named.items():
        if tensor.is_nested:
            raise SourceError(
                f"{name} is a nested tensor, which has no shape; let the model hold its parts, or a padded tensor"
            )
    return named


def _tied(places: Sequence[Place], named: Mapping[str, Tensor], declared: set[str]) -> list[tuple[Place, ...]]:
    """Put together the places of each tensor, the owner's first."""
    suspected = suspects(named)
    if not suspected:
        return [(place,) for place in places]
    groups: list[list[Place]] = []
    known: dict[Hashable, list[Place]] = {}
    for place in places:
        tensor = suspected.get(place.name)
        group: list[Place] = [] if tensor is None else known.setdefault((place.kind, tensor_key(tensor)), [])
        if not group:
            groups.append(group)
        group.append(place)
    return [_owner_first(group, declared) for group in groups]


def _owner_first(places: list[Place], declared: set[str]) -> tuple[Place, ...]:
    if len(places) == 1:
        return tuple(places)
    return tuple(sorted(places, key=lambda place: (place.name not in declared, natural_key(place.name))))


def _holder(places: tuple[Place, ...], plain: Mapping[str, str], modules: Mapping[str, nn.Module]) -> nn.Module:
    """Return the module that owns a tensor; of a parametrized weight, the layer that uses it."""
    names = _plain_names(places, plain)
    return modules[parent(names[0])] if names else places[0].module


def _plain_names(places: tuple[Place, ...], plain: Mapping[str, str]) -> tuple[str, ...]:
    return tuple([plain[path] for place in places if (path := parent(place.name)) in plain]) if plain else ()


def _row(places: tuple[Place, ...], tensor: Tensor, module_type: str, plain: Mapping[str, str]) -> Row:
    owner = places[0]
    return Row(
        name=owner.name,
        shape=None if is_lazy(tensor) else tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        device="cpu" if tensor.is_cpu else str(tensor.device),
        kind=owner.kind,
        persistent=any(map(_is_persistent, places)),
        trainable=owner.kind == "parameter" and tensor.requires_grad,
        module_type=module_type,
        aliases=tuple([place.name for place in places[1:]]),
        plain=_plain_names(places, plain),
    )


def _is_persistent(place: Place) -> bool:
    return place.kind == "parameter" or place.key not in place.module._non_persistent_buffers_set  # noqa: SLF001


def _tie_kind(places: tuple[Place, ...]) -> TieKind:
    if len({id(place.tensor) for place in places}) > 1:
        return "storage"
    if len({(id(place.module), place.key) for place in places}) > 1:
        return "parameter"
    return "module"
