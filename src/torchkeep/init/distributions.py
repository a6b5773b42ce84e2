"""Distributions that are drawn element by element, and how random bits become their values.

Each turns a stream of 32-bit words into a block of values of the drawing dtype: float32, or float64 for float64
tensors. Values are those of `torch.nn.init` in distribution, not in bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

import torch

from torchkeep.tensors.streams import Stream

_FEW: Final = 1 << 13
"""Below this many elements torch's own uniform_ is the quickest: one step instead of four."""
_ROOT2: Final = math.sqrt(2)
_UNBOUNDED: Final = 6.0
"""Box-Muller on 24-bit uniforms never goes further out than 5.77 standard deviations."""
_FURTHEST: Final = 9.0
"""No draw of any precision goes further out than this many standard deviations."""
_SURE: Final = math.nextafter(1.0, 0.0)
"""The highest value of the error function whose inverse is finite."""
_FARTHEST: Final = 1e100
"""Bounds are brought in to this many standard deviations, so that squares and ratios of them stay finite."""
_SINGLE: Final = 2.5
_COARSE: Final = 0.5
"""Up to ``_SINGLE`` standard deviations, over at least this span of the error function, float32 is fine enough."""
_TAIL: Final = 5.0
"""Where the error function is too near 1 for 64-bit arithmetic to tell quantiles apart."""


class Desk:
    """What one thread draws with: a stream, and room for intermediate values.

    Attributes:
        stream: the keyed stream; `Distribution.fill` takes its words.
    """

    def __init__(self) -> None:
        self.stream = Stream()
        self._rooms: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def room(self, use: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return ``count`` uninitialised elements, aligned as torch aligns; the same memory for one use."""
        held = self._rooms.get((use, dtype))
        if held is None or held.numel() < count:
            held = self._rooms[use, dtype] = torch.empty(count, dtype=dtype, device="cpu")
        return held[:count]

    def bits(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Draw ``count`` (an even number of) integers that take every value alike.

        Args:
            count: how many.
            dtype: of the values they are for: int32 for float32, int64 for float64.
        """
        wide = dtype is torch.float64
        longs = self.room("bits", count if wide else count // 2, torch.int64)
        # This form draws 64 bits at a time, the fastest way to torch's words.
        longs.random_(-(2**63), None, generator=self.stream.generator)
        return longs if wide else longs.view(torch.int32)


class Distribution(Protocol):
    """A distribution of independent elements."""

    @property
    def deviation(self) -> float:
        """The expected standard deviation of the values."""

    @property
    def reach(self) -> float:
        """The greatest absolute value that is ever drawn, or somewhat more."""

    def fill(self, out: torch.Tensor, desk: Desk) -> None:
        """Draw values from the desk's stream.

        Args:
            out: to be filled; contiguous, 1-D, float32 or float64, the number of elements a multiple of 16.
            desk: the calling thread's.
        """


@dataclass(frozen=True, slots=True)
class Normal:
    """N(mean, std^2), by torch's own Box-Muller transform."""

    mean: float
    std: float

    @property
    def deviation(self) -> float:
        """The expected standard deviation of the values."""
        return self.std

    @property
    def reach(self) -> float:
        """The greatest absolute value that is ever drawn, or somewhat more."""
        return abs(self.mean) + _FURTHEST * self.std

    def fill(self, out: torch.Tensor, desk: Desk) -> None:
        """Draw values; see `Distribution.fill`."""
        out.normal_(self.mean, self.std, generator=desk.stream.generator)


@dataclass(frozen=True, slots=True)
class Uniform:
    """U(low, high): ``low <= value < high`` in the drawing dtype."""

    low: float
    high: float

    @property
    def deviation(self) -> float:
        """The expected standard deviation of the values."""
        return (self.high - self.low) / math.sqrt(12)

    @property
    def reach(self) -> float:
        """The greatest absolute value that is ever drawn, or somewhat more."""
        return max(abs(self.low), abs(self.high), self.high - self.low)

    def fill(self, out: torch.Tensor, desk: Desk) -> None:
        """Draw values; see `Distribution.fill`."""
        if out.numel() < _FEW or out.dtype is torch.float64:
            out.uniform_(self.low, self.high, generator=desk.stream.generator)
        else:
            bits = desk.bits(out.numel(), out.dtype)
            _spread(bits, out, self.low, self.high).clamp_(*_half_open(self.low, self.high))


@dataclass(frozen=True, slots=True)
class Truncated:
    """N(mean, std^2) given that ``low <= value <= high``, by inverting its cumulative distribution.

    Every element takes one draw, however narrow the interval or far out in a tail it lies: nothing is rejected,
    so nothing can hang or be biased by a limit on retries, and values differ between kernels only by rounding.
    Beyond 5 standard deviations quantiles come from the scaled complementary error function, exact there.
    """

    mean: float
    std: float
    low: float
    high: float

    @property
    def deviation(self) -> float:
        """The expected standard deviation of the values."""
        return self.std * _truncated_deviation(*self._bounds)

    @property
    def reach(self) -> float:
        """The greatest absolute value that is ever drawn, or somewhat more."""
        far = _FURTHEST * self.std
        return max(
            abs(max(self.low, min(self.mean, self.high) - far)),
            abs(min(self.high, max(self.mean, self.low) + far)),
        )

    def fill(self, out: torch.Tensor, desk: Desk) -> None:
        """Draw values; see `Distribution.fill`."""
        left, right = self._bounds
        if left <= -_UNBOUNDED and right >= _UNBOUNDED:
            self._clamp(out.normal_(self.mean, self.std, generator=desk.stream.generator))
        elif left > _TAIL:
            self._from_tail(out, desk, left, right)
        elif right < -_TAIL:
            self._from_tail(out, desk, -right, -left, side=-1)
        else:
            self._from_centre(out, desk, math.erf(left / _ROOT2), math.erf(right / _ROOT2))

    @property
    def _bounds(self) -> tuple[float, float]:
        """The interval in standard deviations from the mean."""
        left, right = (self.low - self.mean) / self.std, (self.high - self.mean) / self.std
        return min(left, _FARTHEST), max(right, -_FARTHEST)

    def _clamp(self, values: torch.Tensor) -> torch.Tensor:
        """Bring in what rounding put outside."""
        greatest = torch.finfo(values.dtype).max
        return values.clamp_(max(self.low, -greatest), min(self.high, greatest))

    def _from_centre(self, out: torch.Tensor, desk: Desk, left: float, right: float) -> None:
        """Draw between the quantiles ``left`` and ``right``, as values of the error function."""
        single = max(map(abs, self._bounds)) <= _SINGLE and right - left >= _COARSE
        dtype = out.dtype if single else torch.float64
        values = _spread(desk.bits(out.numel(), out.dtype), desk.room("values", out.numel(), dtype), left, right)
        if dtype is torch.float64:
            values.clamp_(-_SURE, _SURE)
        values.erfinv_().mul_(_ROOT2 * self.std)
        if self.mean:
            values.add_(self.mean)
        out.copy_(self._clamp(values))

    def _from_tail(self, out: torch.Tensor, desk: Desk, near: float, far: float, *, side: int = 1) -> None:
        """Draw between ``near`` and ``far`` standard deviations, above the mean or (side -1) below it.

        The survival function is S(x) = exp(-x^2 / 2) erfcx(x / sqrt 2) / 2. A draw solves log S(near + d) - log
        S(near) = t for d, where t is the logarithm of a uniform between S(far) / S(near) and 1: first without the
        erfcx, whose share is small, then by Newton's method, which converges quadratically from there.
        """
        ratio = math.exp(_log_survival_drop(near, far))
        reference = _erfcx(near)
        bits = desk.bits(out.numel(), out.dtype)
        t = _spread(bits, desk.room("values", out.numel(), torch.float64), 0.0, ratio - 1.0)
        t.log1p_().clamp_(min=-50.0)
        d = -2 * t / (near + (near * near - 2 * t).sqrt())
        for _ in range(3):
            scaled = torch.special.erfcx((near + d) / _ROOT2)
            error = (scaled / reference).log_() - d * (near + d / 2) - t
            d += error * scaled / math.sqrt(2 / math.pi)
        bound = self.low if side > 0 else self.high
        out.copy_(self._clamp(d.mul_(side * self.std).add_(bound)))


def _spread(bits: torch.Tensor, out: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Scale signed integers linearly: their lowest becomes ``low``, one above their highest ``high``."""
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    scale = half * 2.0 ** (1 - 8 * bits.element_size())
    if out.dtype is torch.float64:
        # The middle of the cell that an integer stands for; float32 is coarser than the cells.
        middle += scale / 2
    out.copy_(bits).mul_(scale)
    return out.add_(middle) if middle else out


@cache
def _half_open(low: float, high: float) -> tuple[float, float]:
    """Return, in float32, ``low`` and the number before ``high``."""
    first, last = torch.tensor([low, high], dtype=torch.float32, device="cpu")
    before = last.nextafter(first)
    return first.item(), before.item()


def _erfcx(x: float) -> float:
    """Return exp(x^2 / 2) erfc(x / sqrt 2)."""
    return float(torch.special.erfcx(torch.tensor(x / _ROOT2, dtype=torch.float64, device="cpu")))


def _log_survival_drop(near: float, far: float) -> float:
    """Return log(S(far) / S(near)) of the standard normal's survival function; 0 <= near < far."""
    if math.isinf(far):
        return -math.inf
    drop = (near - far) * (near / 2 + far / 2)
    return drop + math.log(_erfcx(far) / _erfcx(near)) if drop > -700 else -math.inf  # noqa: PLR2004 - exp underflows


@cache
def _truncated_deviation(left: float, right: float) -> float:
    """Return the standard deviation of a standard normal between two bounds, by Simpson's rule."""
    if left < 0 < right:
        peak, start, stop = 0.0, max(left, -12.0), min(right, 12.0)
    else:
        near, far = (left, right) if left >= 0 else (-right, -left)
        # Beyond this the density is below exp(-72) of that at the peak, as at 12 standard deviations.
        peak, start, stop = near, near, min(far, near + 144 / (near + math.hypot(near, 12.0)))
    steps = 2000
    width = (stop - start) / steps
    weights = [1.0, *([4.0, 2.0] * (steps // 2 - 1)), 4.0, 1.0]
    offsets = [start - peak + width * step for step in range(steps + 1)]
    masses = [
        weight * math.exp(-offset * (peak + offset / 2)) for weight, offset in zip(weights, offsets, strict=True)
    ]
    total = math.fsum(masses)
    mean = math.fsum(mass * offset for mass, offset in zip(masses, offsets, strict=True)) / total
    spread = math.fsum(mass * (offset - mean) ** 2 for mass, offset in zip(masses, offsets, strict=True))
    return math.sqrt(spread / total)
