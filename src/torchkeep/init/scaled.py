"""Initializers whose variance follows from the fans: xavier, kaiming, lecun."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from torch.nn.init import calculate_gain

from torchkeep.init import distributions
from torchkeep.init.fans import fans
from torchkeep.init.initializers import Elementwise, Initializer, Shape, Subject, check_gain, choice, real

if TYPE_CHECKING:
    from torchkeep.init.distributions import Distribution

Mode: TypeAlias = Literal["fan_in", "fan_out"]
Nonlinearity: TypeAlias = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]


@dataclass(frozen=True, repr=False)
class _Scaled(Elementwise):
    """Variance is ``scale`` over some fan."""

    uniform: ClassVar[bool] = False

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Return the variance of the elements; the fans are not 0."""
        raise NotImplementedError

    def distribution(self, shape: Shape) -> Distribution:
        """Return the distribution that the fans of ``shape`` ask for."""
        counted = fans(shape)
        assert counted is not None
        std = math.sqrt(self.variance(*counted)) if all(counted) else 0.0
        if self.uniform:
            bound = math.sqrt(3) * std
            return distributions.Uniform(-bound, bound)
        return distributions.Normal(0.0, std)

    def complaint(self, subject: Subject) -> str | None:
        """Say why the tensor can't be drawn; see `Initializer.complaint`."""
        if fans(subject.shape) is None:
            return (
                f"{self.title} needs a fan in and a fan out, which tensors of fewer than 2 dimensions do not "
                "have; give them a rule of their own, such as zeros, ones or normal"
            )
        return super().complaint(subject)


@dataclass(frozen=True, repr=False)
class XavierNormal(_Scaled):
    """See `xavier_normal`."""

    title = "xavier_normal"
    gain: float = 1.0

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Return the variance of the elements."""
        return self.gain**2 * 2 / (fan_in + fan_out)


@dataclass(frozen=True, repr=False)
class XavierUniform(XavierNormal):
    """See `xavier_uniform`."""

    title = "xavier_uniform"
    uniform = True


@dataclass(frozen=True, repr=False)
class KaimingNormal(_Scaled):
    """See `kaiming_normal`."""

    title = "kaiming_normal"
    a: float = 0.0
    mode: Mode = "fan_in"
    nonlinearity: Nonlinearity = "leaky_relu"

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Return the variance of the elements."""
        gain = calculate_gain(self.nonlinearity, self.a)
        return gain**2 / (fan_in if self.mode == "fan_in" else fan_out)


@dataclass(frozen=True, repr=False)
class KaimingUniform(KaimingNormal):
    """See `kaiming_uniform`."""

    title = "kaiming_uniform"
    uniform = True


@dataclass(frozen=True, repr=False)
class LecunNormal(_Scaled):
    """See `lecun_normal`."""

    title = "lecun_normal"

    def variance(self, fan_in: int, fan_out: int) -> float:  # noqa: ARG002 - only the inputs count
        """Return the variance of the elements."""
        return 1 / fan_in


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Draw from U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Args:
        gain: scale, 0 or more; see `torch.nn.init.calculate_gain`.

    Raises:
        RuleError: ``gain`` is no finite number, or negative.
    """
    return XavierUniform(check_gain("xavier_uniform", gain))


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Draw from N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Args:
        gain: scale, 0 or more; see `torch.nn.init.calculate_gain`.

    Raises:
        RuleError: ``gain`` is no finite number, or negative.
    """
    return XavierNormal(check_gain("xavier_normal", gain))


def kaiming_uniform(
    a: float = 0.0, mode: Mode = "fan_in", nonlinearity: Nonlinearity = "leaky_relu"
) -> Initializer:
    """Draw from U(-b, b), b = gain sqrt(3 / fan) (He et al. 2015).

    Args:
        a: negative slope, used with ``"leaky_relu"`` only.
        mode: which fan: ``"fan_in"`` keeps the variance going forward, ``"fan_out"`` going back.
        nonlinearity: what follows the layer, for the gain; see `torch.nn.init.calculate_gain`.

    Raises:
        RuleError: ``a`` is no finite number, or ``mode`` or ``nonlinearity`` is not known.
    """
    return _kaiming(KaimingUniform, a, mode, nonlinearity)


def kaiming_normal(
    a: float = 0.0, mode: Mode = "fan_in", nonlinearity: Nonlinearity = "leaky_relu"
) -> Initializer:
    """Draw from N(0, std^2), std = gain / sqrt(fan) (He et al. 2015).

    Args:
        a: negative slope, used with ``"leaky_relu"`` only.
        mode: which fan: ``"fan_in"`` keeps the variance going forward, ``"fan_out"`` going back.
        nonlinearity: what follows the layer, for the gain; see `torch.nn.init.calculate_gain`.

    Raises:
        RuleError: ``a`` is no finite number, or ``mode`` or ``nonlinearity`` is not known.
    """
    return _kaiming(KaimingNormal, a, mode, nonlinearity)


def lecun_normal() -> Initializer:
    """Draw from N(0, 1 / fan_in) (LeCun et al. 1998; self-normalising networks, Klambauer et al. 2017)."""
    return LecunNormal()


def _kaiming(kind: type[KaimingNormal], a: float, mode: Mode, nonlinearity: Nonlinearity) -> Initializer:
    choice(kind.title, "mode", mode, get_args(Mode))
    choice(kind.title, "nonlinearity", nonlinearity, get_args(Nonlinearity))
    return kind(real(kind.title, "a", a), mode, nonlinearity)
