"""Compare outputs: equal bits, or close by a tolerance that comes from the dtype and the size of the values."""

from __future__ import annotations

from typing import Any

import torch

from torchkeep.checks.nested import mapped, tensors
from torchkeep.checks.snapshot import dense, same_bits

_ROUNDINGS = 256
"""How many roundings of the largest value in a tensor two ways of computing it may lie apart."""


def outputs(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of an output by path, such as ``output[0]``, detached."""
    return {path: tensor.detach() for path, tensor in tensors(value, "output")}


def kept(value: Any) -> Any:
    """Return an output, or inputs, with detached copies of its tensors, which later calls can't change."""
    return mapped(value, lambda _, tensor: tensor.detach().clone())


def differences(first: Any, second: Any, *, exact: bool = False) -> list[str]:
    """Return the paths of the tensors at which two outputs differ in presence, shape, dtype or values.

    Args:
        first: an output.
        second: likewise.
        exact: whether every bit must be equal; otherwise values may lie `tolerance` apart.
    """
    left, right = outputs(first), outputs(second)
    paths = dict.fromkeys([*left, *right])
    return [
        path
        for path in paths
        if path not in left or path not in right or not _alike(left[path], right[path], exact=exact)
    ]


def _alike(first: torch.Tensor, second: torch.Tensor, *, exact: bool) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype or first.layout != second.layout:
        return False
    first, second = dense(first), dense(second)
    if exact or not (first.is_floating_point() or first.is_complex()):
        return same_bits(first, second)
    return close(first, second)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors of one shape agree within `tolerance`; NaN and infinities must agree too."""
    finite = first.isfinite()
    if not torch.equal(finite, second.isfinite()) or not same_bits(first[~finite], second[~finite]):
        return False
    return bool(((first - second)[finite].abs() <= tolerance(first[finite])).all())


def tolerance(values: torch.Tensor) -> float:
    """Return how far apart two computations of finite values may lie: some roundings of the largest one."""
    largest = values.abs().max().item() if values.numel() else 0.0
    return float(_ROUNDINGS * torch.finfo(values.dtype).eps * max(largest, 1e-3))
