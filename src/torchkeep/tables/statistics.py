"""Results of measuring tensors: mean, std, min, max, norm, zeros, nan, inf, histogram; as rows, text and JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torchkeep.errors import NoMatchError
from torchkeep.names import quote_name
from torchkeep.rows.text import shape_text, table

if TYPE_CHECKING:
    from collections.abc import Iterator

BINS = 20
"""Bins of every histogram."""

_BARS = "▁▂▃▄▅▆▇█"
_BAR_COLUMNS = 10
_HEADERS = ("name", "shape", "mean", "std", "min", "max", "norm", "zeros", "nan", "inf", "histogram", "notes")
_ALIGN = "<<>>>>>>>><<"


@dataclass(frozen=True)
class Histogram:
    """How finite values are distributed.

    Attributes:
        counts: number of values in each of the `BINS` bins.
        edges: one more than bins, from the least to the greatest value; bin ``i`` holds
            ``edges[i] <= value < edges[i + 1]``, the last one its upper edge too. Around a single value the edges
            reach half a unit to either side.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one tensor; complex values count by their magnitude, booleans as 0 and 1.

    NaN and infinite elements are counted, and left out of everything else.

    Attributes:
        name: the owner's name.
        shape: None while lazy.
        dtype: torch's name of it.
        note: why there are no statistics, such as ``"no values: on the meta device"``; else empty.
        mean: mean of the finite elements; None where there are none.
        std: their population standard deviation (divided by n, not n - 1).
        min: the least of them.
        max: the greatest.
        norm: their L2 norm.
        zeros: number of elements that are exactly zero; None where there are no values to read.
        nan: number of elements that are NaN (either part of a complex one).
        inf: number of elements that are infinite, of either sign, and not NaN.
        histogram: of the finite elements; None where there are none.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    note: str = ""
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    norm: float | None = None
    zeros: int | None = None
    nan: int | None = None
    inf: int | None = None
    histogram: Histogram | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a dict that JSON can hold; a norm beyond float64 becomes None."""
        norm = self.norm if self.norm is None or math.isfinite(self.norm) else None
        histogram = self.histogram and {"counts": list(self.histogram.counts), "edges": list(self.histogram.edges)}
        shape = None if self.shape is None else list(self.shape)
        return {**self.__dict__, "shape": shape, "norm": norm, "histogram": histogram}


@dataclass(frozen=True)
class Statistics:
    """Statistics of the tensors of a table, one row each, in its order.

    Attributes:
        rows: the statistics.
    """

    rows: tuple[TensorStatistics, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {row.name: at for at, row in enumerate(self.rows)})

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TensorStatistics]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> TensorStatistics:
        """Return the row of the tensor with that owner's name.

        Raises:
            NoMatchError: there is none.
        """
        if name in self._index:
            return self.rows[self._index[name]]
        from torchkeep.selectors.suggest import alternatives, nearest  # noqa: PLC0415 - only errors need it

        close = nearest(name, self._index)
        hint = f"; did you mean {alternatives(close)}?" if close else ""
        error = NoMatchError(f"these statistics have no tensor named {name!r}{hint}")
        error.wanted, error.nearest = name, close
        raise error

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dict for each row, of what JSON can hold."""
        return [row.to_json() for row in self.rows]

    def __str__(self) -> str:
        return table(_HEADERS, map(_cells, self.rows), _ALIGN)

    __repr__ = __str__


def _cells(row: TensorStatistics) -> tuple[str, ...]:
    numbers = (
        "" if value is None else f"{value:.4g}" for value in (row.mean, row.std, row.min, row.max, row.norm)
    )
    counts = ("" if value is None else str(value) for value in (row.zeros, row.nan, row.inf))
    bars = _bars(row.histogram) if row.histogram else ""
    return (quote_name(row.name), shape_text(row.shape), *numbers, *counts, bars, row.note)


def _bars(histogram: Histogram) -> str:
    """Draw a histogram in one short line of text; an empty column is a space."""
    step = BINS // _BAR_COLUMNS
    heights = [sum(histogram.counts[at : at + step]) for at in range(0, BINS, step)]
    top = max(heights)
    return "".join(_BARS[-(-height * len(_BARS) // top) - 1] if height else " " for height in heights)
