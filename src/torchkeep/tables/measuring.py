"""Measuring tensors of any dtype, device and strides.

Everything is computed in float64 on the host, chunk by chunk, so that a large tensor needs a few megabytes more
than itself. Means and deviations of chunks are merged by the pairwise formula of Chan, Golub and LeVeque (1979),
which does not lose digits to cancellation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchkeep.tables.statistics import BINS, Histogram, Statistics, TensorStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from torchkeep.rows import Row

_CHUNK = 1 << 20
_SAFE_EXPONENT = 400  # squares of values within 2**±400 neither overflow nor vanish in float64
_OPAQUE = ("bits", "float4", *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)))


def measure_all(tensors: Iterable[tuple[Row, Tensor]]) -> Statistics:
    """Measure tensors one after the other, each with what is known of it."""
    return Statistics(tuple(measure(row, tensor) for row, tensor in tensors))


def measure(row: Row, tensor: Tensor) -> TensorStatistics:
    """Measure one tensor.

    Args:
        row: what is known of it.
        tensor: of any dtype, device and strides; shape ``row.shape``.
    """
    blank = TensorStatistics(row.name, row.shape, row.dtype)
    reason = _unreadable(tensor)
    if reason:
        return replace(blank, note=f"no values: {reason}")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    chunks = _Chunks(tensor.detach())
    zeros = nans = infs = 0
    low, high = math.inf, -math.inf
    for values, nan, inf in chunks:
        zeros += values.numel() - int(torch.count_nonzero(values))
        nans += nan
        infs += inf
        if values.numel():
            least, greatest = torch.aminmax(values)
            low, high = min(low, least.item()), max(high, greatest.item())
    counted = replace(blank, zeros=zeros, nan=nans, inf=infs)
    if low > high:
        return replace(counted, note="no finite values" if tensor.numel() else "no elements")
    mean, std, norm = _moments(chunks, max(abs(low), abs(high)))
    histogram = _histogram(chunks, low, high)
    return replace(counted, mean=mean, std=std, min=low, max=high, norm=norm, histogram=histogram)


def _unreadable(tensor: Tensor) -> str:
    """Say why a tensor has no values that could be read, or nothing."""
    if is_lazy(tensor):
        return "a lazy parameter that has not seen an input"
    if tensor.is_meta:
        return "on the meta device"
    if isinstance(tensor, FakeTensor):
        return "a fake tensor"
    wrapper: object = tensor
    if is_traceable_wrapper_subclass(wrapper):
        # A DTensor lies in several processes; others compute with what they wrap in ways of their own.
        return f"inside a {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"layout {str(tensor.layout).removeprefix('torch.')} is not read"
    name = str(tensor.dtype).removeprefix("torch.")
    return f"torch can't compute with {name}" if name.startswith(_OPAQUE[:2]) or name in _OPAQUE else ""


class _Chunks:
    """The finite values of a tensor, as float64 on the host, with the counts of NaN and infinite elements.

    Iterated more than once; a small tensor is converted only the first time.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._kept = list(map(_values, _pieces(tensor))) if tensor.numel() <= _CHUNK else None

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        return iter(self._kept) if self._kept is not None else map(_values, _pieces(self._tensor))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the elements of a tensor in flat pieces of at most `_CHUNK`; order and strides do not matter."""
    if tensor.numel() <= _CHUNK:
        yield tensor.reshape(-1)
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), _CHUNK)
    else:
        dim = max(range(tensor.ndim), key=lambda axis: tensor.shape[axis])
        half = tensor.shape[dim] // 2
        yield from _pieces(tensor.narrow(dim, 0, half))
        yield from _pieces(tensor.narrow(dim, half, tensor.shape[dim] - half))


def _values(piece: Tensor) -> tuple[Tensor, int, int]:
    # Through the host first: not every device has float64.
    values = piece.cpu()
    nan = torch.zeros((), dtype=torch.bool, device="cpu")
    if values.is_complex():
        wide = values.to(torch.complex128)
        nan, values = wide.isnan(), wide.abs()
    elif not values.is_floating_point():
        return values.to(torch.float64), 0, 0
    else:
        values = values.to(torch.float64)
    finite = values.isfinite()
    if nan.any():
        finite &= ~nan
    if finite.all():
        return values, 0, 0
    nans = int((values.isnan() | nan).sum())
    kept = values[finite]
    return kept, nans, values.numel() - kept.numel() - nans


def _moments(chunks: _Chunks, largest: float) -> tuple[float, float, float]:
    """Return mean, population standard deviation and L2 norm of the finite values."""
    exponent = math.frexp(largest)[1]
    # A power of two scales without rounding; without it the squares of extreme values overflow or vanish.
    shift = min(max(exponent, -1000), 1000) if abs(exponent) > _SAFE_EXPONENT and largest else 0
    count, mean, squares = 0, 0.0, 0.0
    for values, _, _ in chunks:
        if not values.numel():
            continue
        scaled = values * 2.0**-shift if shift else values
        variance, average = (found.item() for found in torch.var_mean(scaled, correction=0))
        added = values.numel()
        total = count + added
        apart = average - mean
        squares += variance * added + apart * apart * count * added / total
        mean += apart * added / total
        count = total
    std, norm = math.sqrt(squares / count), math.sqrt(squares + count * mean * mean)
    return _scaled(mean, shift), _scaled(std, shift), _scaled(norm, shift)


def _scaled(value: float, shift: int) -> float:
    try:
        return math.ldexp(value, shift)
    except OverflowError:
        return math.inf


def _histogram(chunks: _Chunks, low: float, high: float) -> Histogram:
    if low == high:
        low, high = low - 0.5, high + 0.5
    inner = [low * (1 - step / BINS) + high * (step / BINS) for step in range(1, BINS)]
    edges = (low, *sorted(min(max(edge, low), high) for edge in inner), high)
    borders = torch.tensor(edges[1:-1], dtype=torch.float64, device="cpu")
    counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
    for values, _, _ in chunks:
        counts += torch.bincount(torch.bucketize(values, borders, right=True), minlength=BINS)
    return Histogram(tuple(counts.tolist()), edges)
