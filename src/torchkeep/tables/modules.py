"""What is known of a module besides its tensors: what it wraps, its class by name, what in it is parametrized.

Nothing here asks a module for an attribute that it may not have: its own ``__getattr__`` answers as it likes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from torch import nn

from torchkeep.rows import TypeInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_WRAPPERS: Final = (
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


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside any known wrappers around it."""
    return unwrapped(module, wrappers())


def wrappers() -> dict[type[nn.Module], str]:
    """Return the wrappers' classes, each with the attribute that holds what is wrapped."""
    # A wrapper whose module was never imported can't be around anything.
    found = ((getattr(sys.modules.get(home), name, None), attribute) for home, name, attribute in _WRAPPERS)
    return {wrapper: attribute for wrapper, attribute in found if wrapper is not None}


def unwrapped(module: nn.Module, known: Mapping[type[nn.Module], str]) -> nn.Module:
    """Return the module inside any of the ``known`` wrappers around it."""
    while isinstance(module, tuple(known)):
        module = getattr(module, next(name for wrapper, name in known.items() if isinstance(module, wrapper)))
    return module


def parametrized(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's parametrized tensors."""
    children = module._modules  # noqa: SLF001 - the dict itself
    lists = children["parametrizations"] if "parametrizations" in children else None  # noqa: SIM401 - TorchScript's has no get
    return tuple(lists) if isinstance(lists, nn.ModuleDict) else ()


_TYPES: WeakKeyDictionary[type, TypeInfo] = WeakKeyDictionary()


def type_info(cls: type) -> TypeInfo:
    """Describe a module's class by name; a class that torch made on the fly counts as the one it was made from."""
    known = _TYPES.get(cls)
    if known is None:
        lineage = [
            (base.__module__, base.__qualname__)
            for base in original_class(cls).__mro__
            if issubclass(base, nn.Module)
        ]
        known = _TYPES[cls] = TypeInfo(tuple(lineage))
    return known


def original_class(cls: type) -> type:
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
