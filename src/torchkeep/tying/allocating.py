"""Make room for tensors on a device, so that what shared memory shares it there too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from torchkeep.tensors.identity import Key, span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_ALIGNMENT = 16
"""Bytes; a multiple of every dtype's size."""


def allocate(tensors: Iterable[Tensor], device: torch.device) -> dict[int, Tensor]:
    """Return a new tensor on ``device`` for each one given, by ``id``.

    Shapes, strides and dtypes stay; tensors that lie in one memory lie in one again, in the same way. A
    tensor with values brings them; one from the meta device holds what `unset` fills in. Lazy parameters
    stay lazy.

    Args:
        tensors: parameters and buffers, each object once. They stay alive and unchanged.
        device: where to; not the meta device.
    """
    memories: dict[Key, list[Tensor]] = {}
    made: dict[int, Tensor] = {}
    for tensor in tensors:
        place = span(tensor)
        if place is not None:
            memories.setdefault((tensor.device, place.memory), []).append(tensor)
        else:
            made[id(tensor)] = _elsewhere(tensor, device)
    for members in memories.values():
        for group in _touching(members):
            made |= _share(group, device)
    return made


def unset(tensor: Tensor) -> None:
    """Fill ``tensor`` in place with what shows that nobody has given it values.

    NaN for floating and complex dtypes; integers get the smallest value they hold (unsigned ones the
    largest), bool False, and sub-byte and raw dtypes bytes of 127.
    """
    dtype = tensor.dtype
    if dtype == torch.bool:
        tensor.zero_()
        return
    if dtype.is_floating_point or dtype.is_complex:
        value: float = float("nan")
    else:
        try:
            limits = torch.iinfo(dtype)
        except TypeError:
            value = 0
        else:
            value = limits.min or limits.max
    try:
        tensor.fill_(value)
    except (RuntimeError, NotImplementedError):
        tensor.view(torch.uint8).fill_(0x7F)


def _share(tensors: list[Tensor], device: torch.device) -> dict[int, Tensor]:
    """Allocate one memory for tensors that lie in one."""
    spans = [place for tensor in tensors if (place := span(tensor))]
    first = min(place.start for place in spans) // _ALIGNMENT * _ALIGNMENT
    room = torch.empty(max(place.stop for place in spans) - first, dtype=torch.uint8, device=device)
    made: dict[int, Tensor] = {}
    for tensor, place in zip(tensors, spans, strict=True):
        offset = (place.start - first) // tensor.element_size()
        extent = (place.stop - place.start) // tensor.element_size()
        flat = _over(room, tensor.dtype, offset, (extent,), (1,))
        if tensor.is_meta:
            unset(flat)
        else:
            flat.copy_(tensor.data.as_strided((extent,), (1,), tensor.storage_offset()))
        made[id(tensor)] = _over(room, tensor.dtype, offset, tensor.shape, tensor.stride())
    return made


def _over(room: Tensor, dtype: torch.dtype, offset: int, shape: Iterable[int], stride: Iterable[int]) -> Tensor:
    # set_ and not as_strided: what it gives is no view, so it may be anybody's parameter.
    empty: Any = torch.empty(0, dtype=dtype, device=room.device)
    return empty.set_(room.untyped_storage(), offset, tuple(shape), tuple(stride))  # type: ignore[no-any-return]  # set_ is not typed


def _touching(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Group the tensors of one memory by whether their bytes overlap, so that no room is made for gaps."""
    groups: list[list[Tensor]] = []
    reached = -1
    for tensor, place in sorted(
        ((tensor, place) for tensor in tensors if (place := span(tensor))), key=lambda pair: pair[1].start
    ):
        if place.start < reached:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
        reached = max(reached, place.stop)
    return groups


def _elsewhere(tensor: Tensor, device: torch.device) -> Tensor:
    """Make room for what has no plain memory: lazy, sparse, or a wrapper around other tensors."""
    if is_lazy(tensor):
        kind: Any = type(tensor)
        options = {"requires_grad": tensor.requires_grad} if isinstance(tensor, torch.nn.Parameter) else {}
        return kind(**options, device=device, dtype=tensor.dtype)  # type: ignore[no-any-return]  # its class is known only now
    if not tensor.is_meta:
        return tensor.data.to(device)
    new = torch.empty_like(tensor.data, device=device)
    if new.layout == torch.strided:
        unset(new)
    return new
