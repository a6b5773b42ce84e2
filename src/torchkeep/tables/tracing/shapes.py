"""What goes into a module and comes out of it, by shape: described without keeping a single tensor alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from torchkeep.tensors.dtypes import dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH = 6
MAX_ITEMS = 8
RUN = 3


@dataclass(frozen=True)
class TensorShape:
    """One tensor, described.

    Attributes:
        shape: its sizes.
        dtype: torch's name without ``torch.``, such as ``"float32"``.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Fields:
    """An object with named fields (a dataclass, a named tuple, a mapping that is no plain dict), described.

    Attributes:
        type: name of its class.
        fields: description of each field by its name.
    """

    type: str
    fields: Mapping[str, Described]


Described: TypeAlias = (
    "TensorShape | Fields | tuple[Described, ...] | list[Described] | dict[str, Described] | str | None"
)
"""A value by shape: tensors become `TensorShape`, containers keep their kind, anything else is a short text."""


@dataclass(frozen=True)
class Call:
    """Calls of one module that went alike.

    Attributes:
        args: the positional arguments, described.
        kwargs: the keyword arguments, described.
        output: what was returned, described.
        times: how many calls went exactly like this.
    """

    args: tuple[Described, ...]
    kwargs: Mapping[str, Described]
    output: Described
    times: int = 1


def describe(value: Any, depth: int = 0) -> Described:
    """Describe ``value`` by shape; nested containers are followed, objects of other kinds named by their class."""
    if isinstance(value, torch.Tensor):
        return TensorShape(_shape_of(value), dtype_name(value.dtype))
    if value is None or isinstance(value, bool | int | float | complex):
        return None if value is None else str(value)
    return "..." if depth >= MAX_DEPTH else _describe_container(value, depth + 1)


def _describe_container(value: Any, depth: int) -> Described:
    named = _named_fields(value)
    if named is not None:
        return Fields(type(value).__name__, {name: describe(item, depth) for name, item in named.items()})
    if isinstance(value, dict):
        return {str(key): describe(item, depth) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(describe(item, depth) for item in value)
    if isinstance(value, list):
        return [describe(item, depth) for item in value]
    return type(value).__name__


def _shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.is_nested:
        # A nested tensor has no size in its ragged dimension; -1 is how torch itself writes that.
        return (tensor.size(0), *([-1] * (tensor.dim() - 1)))
    return tuple(int(size) for size in tensor.shape)


def _named_fields(value: Any) -> dict[str, Any] | None:
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name, None) for field in fields(value)}
        # Model outputs of the mapping kind leave most of their fields unset.
        return (
            {name: item for name, item in found.items() if item is not None} if isinstance(value, dict) else found
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, Mapping) and type(value) is not dict:
        return {str(key): item for key, item in value.items()}
    return None


def usual_dtype(described: Iterable[Described]) -> str:
    """Return the floating point dtype seen most often, or ``"float32"``."""
    counts: dict[str, int] = {}
    for item in described:
        for found in tensors_in(item):
            if "float" in found.dtype:
                counts[found.dtype] = counts.get(found.dtype, 0) + 1
    return max(counts, key=lambda dtype: counts[dtype], default="float32")


def tensors_in(described: Described) -> Iterable[TensorShape]:
    """Yield every described tensor in ``described``."""
    if isinstance(described, TensorShape):
        yield described
    elif isinstance(described, Fields):
        for item in described.fields.values():
            yield from tensors_in(item)
    elif isinstance(described, dict):
        for item in described.values():
            yield from tensors_in(item)
    elif isinstance(described, tuple | list):
        for item in described:
            yield from tensors_in(item)


def text(described: Described, usual: str = "") -> str:
    """Write a description on one line: ``[2, 20]``, ``int64[2, 7]``, ``([2, 5], {state: [1, 5]})``.

    Args:
        described: what to write.
        usual: the dtype that goes without saying.
    """
    if isinstance(described, TensorShape):
        sizes = ", ".join(map(str, described.shape))
        return f"{'' if described.dtype == usual else described.dtype}[{sizes}]"
    if isinstance(described, Fields):
        return f"{described.type}({_named(described.fields, '=', usual)})"
    if isinstance(described, dict):
        return f"{{{_named(described, ': ', usual)}}}"
    if isinstance(described, tuple):
        return f"({_listed(described, usual)})"
    if isinstance(described, list):
        return f"list({_listed(described, usual)})"
    return str(described)


def arguments(args: Iterable[Described], kwargs: Mapping[str, Described], usual: str = "") -> str:
    """Write what a call was given: ``[2, 20], mask=bool[2, 7]``; keywords that are None go without saying."""
    positional = [text(item, usual) for item in args]
    named = [f"{name}={text(item, usual)}" for name, item in kwargs.items() if item is not None]
    return ", ".join([*positional, *named])


def _named(items: Mapping[str, Described], sign: str, usual: str) -> str:
    shown = [f"{name}{sign}{text(item, usual)}" for name, item in items.items()]
    return ", ".join(_shortened(shown))


def _listed(items: Iterable[Described], usual: str) -> str:
    shown: list[str] = []
    for item, run in groupby(text(item, usual) for item in items):
        count = len(list(run))
        shown.extend([item] * count if count < RUN else [f"{count} x {item}"])
    return ", ".join(_shortened(shown))


def _shortened(shown: list[str]) -> list[str]:
    if len(shown) <= MAX_ITEMS:
        return shown
    return [*shown[: MAX_ITEMS // 2], f"and {len(shown) - MAX_ITEMS // 2} more"]
