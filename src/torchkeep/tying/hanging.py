"""Hang tensors in modules: all of them, or none when one can't be."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from torchkeep.tables.survey import Place


def hang_all(changes: Iterable[tuple[Place, Tensor]]) -> None:
    """Put each tensor in its place; when a module refuses one, put back what was there and raise its error."""
    undo: list[tuple[Place, Tensor]] = []
    try:
        for place, tensor in changes:
            undo.append((place, place.tensor))
            _hang(place, tensor)
    except BaseException:
        for place, tensor in reversed(undo):
            # The module that refused may refuse this too; its own dict does not.
            with suppress(Exception):
                _hang(place, tensor)
            place.registry[place.key] = tensor
        raise


def _hang(place: Place, tensor: Tensor) -> None:
    if place.kind == "parameter":
        # Through setattr, because a module may keep its own list of them (recurrent layers do).
        setattr(place.module, place.key, tensor)
    if place.registry.get(place.key) is not tensor:
        place.registry[place.key] = tensor


def dressed_like(old: Tensor, values: Tensor) -> Tensor:
    """Give ``values`` the class (Parameter, a subclass of it), ``requires_grad`` and attributes of ``old``.

    Args:
        old: a parameter or a buffer.
        values: a tensor of any shape; it is wrapped, not copied.
    """
    new: Any
    wrapper: object = values
    if is_lazy(values):
        return values
    if not isinstance(old, nn.Parameter):
        new = values
    elif type(old) is nn.Parameter or is_traceable_wrapper_subclass(wrapper):
        new = nn.Parameter(values, old.requires_grad)
    else:
        new = torch.Tensor._make_subclass(type(old), values, old.requires_grad)  # noqa: SLF001 - how Parameter makes itself
    for name, value in vars(old).items():
        # A wrapper subclass keeps its inner tensors among its attributes: those are the values.
        new.__dict__.setdefault(name, value)
    return new  # type: ignore[no-any-return]  # _make_subclass is not typed
