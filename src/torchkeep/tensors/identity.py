"""Which tensors are one, and which share memory.

An address tells where there is one; on the meta device every address is 0, and the storage object itself tells.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Key: TypeAlias = Hashable


class Span(NamedTuple):
    """The bytes that a tensor lies in: from its first element to its last, gaps included.

    Attributes:
        memory: what ``start`` and ``stop`` count within; equal for tensors that may overlap.
        start: first byte.
        stop: one past the last byte; equal to ``start`` for a tensor without elements.
    """

    memory: Key
    start: int
    stop: int


def storage_key(tensor: torch.Tensor) -> Key:
    """Return a key that is equal for live tensors on one storage, on any device, the meta device included."""
    if is_lazy(tensor):
        return id(tensor)
    memory, start = _memory(tensor)
    return memory if start is None else (memory, start - tensor.storage_offset() * tensor.element_size())


def tensor_key(tensor: torch.Tensor) -> Key:
    """Return a key that is equal for live tensors that are one: same memory, shape, strides, dtype and values.

    Elements may be kept conjugated or negated, so that the same memory holds other values.
    A lazy parameter, and a tensor without a storage (a sparse one), is one only with itself.
    """
    if is_lazy(tensor):
        return id(tensor)
    memory, start = _memory(tensor)
    if start is None:
        return memory
    shape = tuple(tensor.shape)
    # The stride of a dimension of size 1 is never used, so it tells nothing apart.
    strides = tuple(step if size > 1 else 0 for size, step in zip(shape, tensor.stride(), strict=True))
    return memory, start, shape, strides, tensor.dtype, tensor.is_conj(), tensor.is_neg()


def span(tensor: torch.Tensor) -> Span | None:
    """Return the bytes that ``tensor`` lies in, or None for a lazy or sparse one."""
    if is_lazy(tensor):
        return None
    memory, start = _memory(tensor)
    if start is None:
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps) if tensor.numel() else -1
    return Span(memory, start, start + (last + 1) * tensor.element_size())


def overlapping(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return the groups (positions, two or more) of tensors whose bytes overlap, directly or through others."""
    spans = [(found, position) for position, tensor in enumerate(tensors) if (found := span(tensor))]
    groups: list[list[int]] = []
    for members in _by_memory(spans):
        reached = -1
        for (_, start, stop), position in sorted(members, key=lambda item: item[0][1:]):
            if start == stop:
                continue
            if start < reached:
                groups[-1].append(position)
            else:
                groups.append([position])
            reached = max(reached, stop)
    return [sorted(group) for group in groups if len(group) > 1]


def _by_memory(spans: Iterable[tuple[Span, int]]) -> Iterable[list[tuple[Span, int]]]:
    memories: dict[Key, list[tuple[Span, int]]] = {}
    for found, position in spans:
        memories.setdefault(found.memory, []).append((found, position))
    return memories.values()


def _memory(tensor: torch.Tensor) -> tuple[Key, int | None]:
    """Return a key of the memory that a tensor lies in and its first byte there."""
    inner = _inner_tensors(tensor)
    if inner:
        return ("wrapper", type(tensor), *map(tensor_key, inner)), None
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return ("tensor", id(tensor)), None
    offset = int(tensor.storage_offset()) * tensor.element_size()
    address = _address(storage)
    if address:
        # Two storages may be made over one address (torch.from_numpy called twice on one array).
        return ("address", str(tensor.device)), address + offset
    return ("storage", storage._cdata), offset  # noqa: SLF001 - the identity torch's own serialisation uses


def _inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a wrapper subclass (DTensor, a quantised tensor) is made of."""
    wrapper: object = tensor
    if not is_traceable_wrapper_subclass(wrapper):
        return []
    parts = (getattr(wrapper, name) for name in wrapper.__tensor_flatten__()[0])
    return [part for part in parts if isinstance(part, torch.Tensor)]  # a DTensor also names its mesh


def _address(storage: torch.UntypedStorage) -> int:
    """Return the storage's address, or 0 where it has none (meta, fake, empty)."""
    if storage.device.type == "meta":
        return 0
    try:
        return storage.data_ptr()
    except RuntimeError:
        return 0
