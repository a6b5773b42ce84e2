"""Several branches on one input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.recipes import block

Combine: TypeAlias = str | Callable[[list[Any]], Any]


@block(name="torchkeep.nn.Parallel")
class Parallel(nn.Module):
    """Gives every branch the same input and combines what they return.

    Branches hang under ``branches.0``, ``branches.1``, or ``branches.<name>`` where a mapping names them.

    Shape: with ``"sum"``: what every branch returns; with ``"concatenate"``: the same with the sizes along ``dim``
    added up, such as ``(*, in) -> (*, out_0 + out_1)``; else whatever the function returns. Nothing is broadcast.

    Args:
        branches: modules, in a list or by name; one or more.
        combine: ``"sum"``, ``"concatenate"``, or a function or module that is given the list of what the branches
            returned. (A recipe can hold a module, and functions of torch, but not other functions.)
        dim: the dimension to concatenate along.

    Raises:
        BlockError: an argument does not fit; in forward: shapes that can't be combined.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module] | Mapping[str, nn.Module],
        combine: Combine = "sum",
        dim: int = -1,
    ) -> None:
        super().__init__()
        named = _named(branches)
        self.branches: nn.ModuleList | nn.ModuleDict = (
            nn.ModuleDict(named) if isinstance(branches, Mapping) else nn.ModuleList(named.values())
        )
        if isinstance(combine, str) and combine not in ("sum", "concatenate"):
            raise BlockError(f"Parallel: combine must be sum, concatenate or a function, found {combine!r}")
        if not isinstance(combine, str) and not callable(combine):
            raise BlockError(f"Parallel: combine must be sum, concatenate or a function, found {combine!r}")
        self.combine = combine
        self.dim = requiring.whole_number("Parallel", "dim", dim)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call every branch with the same arguments, then combine."""
        branches = self.branches.values() if isinstance(self.branches, nn.ModuleDict) else self.branches
        outputs = [branch(*args, **kwargs) for branch in branches]
        if not isinstance(self.combine, str):
            return self.combine(outputs)
        tensors = [requiring.tensor("Parallel", "what a branch returns", output) for output in outputs]
        if self.combine == "sum":
            return _sum(tensors)
        return self._concatenate(tensors)

    def _concatenate(self, tensors: list[Tensor]) -> Tensor:
        for tensor in tensors:
            requiring.present("Parallel", tensor, [self.dim])
        along = self.dim % tensors[0].dim()
        others = [(*tensor.shape[:along], *tensor.shape[along + 1 :]) for tensor in tensors]
        if any(other != others[0] for other in others):
            raise BlockError(
                f"Parallel: can't concatenate along dimension {self.dim} what the branches return, as it differs "
                f"in other dimensions too: {_shapes(tensors)}"
            )
        return torch.cat(tensors, dim=self.dim)

    def extra_repr(self) -> str:
        """Say how outputs are combined, unless that is a module, which shows itself."""
        if isinstance(self.combine, nn.Module):
            return ""
        if not isinstance(self.combine, str):
            return f"combine={getattr(self.combine, '__name__', type(self.combine).__name__)}"
        return f"combine={self.combine!r}" + (f", dim={self.dim}" if self.combine == "concatenate" else "")


def _named(branches: Any) -> dict[str, nn.Module]:
    if isinstance(branches, nn.ModuleDict | Mapping):
        named = dict(branches.items())
    elif isinstance(branches, nn.Module) and not isinstance(branches, nn.ModuleList):
        raise BlockError(
            f"Parallel: branches must be a list or a mapping of modules, found one {type(branches).__name__}"
        )
    else:
        named = {str(position): branch for position, branch in enumerate(branches)}
    if not named:
        raise BlockError("Parallel: branches must hold at least one module, found none")
    return {name: requiring.module("Parallel", f"branch {name}", branch) for name, branch in named.items()}


def _sum(tensors: list[Tensor]) -> Tensor:
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise BlockError(
            f"Parallel: can't sum what the branches return, as it differs in shape: {_shapes(tensors)}"
        )
    return reduce(add, tensors)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(map(requiring.shape, tensors))
