"""Initializers that draw a tensor as a whole, on one thread: orthogonal, custom, torch_default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from torchkeep.errors import RuleError
from torchkeep.init.drawing import SCHEME, drawing_dtype
from torchkeep.init.initializers import DRAWABLE, Initializer, Shape, Subject, check_gain, refuse
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.streams import forked_randomness, keyed_generator

if TYPE_CHECKING:
    from collections.abc import Callable

Filler: TypeAlias = "Callable[[torch.Tensor, torch.Generator], torch.Tensor | None]"

RESETS = ("reset_parameters", "_reset_parameters")
"""How modules name the method that gives them their first values; MultiheadAttention has the second."""


@dataclass(frozen=True, slots=True)
class Order:
    """One tensor to be filled as a whole.

    Attributes:
        seed: of the plan.
        name: canonical name.
        shape: global shape.
        dtype: of the tensor.
    """

    seed: int
    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def drawn(self) -> torch.dtype:
        """The dtype in which values are made: float32 for narrower floats, complex64 for narrower complex."""
        if self.dtype not in DRAWABLE:
            return self.dtype
        dtype = drawing_dtype(self.dtype)
        return dtype.to_complex() if self.dtype.is_complex else dtype

    @property
    def key(self) -> tuple[str, int, int, str, Shape]:
        """The key of everything random about it."""
        return "torchkeep.init whole", SCHEME, self.seed, self.name, self.shape


class Whole(Initializer):
    """The tensor is made in one piece, on one thread."""

    def make(self, order: Order) -> torch.Tensor:
        """Return the values: a tensor of ``order.shape`` and ``order.drawn`` on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Orthogonal(Whole):
    """See `orthogonal`."""

    title = "orthogonal"
    gain: float = 1.0

    def complaint(self, subject: Subject) -> str | None:
        """Say why there is no such matrix; see `Initializer.complaint`."""
        if len(subject.shape) < 2:  # noqa: PLR2004 - rows and columns
            return "orthogonal needs 2 dimensions or more; give other tensors a rule of their own, such as zeros"
        if subject.dtype not in DRAWABLE or subject.dtype.is_complex:
            return f"orthogonal is drawn in real floating dtypes, not {dtype_name(subject.dtype)}"
        return None

    def deviation(self, shape: Shape) -> float | None:
        """Return the expected standard deviation of the values."""
        longer = max(shape[0], prod(shape[1:]))
        return self.gain / math.sqrt(longer) if longer else 0.0

    def make(self, order: Order) -> torch.Tensor:
        """Return the values; see `Whole.make`."""
        room = torch.empty(order.shape, dtype=order.drawn, device="cpu")
        return nn.init.orthogonal_(room, self.gain, keyed_generator(*order.key))


@dataclass(frozen=True, repr=False)
class Custom(Whole):
    """See `custom`."""

    title = "custom"
    fn: Filler

    def __repr__(self) -> str:
        return f"custom({getattr(self.fn, '__qualname__', None) or repr(self.fn)})"

    def complaint(self, subject: Subject) -> str | None:  # noqa: ARG002 - the function decides
        """Return None: what the function can fill shows when it runs."""
        return None

    def make(self, order: Order) -> torch.Tensor:
        """Return the values; see `Whole.make`.

        Raises:
            RuleError: the function returned what is no such tensor, or left elements unset.
        """
        tensor = unset(order.shape, order.drawn)
        # The keyed generators are there for a function that forgets to use its own: no global state is consumed.
        with torch.no_grad(), forked_randomness(*order.key, "global"), torch.device("cpu"):
            returned: Any = self.fn(tensor, keyed_generator(*order.key))
        if returned is not None and returned is not tensor:
            if not isinstance(returned, torch.Tensor) or returned.shape != tensor.shape:
                found = f"shape {tuple(returned.shape)}" if isinstance(returned, torch.Tensor) else repr(returned)
                raise RuleError(
                    f"{self!r} for {order.name!r} fills the tensor that it is given, or returns one of shape "
                    f"{order.shape}; it returned {found}"
                )
            tensor = returned.detach().to("cpu", order.drawn)
        if missing := count_unset(tensor):
            raise RuleError(
                f"{self!r} left {missing} of the {tensor.numel()} elements of {order.name!r} NaN, as which the "
                "tensor that it is given starts; fill all of it"
            )
        return tensor


@dataclass(frozen=True, repr=False)
class TorchDefault(Initializer):
    """See `torch_default`."""

    title = "torch_default"

    def complaint(self, subject: Subject) -> str | None:
        """Say that the owner has no method to run; see `Initializer.complaint`."""
        if reset_method(subject.module):
            return None
        # Imported here to break no floor: the name of the class is a matter of surveys.
        from torchkeep.tables.modules import type_info  # noqa: PLC0415

        name = type_info(type(subject.module)).qualified
        return f"torch_default runs the owner's reset_parameters, and {name} has none; name another initializer"


def reset_method(module: nn.Module) -> str | None:
    """Return the name of the module's own method that gives it its first values, or None."""
    return next((name for name in RESETS if callable(getattr(module, name, None))), None)


def unset(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """Make a CPU tensor that shows where nobody wrote: NaN where the dtype has it, else zeros."""
    nan = dtype.is_floating_point or dtype.is_complex
    return torch.full(shape, math.nan if nan else 0, dtype=dtype, device="cpu")


def count_unset(tensor: torch.Tensor) -> int:
    """Count the elements that are still NaN."""
    return int(tensor.isnan().sum()) if tensor.dtype.is_floating_point or tensor.dtype.is_complex else 0


def orthogonal(gain: float = 1.0) -> Initializer:
    """Draw a (semi-)orthogonal matrix, as `torch.nn.init.orthogonal_` (Saxe et al. 2014).

    Dimensions after the first are flattened into one.

    Args:
        gain: scale, 0 or more.

    Raises:
        RuleError: ``gain`` is no finite number, or negative.
    """
    return Orthogonal(check_gain("orthogonal", gain))


def torch_default() -> Initializer:
    """Let the owning module's own ``reset_parameters`` (or ``_reset_parameters``) decide.

    It runs on a scratch copy of that module alone, on the CPU, under generators keyed by the module's name. Only
    the tensors that the rule claims are copied back. A module that has neither method is refused.
    """
    return TorchDefault()


def custom(fn: Filler) -> Initializer:
    """Let a function fill the tensor.

    Args:
        fn: called as ``fn(tensor, generator)`` without autograd. The tensor has the parameter's global shape,
            lies on the CPU in the drawing dtype (float32, or float64 for float64; complex likewise) and holds
            NaN. The function fills all of it, or returns a tensor of the same shape. It draws from ``generator``;
            torch's, Python's and NumPy's global generators are keyed meanwhile, and restored.

    Raises:
        RuleError: ``fn`` can't be called.
    """
    if not callable(fn):
        refuse("custom", f"fn is a function of a tensor and a generator, not {fn!r}; use constant for numbers")
    return Custom(fn)
