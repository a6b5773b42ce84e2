"""Survey a live module: every tensor under its canonical name, where it hangs, and what is tied.

A name is canonical when it does not depend on how the module happens to be wrapped: DistributedDataParallel,
DataParallel, torch.compile's OptimizedModule, FSDP and activation checkpointing are recognised by type, and the
attribute under which they hold the wrapped module is no part of a name.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torchkeep.errors import SourceError
from torchkeep.names import join, natural_key
from torchkeep.rows import Kind, Listing, Row, TypeInfo
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import Key, overlapping, tensor_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

TieKind: TypeAlias = Literal["module", "parameter", "storage"]

OWNERS_ATTRIBUTE = "_torchkeep_owners"
"""Holds, on the module that `tk.tie` was given, the declared owners' names; copied and pickled with the module."""

_WRAPPERS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel", "_fsdp_wrapped_module"),
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
        "_checkpoint_wrapped_module",
    ),
)


@dataclass(frozen=True)
class Place:
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
        return tuple(
            tuple(self.listing.rows[position].name for position in group) for group in overlapping(self.tensors)
        )


def survey(net: nn.Module) -> Survey:
    """Walk ``net`` once and describe every parameter and buffer in it.

    Raises:
        SourceError: ``net`` is no module, or contains itself.
    """
    if not isinstance(net, nn.Module):
        raise SourceError(f"expected a torch.nn.Module, found {type(net).__name__}; give the model itself")
    root = unwrap(net)
    modules: dict[str, nn.Module] = {}
    declared: set[str] = set()
    groups: dict[Key, list[Place]] = {}
    plain: dict[str, str] = {}
    for path, module in _walk(root):
        modules[path] = module
        declared.update(join(path, name) for name in module.__dict__.get(OWNERS_ATTRIBUTE, ()))
        if parametrize.is_parametrized(module):
            plain |= {join(path, "parametrizations", key): join(path, key) for key in _parametrizations(module)}
        for place in _places(path, module):
            groups.setdefault((place.kind, tensor_key(place.tensor)), []).append(place)
    rows, tensors, all_places = [], [], []
    for group in groups.values():
        places = _owner_first(group, declared)
        rows.append(_row(places, modules, plain))
        tensors.append(places[0].tensor)
        all_places.append(places)
    types = {path: type_info(type(module)) for path, module in modules.items()}
    return Survey(root, Listing(rows, types, "the model"), tuple(tensors), tuple(all_places), modules)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside any known wrappers around it."""
    while True:
        for home, name, attribute in _WRAPPERS:
            # A wrapper whose module was never imported can't be around anything.
            wrapper = getattr(sys.modules.get(home), name, None)
            if wrapper is not None and isinstance(module, wrapper):
                module = getattr(module, attribute)
                break
        else:
            return module


_TYPES: WeakKeyDictionary[type, TypeInfo] = WeakKeyDictionary()


def type_info(cls: type) -> TypeInfo:
    """Describe a module's class by name; a class that torch made on the fly counts as the one it was made from."""
    known = _TYPES.get(cls)
    if known is None:
        lineage = [
            (base.__module__, base.__qualname__) for base in _original(cls).__mro__ if issubclass(base, nn.Module)
        ]
        known = _TYPES[cls] = TypeInfo(tuple(lineage))
    return known


def _original(cls: type) -> type:
    """Undo parametrize's ``ParametrizedLinear`` and fully_shard's ``FSDPLinear``."""
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    while True:
        bases = cls.__bases__
        if cls.__name__ == f"Parametrized{bases[0].__name__}" and cls.__module__ == "torch.nn.utils.parametrize":
            cls = bases[0]
        elif sharded in bases and cls.__name__ == f"FSDP{bases[-1].__name__}":
            cls = bases[-1]
        else:
            return cls


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its canonical path, parents first, a shared one once for each path."""
    pending: list[tuple[str, nn.Module, frozenset[int]]] = [("", root, frozenset())]
    while pending:
        path, module, above = pending.pop()
        if id(module) in above:
            raise SourceError(f"the module at {path!r} contains itself, so its names never end; remove the loop")
        yield path, module
        above |= {id(module)}
        children = module._modules.items()  # noqa: SLF001 - children() skips a shared child's second place
        pending.extend(
            (join(path, key), unwrap(child), above) for key, child in reversed(children) if child is not None
        )


def _places(path: str, module: nn.Module) -> Iterator[Place]:
    for key, parameter in module._parameters.items():  # noqa: SLF001 - named_parameters hides ties and raises on lazies
        if parameter is not None:
            yield Place(join(path, key), module, key, "parameter")
    for key, buffer in module._buffers.items():  # noqa: SLF001
        if buffer is not None:
            yield Place(join(path, key), module, key, "buffer")


def _owner_first(places: list[Place], declared: set[str]) -> tuple[Place, ...]:
    if len(places) == 1:
        return tuple(places)
    return tuple(sorted(places, key=lambda place: (place.name not in declared, natural_key(place.name))))


def _row(places: tuple[Place, ...], modules: Mapping[str, nn.Module], plain: Mapping[str, str]) -> Row:
    owner = places[0]
    tensor = owner.tensor
    plain_names = [plain[path] for place in places if (path := place.name.rpartition(".")[0]) in plain]
    holder = modules[plain_names[0].rpartition(".")[0]] if plain_names else owner.module
    return Row(
        name=owner.name,
        shape=None if is_lazy(tensor) else tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        device=str(tensor.device),
        kind=owner.kind,
        persistent=any(_is_persistent(place) for place in places),
        trainable=owner.kind == "parameter" and tensor.requires_grad,
        module_type=type_info(type(holder)).name,
        aliases=tuple(place.name for place in places[1:]),
        plain=tuple(plain_names),
    )


def _is_persistent(place: Place) -> bool:
    return place.kind == "parameter" or place.key not in place.module._non_persistent_buffers_set  # noqa: SLF001


def _parametrizations(module: nn.Module) -> list[str]:
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return list(lists)


def _tie_kind(places: tuple[Place, ...]) -> TieKind:
    if len({id(place.tensor) for place in places}) > 1:
        return "storage"
    if len({(id(place.module), place.key) for place in places}) > 1:
        return "parameter"
    return "module"
