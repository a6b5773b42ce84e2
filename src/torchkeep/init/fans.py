"""Fans: how many values meet in a unit, as `torch.nn.init` counts them."""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class Fans(NamedTuple):
    """Fan in and fan out of a weight."""

    fan_in: int
    fan_out: int


def fans(shape: tuple[int, ...] | None) -> Fans | None:
    """Return the fans of a weight, or None where there are none: below 2 dimensions, or while lazy.

    Dimension 0 counts as outputs, dimension 1 as inputs, the product of the others as the receptive field. So it
    is in torch, for transposed and grouped convolutions and embeddings too, though the names are then not
    what the words say.
    """
    if shape is None or len(shape) < 2:  # noqa: PLR2004 - an output and an input dimension
        return None
    field = prod(shape[2:])
    return Fans(shape[1] * field, shape[0] * field)
