"""Distributions are those of torch.nn.init; truncation neither hangs nor biases, however hard the interval."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from drawing_help import drawn
from stable_ids import stable
from torchkeep.init.distributions import Desk, Normal, Truncated, Uniform

N = 200_000
LEAST_P = 1e-3
"""Seeds are fixed, so a test passes or fails for good; one in a thousand seeds fails a right distribution."""


def from_torch(fill):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fill(torch.empty(N)).double().numpy()


@pytest.mark.parametrize(
    ("distribution", "fill", "exact"),
    [
        (Normal(0.5, 2.0), lambda t: nn.init.normal_(t, 0.5, 2.0), stats.norm(0.5, 2.0)),
        (Uniform(-1.5, 4.0), lambda t: nn.init.uniform_(t, -1.5, 4.0), stats.uniform(-1.5, 5.5)),
        (Truncated(0, 1, -2, 2), nn.init.trunc_normal_, stats.truncnorm(-2, 2)),
        (
            Truncated(1, 0.5, 0.9, 3.0),
            lambda t: nn.init.trunc_normal_(t, 1, 0.5, 0.9, 3.0),
            stats.truncnorm(-0.2, 4, 1, 0.5),
        ),
        (Truncated(0, 0.02, -2, 2), lambda t: nn.init.trunc_normal_(t, 0, 0.02), stats.norm(0, 0.02)),
    ],
    ids=stable,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_follow_the_distribution_of_torch(distribution, fill, exact, dtype):
    """Kolmogorov-Smirnov against the exact distribution and against torch's own draws, and the first moments."""
    values = drawn(distribution, N, dtype=dtype).double().numpy()
    assert stats.kstest(values, exact.cdf).pvalue > LEAST_P
    assert stats.ks_2samp(values, from_torch(fill)).pvalue > LEAST_P
    assert abs(values.mean() - exact.mean()) < 4 * exact.std() / N**0.5
    assert values.std() == pytest.approx(exact.std(), rel=0.01)
    assert stats.skew(values) == pytest.approx(float(exact.stats("s")), abs=0.03)
    assert distribution.deviation == pytest.approx(exact.std(), rel=1e-6)


INTERVALS = [
    (-2.0, 2.0),
    (-2.5, 2.5),
    (-3.0, 3.0),
    (-5.5, 5.5),
    (-1.0, 50.0),
    (0.0, math.inf),
    (-math.inf, -1.0),
    (0.5, 0.500001),
    (-1e-6, 1e-6),
    (2.0, 2.0001),
    (4.9, 5.1),
    (4.999, math.inf),
    (5.001, math.inf),
    (6.0, 7.0),
    (-7.0, -6.0),
    (8.0, 8.0 + 1e-3),
    (30.0, math.inf),
    (-math.inf, -40.0),
    (100.0, 200.0),
    (1e4, 1e4 + 1e-4),
    (1e6, math.inf),
]


def tail_cdf(left, right):
    """Return the exact cumulative distribution function on the interval, with logarithms where it is a tail."""
    if left <= 0 <= right:
        return stats.truncnorm(left, right).cdf
    near, far, sign = (left, right, 1) if left > 0 else (-right, -left, -1)

    def cdf(x):
        # log(S(near + d) / S(near)) without cancellation, S the survival function.
        d = np.maximum(sign * np.asarray(x) - near, 0)
        survival = np.exp(-d * (near + d / 2) + log_scaled(near + d) - log_scaled(near))
        last = (
            0.0
            if math.isinf(far)
            else math.exp(-(far - near) * (near + (far - near) / 2) + log_scaled(far) - log_scaled(near))
        )
        upper = (1 - survival) / (1 - last)
        return upper if sign > 0 else 1 - upper

    return cdf


def log_scaled(x):
    from scipy.special import erfcx

    return np.log(erfcx(np.asarray(x) / math.sqrt(2)))


@pytest.mark.parametrize(("left", "right"), INTERVALS)
def test_truncation_is_exact_in_every_interval(left, right):
    """Wide, narrow, one-sided, far in a tail: within the bounds, finite, and distributed as it should be."""
    distribution = Truncated(0.0, 1.0, left, right)
    values = drawn(distribution, 20_000, dtype=torch.float64).numpy()
    assert np.isfinite(values).all()
    assert left <= values.min() <= values.max() <= right
    assert stats.kstest(values, tail_cdf(left, right)).pvalue > LEAST_P
    assert distribution.deviation == pytest.approx(values.std(), rel=0.05)


@pytest.mark.parametrize(("left", "right"), INTERVALS)
def test_truncation_in_float32_stays_within_the_bounds(left, right):
    """Rounded to float32, no value leaves the (rounded) bounds, and mean and spread are those of float64."""
    values = drawn(Truncated(0.0, 1.0, left, right), 20_000)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert torch.tensor(left) <= values.min() <= values.max() <= torch.tensor(right)
    exact = drawn(Truncated(0.0, 1.0, left, right), 20_000, dtype=torch.float64)
    rounding = 1e-7 * abs(left if math.isfinite(left) else right)
    tolerance = 5 * float(exact.std()) / 20_000**0.5 + rounding
    assert float(values.double().mean()) == pytest.approx(float(exact.mean()), abs=tolerance)


@pytest.mark.parametrize(
    "distribution",
    [
        Truncated(0, 1e-300, 1, 2),
        Truncated(0, 1e-300, -1, 2),
        Truncated(1e300, 1, -1, 1),
        Truncated(0, 1e300, -1, 1),
    ],
    ids=stable,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absurd_truncations_end_within_their_bounds(distribution, dtype):
    """Standard deviations of nothing, means of 1e300: finite numbers between the bounds, and no endless loop."""
    values = drawn(distribution, 1000, dtype=dtype)
    assert values.isfinite().all()
    assert distribution.low <= values.min() <= values.max() <= distribution.high


def test_the_extremes_of_a_one_sided_truncation_are_finite():
    """Over ten million draws with an infinite bound no value is infinite, and the tail is there."""
    values = drawn(Truncated(0.0, 1.0, -1.0, math.inf), 10_000_000)
    assert values.isfinite().all()
    assert 4.8 < values.max() < 7


@pytest.mark.parametrize(("left", "right"), [*INTERVALS, (-math.inf, math.inf), (-1e300, 1e300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rarest_bits_give_values_within_the_bounds(left, right, dtype, monkeypatch):
    """All ones, all zeros and what is next to them, which no test would ever draw: finite, and inside."""
    integer = torch.int64 if dtype is torch.float64 else torch.int32
    limits = torch.iinfo(integer)
    rare = torch.tensor([limits.min, limits.min + 1, -1, 0, 1, limits.max - 1, limits.max] * 16, dtype=integer)
    monkeypatch.setattr(Desk, "bits", lambda _, count, __: rare[:count])
    out = torch.empty(112, dtype=dtype)
    Truncated(0.0, 1.0, left, right).fill(out, Desk())
    assert out.isfinite().all()
    assert torch.tensor(left, dtype=dtype) <= out.min() <= out.max() <= torch.tensor(right, dtype=dtype)


def test_uniform_is_half_open():
    """The upper bound is never reached, the lower may be; so it is in torch."""
    values = drawn(Uniform(0.0, 1.0), 20_000_000)
    assert values.min() >= 0
    assert values.max() < 1


@pytest.mark.parametrize("size", [1, 5, 15, 16, 17, 31, 32, 100, 8191, 8192, 8193, 65535, 65536, 65537])
@pytest.mark.parametrize("distribution", [Normal(3, 1), Uniform(3, 4), Truncated(3, 1, 2, 4)], ids=str)
def test_every_size_is_filled(distribution, size):
    """No element is left over at the borders of lanes, blocks and chunks, and none is repeated."""
    values = drawn(distribution, size)
    assert values.shape == (size,)
    assert (values > -3).all()
    assert values.unique().numel() > 0.97 * size


@pytest.mark.parametrize("distribution", [Normal(0, 1), Uniform(-1, 1), Truncated(0, 1, -2, 2)], ids=str)
def test_neighbours_are_independent(distribution):
    """No correlation at small lags, across blocks and chunks, nor between the values and their places."""
    values = drawn(distribution, 1 << 18).double()
    values = (values - values.mean()) / values.std()
    n = values.numel()
    for lag in (1, 2, 8, 16, 623, 624, 16384, 65536):
        correlation = (values[lag:] * values[:-lag]).mean()
        assert abs(correlation) < 4.5 / (n - lag) ** 0.5
    assert abs((values * torch.linspace(-1, 1, n)).mean()) < 4.5 / (3 * n) ** 0.5
