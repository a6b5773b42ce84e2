"""PyTorch's own list of its modules, in the configurations that PyTorch tests them in."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

IN_FLOAT64 = ("nn.FractionalMaxPool2d", "nn.FractionalMaxPool3d")
"""Modules whose configurations hold float64 tensors."""


class Configuration(NamedTuple):
    """One configuration of a module: what makes it, and its inputs."""

    module: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@functools.cache
def infos():
    """Return PyTorch's descriptions by module name; ImportError where they are not to be had.

    Importing them forbids setting backend flags in the whole process, which is undone here.
    """
    flag = "__allow_nonbracketed_mutation_flag"
    before = getattr(torch.backends, flag)
    try:
        from torch.testing._internal.common_modules import module_db
    finally:
        setattr(torch.backends, flag, before)
    return {info.name: info for info in module_db}


@functools.cache
def configurations(name: str, most: int | None = None) -> list[Configuration]:
    """Return the configurations of a module; with ``most``, at most that many, taken evenly."""
    info = infos()[name]
    dtype = torch.float64 if name in IN_FLOAT64 else torch.float32
    torch.manual_seed(0)
    every = list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False))
    step = 1 if most is None else -(-len(every) // most) or 1
    return [
        Configuration(
            name,
            functools.partial(info.module_cls, *one.constructor_input.args, **one.constructor_input.kwargs),
            one.forward_input.args,
            one.forward_input.kwargs,
        )
        for one in every[::step]
    ]


def share(part: int, parts: int, most: int | None = None) -> list[Configuration]:
    """Return every configuration of which the number, modulo ``parts``, is ``part``."""
    return [one for name in infos() for one in configurations(name, most)][part::parts]
