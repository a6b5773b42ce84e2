"""Watch a forward pass: what is computed from a parameter, and which line of source cuts its gradient off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from torchkeep.checks.nested import tensors
from torchkeep.checks.subject import user_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CUTS: dict[Any, str] = {
    torch.Tensor.detach: ".detach()",
    torch.Tensor.detach_: ".detach_()",
    torch.Tensor.data.__get__: ".data",  # type: ignore[attr-defined]  # a getset descriptor
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.item: ".item()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__array__: "numpy.asarray()",
    torch.tensor: "torch.tensor()",
    torch.Tensor.new_tensor: ".new_tensor()",
}
_GRAD_MODE_OFF = "grad mode switched off, as by torch.no_grad,"


class CutWatch(TorchFunctionMode):
    """Follow tensors through a forward pass, and record where the gradient of what comes from them is cut off.

    Args:
        watched: the tensors to follow, by name.

    Attributes:
        touched: names of those that some operation was given.
        cuts: for each name, how it was first cut off, and ``file:line`` where; the line may be empty.
    """

    def __init__(self, watched: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.touched: set[str] = set()
        self.cuts: dict[str, tuple[str, str]] = {}
        # Each tensor stands beside its names, so that its id stays its own.
        self._origins: dict[int, tuple[torch.Tensor, frozenset[str]]] = {
            id(tensor): (tensor, frozenset([name])) for name, tensor in watched.items()
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [tensor for _, tensor in tensors((args, dict(kwargs or {})))]
        origins = self._origins_of(given)
        if origins:
            self._record(func, given, origins)
        result = func(*args, **(kwargs or {}))
        if origins:
            for _, tensor in tensors(result):
                self._origins[id(tensor)] = (tensor, origins | self._origins_of([tensor]))
        return result

    def _origins_of(self, given: list[torch.Tensor]) -> frozenset[str]:
        found = [self._origins[id(tensor)][1] for tensor in given if id(tensor) in self._origins]
        return frozenset().union(*found)

    def _record(self, func: Callable[..., Any], given: list[torch.Tensor], origins: frozenset[str]) -> None:
        computes = not getattr(func, "__name__", "").startswith("__get") or func in _CUTS
        if computes:
            self.touched |= origins
        how = _CUTS.get(func) or ("" if torch.is_grad_enabled() or not computes else _GRAD_MODE_OFF)
        if how and any(tensor.requires_grad for tensor in given) and not origins <= self.cuts.keys():
            where = user_line()
            for name in origins:
                self.cuts.setdefault(name, (how, where))
