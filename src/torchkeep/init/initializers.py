"""Initializers: what a rule gives to the tensors that it claims.

They are immutable, compare by value and hold no tensors: an initializer is a description, and drawing happens
elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn, TypeAlias

import torch

from torchkeep.dtypes import FLOATS
from torchkeep.errors import RuleError
from torchkeep.init import distributions
from torchkeep.selectors.suggest import did_you_mean
from torchkeep.tensors.dtypes import dtype_name, torch_dtype

if TYPE_CHECKING:
    from torch import nn

    from torchkeep.init.distributions import Distribution

Shape: TypeAlias = tuple[int, ...]
_COMPLEX = ("complex128", "complex64", "complex32")
DRAWABLE: Final = frozenset(filter(None, map(torch_dtype, (*FLOATS, *_COMPLEX))))
"""Dtypes that real draws can be rounded into."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What an initializer is told of the tensor that it is to fill.

    Attributes:
        shape: global shape.
        dtype: of the tensor.
        meta: whether it is on the meta device, and so holds nothing yet.
        module: the module that owns it.
    """

    shape: Shape
    dtype: torch.dtype
    meta: bool
    module: nn.Module


class Initializer:
    """What a rule gives to the tensors that it claims; made by the functions in ``tk.init``.

    No abstract base class, because checking for those is slow and every tensor of a model is checked.
    """

    title: ClassVar[str]
    """The function in ``tk.init`` that makes it."""

    def complaint(self, subject: Subject) -> str | None:
        """Say why the tensor can't be filled this way and what to do, without naming it; None where it can."""
        raise NotImplementedError

    def deviation(self, shape: Shape) -> float | None:  # noqa: ARG002 - most have none to tell
        """Return the expected standard deviation of the values; None where it is not known."""
        return None

    def __repr__(self) -> str:
        shown = [
            f"{entry.name}={number_text(value)}"
            for entry in fields(self)  # type: ignore[arg-type]  # every one below is a dataclass
            if entry.repr and (entry.metadata.get("always") or getattr(self, entry.name) != entry.default)
            for value in [getattr(self, entry.name)]
        ]
        return f"{self.title}({', '.join(shown)})"


class Elementwise(Initializer):
    """Every element is drawn independently."""

    real_only: ClassVar[bool] = False
    """Whether complex tensors are refused; else real and imaginary parts are drawn, as torch does."""

    def distribution(self, shape: Shape) -> Distribution:
        """Return what the elements of a real tensor of that shape are drawn from; it must pass `complaint`."""
        raise NotImplementedError

    def for_dtype(self, shape: Shape, dtype: torch.dtype) -> Distribution:
        """Return what the reals of a tensor are drawn from: a complex element is two of them."""
        found = self.distribution(shape)
        if dtype.is_complex and isinstance(found, distributions.Normal):
            # The variance of a complex element is the sum of its parts'; torch halves it likewise.
            return distributions.Normal(found.mean, found.std / math.sqrt(2))
        return found

    def deviation(self, shape: Shape) -> float | None:
        """Return the expected standard deviation of the values."""
        return self.distribution(shape).deviation

    def complaint(self, subject: Subject) -> str | None:
        """Say why the tensor can't be drawn; see `Initializer.complaint`."""
        if subject.dtype not in DRAWABLE:
            return f"{self.title} can't be drawn in {dtype_name(subject.dtype)}; use constant, zeros, ones or keep"
        if subject.dtype.is_complex and self.real_only:
            return f"{self.title} is defined for reals, not {dtype_name(subject.dtype)}; use normal or uniform"
        greatest = torch.finfo(subject.dtype.to_real()).max
        if self.distribution(subject.shape).reach > greatest:
            return (
                f"{self!r} reaches beyond {dtype_name(subject.dtype)}, which ends at {greatest:.3g}; bring it in"
            )
        return None


def real(title: str, name: str, value: object, *, infinite: bool = False) -> float:
    """Check one argument that is a number.

    Args:
        title: the function it was given to.
        name: the argument's name.
        value: what was given.
        infinite: whether an infinity will do.

    Raises:
        RuleError: it is no real number, or NaN, or infinite where it may not be.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(title, f"{name} is a number, not {value!r}")
    number = float(value)
    if math.isnan(number) or (math.isinf(number) and not infinite):
        refuse(title, f"{name} is a finite number, not {number}")
    return number


def choice(title: str, name: str, value: object, known: tuple[str, ...]) -> None:
    """Check one argument that is one of a few words.

    Raises:
        RuleError: it is not; the nearest is named.
    """
    if value not in known:
        hint = did_you_mean(str(value), known) or " choose one"
        refuse(title, f"{name} is one of {', '.join(known)}, not {value!r};{hint}")


def refuse(title: str, problem: str) -> NoReturn:
    """Raise what is wrong with an argument.

    Raises:
        RuleError: always.
    """
    error = RuleError(f"tk.init.{title}: {problem}")
    error.problems = (problem,)
    raise error


def number_text(value: object) -> str:
    """Spell an argument: ``0.01``, ``1`` rather than ``1.0``."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # noqa: PLR2004 - below it repr has no exponent
        return str(int(value))
    return repr(value)


def check_gain(title: str, gain: float) -> float:
    """Check a gain: a finite number, 0 or more."""
    number = real(title, "gain", gain)
    if number < 0:
        refuse(title, f"gain is 0 or more, not {number_text(number)}")
    return number
