"""Statistics of tensors against numpy, whatever the dtype, the strides and the size."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from torchkeep.rows import Row
from torchkeep.tables import measuring
from torchkeep.tables.measuring import measure
from torchkeep.tables.statistics import BINS, Statistics
from torchkeep.tensors.dtypes import dtype_name


def measured(tensor):
    """Measure one tensor under the name ``w``."""
    row = Row("w", tuple(tensor.shape), dtype_name(tensor.dtype))
    return measure(row, tensor)


def assert_agrees(result, values):
    """Compare with numpy in float64 over the finite values."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    assert result.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-300)
    assert result.std == pytest.approx(finite.std(), rel=1e-9, abs=1e-300)
    assert result.norm == pytest.approx(np.linalg.norm(finite), rel=1e-12)
    assert (result.min, result.max) == (finite.min(), finite.max())
    assert result.zeros == (finite == 0).sum()
    assert result.nan == np.isnan(values).sum()
    assert result.inf == np.isinf(values).sum()
    assert sum(result.histogram.counts) == finite.size


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_floating_point(dtype):
    """Every floating-point dtype is measured on its exact values."""
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_agrees(measured(tensor), tensor.to(torch.float64).numpy())


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64],
)
def test_integers(dtype):
    """Every integer dtype is measured, zeros included."""
    tensor = torch.arange(0, 12).reshape(3, 4).to(dtype)
    assert_agrees(measured(tensor), np.arange(12))


def test_booleans_count_as_zero_and_one():
    """The mean of a mask is the share that is set."""
    result = measured(torch.tensor([True, False, True, True]))
    assert (result.mean, result.min, result.max, result.zeros) == (0.75, 0.0, 1.0, 1)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_by_magnitude(dtype):
    """A complex tensor is measured by its magnitudes; a NaN in either part is one NaN."""
    tensor = torch.tensor([3 + 4j, 0, complex(math.nan, 1), complex(1, math.inf), complex(math.inf, math.nan)])
    result = measured(tensor.to(dtype))
    assert (result.mean, result.min, result.max, result.norm) == (2.5, 0.0, 5.0, 5.0)
    assert (result.zeros, result.nan, result.inf) == (1, 2, 1)


def test_nan_and_infinity_are_counted_and_left_out():
    """NaN and infinities change no other number."""
    result = measured(torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf, 0.0]))
    assert_agrees(result, [1.0, math.nan, 3.0, math.inf, -math.inf, 0.0])
    assert (result.nan, result.inf, result.zeros) == (1, 2, 1)
    nothing_left = measured(torch.tensor([math.nan, math.inf]))
    assert nothing_left.note == "no finite values"
    assert (nothing_left.mean, nothing_left.histogram, nothing_left.nan, nothing_left.inf) == (None, None, 1, 1)


def test_empty_and_scalar_tensors():
    """An empty tensor has counts of 0 and no moments; a scalar has a deviation of 0."""
    empty = measured(torch.empty(0, 3))
    assert (empty.note, empty.mean, empty.zeros, empty.nan, empty.inf) == ("no elements", None, 0, 0, 0)
    scalar = measured(torch.tensor(2.5))
    assert (scalar.mean, scalar.std, scalar.norm) == (2.5, 0.0, 2.5)
    assert sum(scalar.histogram.counts) == 1
    assert (scalar.histogram.edges[0], scalar.histogram.edges[-1]) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.empty(2, device="meta"), "on the meta device"),
        (nn.LazyLinear(2).weight, "lazy"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (TwoTensor(torch.ones(2), torch.ones(2)), "inside a TwoTensor"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "bits8"),
        (torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
    ],
)
def test_no_values_to_read(tensor, reason):
    """What has no values says so, and no number is made up."""
    result = measure(Row("w", None, dtype_name(tensor.dtype)), tensor)
    assert result.note.startswith("no values: ")
    assert reason in result.note
    assert {result.mean, result.std, result.norm, result.zeros, result.nan, result.inf} == {None}


@pytest.fixture
def small_chunks(monkeypatch):
    """Make chunks of 16 elements, so that small tensors need many."""
    monkeypatch.setattr(measuring, "_CHUNK", 16)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "shape_of",
    [
        lambda t: t,
        lambda t: t.T,
        lambda t: t[::2, 1::3],
        lambda t: t[:, :1].expand(40, 23),
        lambda t: t.reshape(5, 8, 23).permute(2, 0, 1)[3:],
        lambda t: t.T.flip(0),
    ],
    ids=["contiguous", "transposed", "strided", "expanded", "permuted", "flipped"],
)
def test_chunks_and_strides(shape_of):
    """Chunks are merged to the same numbers whatever the strides are, far from zero too."""
    base = torch.randn(40, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1e6
    base[3, 4], base[7, 1], base[0, 0] = math.nan, math.inf, 0.0
    view = shape_of(base)
    assert_agrees(measured(view), view.numpy())


@pytest.mark.usefixtures("small_chunks")
def test_chunk_of_nan_only():
    """A chunk without a finite value does not disturb the others."""
    tensor = torch.full((48,), math.nan)
    tensor[32:] = torch.arange(16.0)
    assert_agrees(measured(tensor), tensor.numpy())


@pytest.mark.parametrize("scale", [1e300, 1e-300, 5e-324])
def test_extreme_values(scale):
    """Squares that float64 can't hold spoil neither deviation nor norm."""
    result = measured(torch.tensor([3.0, -4.0], dtype=torch.float64) * scale)
    assert result.norm == pytest.approx(5 * scale, rel=1e-12, abs=5e-324)
    assert result.std == pytest.approx(3.5 * scale, rel=1e-12, abs=5e-324)
    largest = torch.finfo(torch.float64).max
    wide = measured(torch.tensor([largest, -largest], dtype=torch.float64))
    assert (wide.mean, wide.std) == (0.0, largest)
    assert wide.to_json()["norm"] is None
    assert (wide.histogram.counts[0], wide.histogram.counts[-1]) == (1, 1)


def test_histogram_keeps_its_edges():
    """Each bin holds exactly the values between its edges, the last one its upper edge as well."""
    whole = measured(torch.arange(BINS + 1)).histogram
    assert whole.counts == (1,) * (BINS - 1) + (2,)
    values = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = measured(values).histogram
    assert len(found.counts) == BINS
    assert list(found.edges) == sorted(found.edges)
    assert found.counts == tuple(np.histogram(values.numpy(), bins=np.array(found.edges))[0].tolist())


def test_a_large_tensor_needs_little_more_memory(monkeypatch):
    """Only pieces of at most a chunk are ever converted."""
    monkeypatch.setattr(measuring, "_CHUNK", 1000)
    sizes = []
    convert = measuring._values

    def watched(piece):
        sizes.append(piece.numel())
        return convert(piece)

    monkeypatch.setattr(measuring, "_values", watched)
    base = torch.ones(60, 70, dtype=torch.float16)
    measured(base.T)
    assert max(sizes) <= 1000
    assert sum(sizes) == 3 * 60 * 70  # extremes, moments, histogram


def test_the_default_device_and_dtype_do_not_matter():
    """The user's defaults change no number and break nothing."""
    tensor = torch.tensor([1.0, 2.0, math.nan])
    with torch.device("meta"):
        result = measured(tensor)
    assert (result.mean, result.nan) == (1.5, 1)


def test_parameters_that_require_grad_are_measured_without_a_graph():
    """Measuring a parameter leaves no trace on it."""
    weight = nn.Parameter(torch.ones(3))
    assert measured(weight).norm == pytest.approx(math.sqrt(3))
    assert weight.grad is None


def test_json_and_text():
    """Rows go to JSON and come back, and the text shows each tensor with its numbers or its reason."""
    rows = Statistics(
        (
            measured(torch.tensor([0.0, 1.0, math.nan])),
            measure(Row("far.away", (2,), "float32"), torch.empty(2, device="meta")),
        )
    )
    first, second = json.loads(json.dumps(rows.to_json(), allow_nan=False))
    assert (first["name"], first["mean"], first["nan"], first["shape"]) == ("w", 0.5, 1, [3])
    assert len(first["histogram"]["counts"]) + 1 == len(first["histogram"]["edges"])
    assert second["note"] == "no values: on the meta device"
    header, shown, noted = str(rows).splitlines()
    names = ["name", "shape", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf", "histogram", "notes"]
    assert header.split() == names
    assert shown.split()[:10] == ["w", "3", "0.5", "0.5", "0", "1", "1", "1", "1", "0"]
    assert noted.split(None, 2) == ["far.away", "2", "no values: on the meta device"]
