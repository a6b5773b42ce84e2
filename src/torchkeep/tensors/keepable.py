"""Whether a tensor can be kept as bytes, and what to do about one that can't."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchkeep.dtypes import DTYPES

_PLAIN: Final = frozenset({torch.Tensor, nn.Parameter})


def why_not_kept(tensor: torch.Tensor, *, any_class: bool = False) -> str | None:
    """Say why a tensor can't be kept as bytes, and what to do; None where it can.

    Args:
        tensor: the tensor.
        any_class: whether a subclass of Tensor with ordinary memory is kept as its bytes. A module's own
            parameters are, since they are filled again in place; elsewhere the class would be lost.
    """
    # Most are plain, and there may be ten thousands of them.
    plain = type(tensor) in _PLAIN and tensor.is_cpu and tensor.layout is torch.strided
    if plain and not tensor.is_quantized and not tensor.is_nested and _has_memory(tensor):
        return None
    return _kind(tensor) or _class(tensor, any_class=any_class)


def why_not_filled(tensor: torch.Tensor) -> str | None:
    """Say why values can't be copied into a model's tensor, and what to do; None where they can."""
    if is_lazy(tensor):
        return "it has no shape yet; run a forward pass first"
    if tensor.device.type == "meta":
        return "it is on the meta device; torchkeep.materialize() the model first"
    reason = why_not_kept(tensor, any_class=True)
    if reason is not None:
        return reason
    if not tensor.is_contiguous() and 0 in tensor.stride():
        return "it is expanded, so that elements share memory; make it contiguous() first"
    if tensor.is_conj() or tensor.is_neg():
        return "it is lazily conjugated; resolve_conj() it first"
    return None


_NO_MEMORY: Final = "it has no memory of its own (a functorch transform is running); save outside of the transform"
_QUANTIZED: Final = "it is quantized; save its int_repr(), scale and zero point, or dequantize() it"
_NESTED: Final = "it is a nested tensor; save its unbind() as a list"


def _kind(tensor: torch.Tensor) -> str | None:
    """Look at the kinds of tensors that PyTorch itself has."""
    layout, dtype = (str(what).removeprefix("torch.") for what in (tensor.layout, tensor.dtype))
    checks = (
        (is_lazy(tensor), "it has no shape yet; run a forward pass first"),
        (tensor.is_nested, _NESTED),
        (
            layout != "strided",
            f"its layout is {layout}; save to_dense() of it, or its indices and values as tensors",
        ),
        (
            tensor.device.type == "meta",
            "it is on the meta device and has no values; materialize() the model first",
        ),
        (tensor.is_quantized, _QUANTIZED),
        (dtype not in DTYPES, f"its dtype {dtype} is not known to this version of torchkeep; convert it"),
    )
    return next((sentence for found, sentence in checks if found), None)


def _class(tensor: torch.Tensor, *, any_class: bool) -> str | None:
    kind = type(tensor)
    name = f"{kind.__module__}.{kind.__qualname__}"
    wrapper: object = tensor  # mypy believes that no wrapper can be a Tensor
    if is_traceable_wrapper_subclass(wrapper):
        what = "full_tensor()" if hasattr(wrapper, "full_tensor") else "a plain tensor made"
        return f"it is a {name}, which is made of other tensors; save {what} of it"
    if not _has_memory(tensor):
        return f"it is a {name}, which has no memory of its own; save a plain tensor made of it"
    if kind in _PLAIN or any_class:
        return None
    return f"it is a {name}, and that class would be lost; save as_subclass(torch.Tensor) of it"


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0 or not tensor.is_cpu or not tensor.numel()
    except (NotImplementedError, RuntimeError):  # inside of a functorch transform
        return False
