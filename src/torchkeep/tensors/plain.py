"""Plain values of torch (sizes, dtypes, devices) and NumPy (numbers) as JSON: a hook for `formats.values`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from torchkeep.tensors.dtypes import dtype_name, torch_dtype
from torchkeep.tensors.scalars import encode_scalar, read_scalar

if TYPE_CHECKING:
    from torchkeep.formats.values import Node, Reader


def encode_plain(value: object) -> tuple[str, Node] | None:
    """Return the tag and what goes with it for a plain value of torch or NumPy, None for anything else."""
    if type(value) is torch.Size:
        return "torch.Size", list(value)
    if isinstance(value, torch.dtype):
        return "torch.dtype", dtype_name(value)
    if isinstance(value, torch.device):
        return "torch.device", str(value)
    return encode_scalar(value)


def _size(sizes: Node) -> torch.Size:
    return torch.Size(sizes)


def _dtype(name: Node) -> torch.dtype:
    dtype = torch_dtype(name)
    if dtype is None:
        raise ValueError(f"torch {torch.__version__} has no dtype {name!r}")
    return dtype


def _device(name: Node) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as cause:
        raise ValueError(str(cause)) from cause


PLAIN_READERS: Final[dict[str, Reader]] = {
    "torch.Size": _size,
    "torch.dtype": _dtype,
    "torch.device": _device,
    "numpy": read_scalar,
}
