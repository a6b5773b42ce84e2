"""Initializers that draw every element alike: normal, uniform, trunc_normal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torchkeep.init import distributions
from torchkeep.init.initializers import Elementwise, Initializer, Shape, number_text, real, refuse

if TYPE_CHECKING:
    from torchkeep.init.distributions import Distribution


@dataclass(frozen=True, repr=False)
class Normal(Elementwise):
    """See `normal`."""

    title = "normal"
    mean: float = field(default=0.0, metadata={"always": True})
    std: float = field(default=1.0, metadata={"always": True})

    def distribution(self, shape: Shape) -> Distribution:  # noqa: ARG002 - the same for every shape
        """Return N(mean, std^2)."""
        return distributions.Normal(self.mean, self.std)


@dataclass(frozen=True, repr=False)
class Uniform(Elementwise):
    """See `uniform`."""

    title = "uniform"
    low: float = field(default=0.0, metadata={"always": True})
    high: float = field(default=1.0, metadata={"always": True})

    def distribution(self, shape: Shape) -> Distribution:  # noqa: ARG002 - the same for every shape
        """Return U(low, high)."""
        return distributions.Uniform(self.low, self.high)


@dataclass(frozen=True, repr=False)
class TruncNormal(Elementwise):
    """See `trunc_normal`."""

    title = "trunc_normal"
    real_only = True
    mean: float = field(default=0.0, metadata={"always": True})
    std: float = field(default=1.0, metadata={"always": True})
    low: float = field(default=-2.0, metadata={"always": True})
    high: float = field(default=2.0, metadata={"always": True})

    def distribution(self, shape: Shape) -> Distribution:  # noqa: ARG002 - the same for every shape
        """Return N(mean, std^2) between the bounds."""
        return distributions.Truncated(self.mean, self.std, self.low, self.high)


def normal(mean: float = 0.0, std: float = 1.0) -> Initializer:
    """Draw from N(mean, std^2), as `torch.nn.init.normal_`.

    Args:
        mean: of every element; of the real and the imaginary part of a complex one.
        std: standard deviation, 0 or more.

    Raises:
        RuleError: an argument is no finite number, or ``std`` is negative.
    """
    made = Normal(real("normal", "mean", mean), real("normal", "std", std))
    if made.std < 0:
        refuse("normal", f"std is 0 or more, not {number_text(made.std)}")
    return made


def uniform(low: float = 0.0, high: float = 1.0) -> Initializer:
    """Draw from U(low, high), as `torch.nn.init.uniform_`.

    In the drawing dtype ``low <= value < high``; rounding to a narrower dtype may reach ``high``.

    Args:
        low: lower bound.
        high: upper bound, above ``low``.

    Raises:
        RuleError: an argument is no finite number, or ``low`` is not below ``high``.
    """
    made = Uniform(real("uniform", "low", low), real("uniform", "high", high))
    _check_order("uniform", made.low, made.high)
    return made


def trunc_normal(mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0) -> Initializer:
    """Draw from N(mean, std^2) given that ``low <= value <= high``, as `torch.nn.init.trunc_normal_`.

    The bounds are values, not multiples of ``std``. Narrow intervals and far tails are drawn as exactly as others.

    Args:
        mean: of the normal before truncation.
        std: of the normal before truncation, above 0.
        low: least value; may be minus infinity.
        high: greatest value, above ``low``; may be infinity.

    Raises:
        RuleError: an argument is no number, ``std`` is not positive, or ``low`` is not below ``high``.
    """
    title = "trunc_normal"
    made = TruncNormal(
        real(title, "mean", mean),
        real(title, "std", std),
        real(title, "low", low, infinite=True),
        real(title, "high", high, infinite=True),
    )
    if made.std <= 0:
        refuse(title, f"std is above 0, not {number_text(made.std)}")
    _check_order(title, made.low, made.high)
    return made


def _check_order(title: str, low: float, high: float) -> None:
    if not low < high:
        refuse(title, f"low is below high, but {number_text(low)} is not below {number_text(high)}")
