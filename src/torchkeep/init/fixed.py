"""Initializers without chance: constants, eye, dirac, keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchkeep.init.initializers import DRAWABLE, Initializer, Shape, Subject, number_text, real, refuse
from torchkeep.init.wholes import Order, Whole
from torchkeep.tensors.dtypes import dtype_name


class Constant(Initializer):
    """Every element is ``value``."""

    value: float

    def complaint(self, subject: Subject) -> str | None:
        """Say why the tensor can't hold the value; see `Initializer.complaint`."""
        try:
            held = torch.full((), self.value, dtype=subject.dtype, device="cpu")
            exact = subject.dtype in DRAWABLE or held.item() == self.value
            overflows = subject.dtype in DRAWABLE and math.isfinite(self.value) and not held.isfinite().item()
        except (RuntimeError, NotImplementedError, OverflowError):
            exact, overflows = False, False
        if exact and not overflows:
            return None
        return f"{dtype_name(subject.dtype)} can't hold {number_text(self.value)}; give another constant, or keep"

    def deviation(self, shape: Shape) -> float | None:  # noqa: ARG002 - the same for every shape
        """Return 0."""
        return 0.0


@dataclass(frozen=True, repr=False)
class Filled(Constant):
    """See `constant`."""

    title = "constant"
    value: float = field(default=0.0, metadata={"always": True})

    def __repr__(self) -> str:
        return f"constant({number_text(self.value)})"


@dataclass(frozen=True, repr=False)
class Zeros(Constant):
    """See `zeros`."""

    title = "zeros"
    value = 0


@dataclass(frozen=True, repr=False)
class Ones(Constant):
    """See `ones`."""

    title = "ones"
    value = 1


@dataclass(frozen=True, repr=False)
class Eye(Whole):
    """See `eye`."""

    title = "eye"

    def complaint(self, subject: Subject) -> str | None:
        """Say why there is no such matrix; see `Initializer.complaint`."""
        return None if len(subject.shape) == 2 else "eye makes matrices, of 2 dimensions; use ones or dirac"  # noqa: PLR2004

    def make(self, order: Order) -> torch.Tensor:
        """Return the values; see `Whole.make`."""
        return torch.eye(*order.shape, device="cpu").to(order.drawn)


@dataclass(frozen=True, repr=False)
class Dirac(Whole):
    """See `dirac`."""

    title = "dirac"
    groups: int = 1

    def complaint(self, subject: Subject) -> str | None:
        """Say why there is no such kernel; see `Initializer.complaint`."""
        if len(subject.shape) not in {3, 4, 5}:
            return "dirac makes kernels of convolutions, of 3, 4 or 5 dimensions; use eye for matrices"
        if subject.shape[0] % self.groups:
            return f"{self!r} needs a first dimension that {self.groups} divides"
        return None

    def make(self, order: Order) -> torch.Tensor:
        """Return the values; see `Whole.make`."""
        return nn.init.dirac_(torch.empty(order.shape, device="cpu"), self.groups).to(order.drawn)


@dataclass(frozen=True, repr=False)
class Keep(Initializer):
    """See `keep`."""

    title = "keep"

    def complaint(self, subject: Subject) -> str | None:
        """Say that there is nothing to keep; see `Initializer.complaint`."""
        return "keep has nothing to keep on the meta device; name another initializer" if subject.meta else None


def constant(value: float) -> Initializer:
    """Set every element to ``value``.

    Args:
        value: a number that the tensor's dtype can hold; an infinity will do, NaN will not.

    Raises:
        RuleError: ``value`` is no real number, or NaN.
    """
    number = value if isinstance(value, int) else real("constant", "value", value, infinite=True)
    return Filled(number)


def zeros() -> Initializer:
    """Set every element to 0."""
    return Zeros()


def ones() -> Initializer:
    """Set every element to 1."""
    return Ones()


def eye() -> Initializer:
    """Set a matrix to ones on the diagonal and zeros elsewhere, as `torch.nn.init.eye_`."""
    return Eye()


def dirac(groups: int = 1) -> Initializer:
    """Set a convolution's kernel (3 to 5 dimensions) so that it passes its input on, as `torch.nn.init.dirac_`.

    Args:
        groups: of the convolution; it divides the number of output channels.

    Raises:
        RuleError: ``groups`` is no whole number of 1 or more.
    """
    given: Any = groups  # what a user passes may be anything
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        refuse("dirac", f"groups is a whole number of 1 or more, not {groups!r}")
    return Dirac(groups)


def keep() -> Initializer:
    """Leave the tensor as it is."""
    return Keep()
