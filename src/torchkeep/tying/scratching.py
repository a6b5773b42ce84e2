"""Run a module's own reset methods where they can do no harm: on a copy of it alone, on the CPU."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from torchkeep.tensors.streams import forked_randomness
from torchkeep.tying.deciding import same_bits
from torchkeep.tying.hanging import dressed_like

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

RESETS = ("reset_parameters", "_reset_parameters", "reset_running_stats", "reset_buffers")
"""Methods that fill a module's own tensors: torch's conventions, and one for buffers alone."""


class Scratch:
    """Copies of single modules of one model.

    A module's own parameters and buffers are copied as the caller says; every other tensor of the model that
    the copy reaches, through children or attributes, becomes an empty one on the meta device.

    Args:
        tensors: every parameter and buffer of the model.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {id(tensor): tensor for tensor in tensors}

    def copy(self, module: nn.Module, own: Callable[[Tensor], Tensor]) -> nn.Module:
        """Copy ``module``; ``own`` makes the values of each tensor that it holds itself."""
        return copy.deepcopy(module, _Memo(self._tensors, _own_tensors(module), own))


class _Memo(dict[int, Any]):
    """What deepcopy asks for copies that are already made: it finds every tensor's here."""

    def __init__(
        self, tensors: dict[int, Tensor], own: dict[int, Tensor], make: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._tensors, self._own, self._make = tensors, own, make

    def get(self, key: int, default: Any = None) -> Any:
        if key not in self and key in self._tensors:
            tensor = self._tensors[key]
            if is_lazy(tensor):
                self[key] = tensor
            elif key in self._own:
                self[key] = dressed_like(tensor, self._make(tensor))
            else:
                self[key] = dressed_like(tensor, torch.empty_like(tensor.data, device="meta"))
        return super().get(key, default)


def _own_tensors(module: nn.Module) -> dict[int, Tensor]:
    own = [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001 - its own only, ties included
    return {id(tensor): tensor for tensor in own if tensor is not None}


def rebuild_buffers(scratch: Scratch, module: nn.Module, path: str) -> tuple[dict[str, Tensor], str]:
    """Let a module fill its own buffers again, and tell which of them it did.

    Its reset methods run twice, over different garbage and with the same randomness (keyed by ``path``): a buffer
    that is equal bit for bit after both does not depend on what was there.

    Args:
        scratch: makes the copies; the module itself is not touched.
        module: holds the buffers, on any device.
        path: its canonical name.

    Returns:
        The buffers on the CPU by key, those that were rebuilt only; and why others could not be.
    """
    if any(map(is_lazy, _own_tensors(module).values())):
        return {}, f"{type(module).__name__} is lazy; run the model once on the meta device, then materialize it"
    if any(map(is_lazy, _own_tensors(module).values())):
        return {}, f"{type(module).__name__} is lazy; run the model once on the meta device, then materialize it"
    methods = [name for name in RESETS if callable(getattr(module, name, None))]
    if not methods:
        return {}, f"{type(module).__name__} has no method that fills it"
    runs = []
    for high in (False, True):
        generator = torch.Generator().manual_seed(int(high))
        try:
            copied = scratch.copy(module, partial(garbage, generator=generator, high=high))
            # The device too, because the caller may stand in a `with torch.device("meta")`.
            with forked_randomness("torchkeep rebuilds buffers", path), torch.device("cpu"):
                for name in methods:
                    getattr(copied, name)()
        except Exception as error:  # noqa: BLE001 - whatever the module's own code raises is the reason
            return {}, f"{type(module).__name__} could not fill it ({type(error).__name__}: {error})"
        runs.append(copied._buffers)  # noqa: SLF001 - the only way to them all, persistent or not
    first, second = runs
    wanted = module._buffers.items()  # noqa: SLF001
    filled = {
        key: new for key, old in wanted if (new := _agreed(first.get(key), second.get(key), old)) is not None
    }
    return filled, f"{type(module).__name__}.{methods[0]} leaves it as it is"


def _agreed(one: Tensor | None, other: Tensor | None, wanted: Tensor | None) -> Tensor | None:
    """Return what two runs gave if it is equal bit for bit, and of the shape and dtype that was wanted."""
    if one is None or other is None or wanted is None or is_lazy(wanted) or one.is_meta or other.is_meta:
        return None
    if not (one.shape == other.shape == wanted.shape and one.dtype == other.dtype == wanted.dtype):
        return None
    return one if same_bits(one, other) else None


def garbage(tensor: Tensor, generator: torch.Generator, *, high: bool) -> Tensor:
    """Make values of the shape and dtype of ``tensor``; high ones differ from low ones in each element.

    They are finite and not constant, so that code which normalises by them does not end in the same NaN twice.
    """
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if dtype == torch.bool:
        return torch.full(shape, high, dtype=dtype, device="cpu")
    values = torch.rand(shape, generator=generator, device="cpu")
    if dtype.is_floating_point or dtype.is_complex:
        values = values + 1 if high else values / 4 + 0.25
    else:
        values = (values * 50).floor() + (51 if high else 1)
    try:
        return values.to(dtype)
    except (RuntimeError, NotImplementedError):
        # Sub-byte and raw dtypes, which nothing converts to.
        size = values.numel() * dtype.itemsize
        fill = torch.full((size,), 0x22 if high else 0x11, dtype=torch.uint8, device="cpu")
        return fill.view(dtype).view(shape)
