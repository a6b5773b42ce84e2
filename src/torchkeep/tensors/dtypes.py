"""torch's dtypes and their names, both ways."""

from __future__ import annotations

from functools import cache

import torch

from torchkeep.dtypes import DTYPES


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's canonical name without ``torch.``, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of that canonical name, or None where this torch has no such dtype."""
    dtype = getattr(torch, name, None) if name in DTYPES else None
    return dtype if isinstance(dtype, torch.dtype) else None
