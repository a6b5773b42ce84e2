"""Tensors inside nested inputs and outputs: sequences, mappings, dataclasses, plain objects, None."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield whatever is no container, with its path, such as ``[0]['mask']``; containers in their own order."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif _holds_tensors(value):
        for key, item in vars(value).items():
            yield from leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _holds_tensors(value: object) -> bool:
    """Tell whether a plain object, such as a namespace or a distribution, has a tensor for an attribute."""
    if isinstance(value, torch.Tensor | torch.nn.Module | type | ModuleType | FunctionType):
        return False
    return any(isinstance(item, torch.Tensor) for item in getattr(value, "__dict__", {}).values())


def tensors(value: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in ``value``, with their paths."""
    return ((where, leaf) for where, leaf in leaves(value, path) if isinstance(leaf, torch.Tensor))


def mapped(value: Any, convert: Callable[[str, torch.Tensor], torch.Tensor], path: str = "") -> Any:
    """Return a copy of ``value`` in which ``convert(path, tensor)`` stands for each tensor."""
    if isinstance(value, torch.Tensor):
        return convert(path, value)
    if isinstance(value, Mapping):
        items = {key: mapped(item, convert, f"{path}[{key!r}]") for key, item in value.items()}
        return _filled(value, items)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = [mapped(item, convert, f"{path}[{index}]") for index, item in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in fields(value):
            item = mapped(getattr(value, field.name), convert, f"{path}.{field.name}")
            object.__setattr__(made, field.name, item)
        return made
    if _holds_tensors(value):
        made = copy.copy(value)
        vars(made).update({key: mapped(item, convert, f"{path}.{key}") for key, item in vars(value).items()})
        return made
    return value


def _filled(value: Any, items: dict[Any, Any]) -> Any:
    if type(value) is dict:
        return items
    made = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made
