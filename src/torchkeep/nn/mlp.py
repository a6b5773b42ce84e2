"""Linear layers with activation, norm and dropout between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.nn.chain import Chain
from torchkeep.recipes import block

Factory: TypeAlias = Callable[..., nn.Module]

ACTIVATIONS: Mapping[str, Factory] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "leaky_relu": nn.LeakyReLU,
        "prelu": nn.PReLU,
        "softplus": nn.Softplus,
        "mish": nn.Mish,
    }
)
NORMS: Mapping[str, Factory] = MappingProxyType(
    {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d}
)


@block(name="torchkeep.nn.MLP")
class MLP(Chain):
    """Linear layers in a row, with a norm, an activation and dropout between each two.

    Layer ``i`` is a Sequential of its parts by name: ``i.linear``, and where there are any ``i.norm``,
    ``i.activation`` and ``i.dropout``. So the names of parameters do not depend on which other parts there are,
    and ``[0:2].linear.weight`` selects the weights of the first two layers.

    Shape: ``(*, sizes[0]) -> (*, sizes[-1])``; with ``norm="batch"``: ``(batch, sizes[0]) -> (batch, sizes[-1])``.

    Args:
        sizes: features of the input, of each hidden layer and of the output; two or more.
        activation: a name (``relu``, ``gelu``, ``silu``, ``tanh``, ``sigmoid``, ``elu``, ``selu``, ``leaky_relu``,
            ``prelu``, ``softplus``, ``mish``), a module class, or a function that makes a module; called once for
            each layer. None: no activation.
        norm: between linear and activation: ``"layer"``, ``"rms"``, ``"batch"``, or a class or function that is
            called with the number of features. None: no norm.
        dropout: probability of dropping a feature after the activation.
        bias: whether the linear layers have biases.
        activate_last: whether norm, activation and dropout follow the last linear layer too.
        device: where to make the parameters.
        dtype: of the parameters.

    Raises:
        BlockError: an argument does not fit; in forward: the input's last dimension is not ``sizes[0]``, or it has
            other dimensions than ``batch`` before that and ``norm="batch"``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Factory | None = "relu",
        norm: str | Factory | None = None,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        activate_last: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sizes = _sizes(sizes)
        _check_probability(dropout)
        make_activation = _factory("activation", activation, ACTIVATIONS)
        make_norm = _factory("norm", norm, NORMS)
        made = partial(_made, device, dtype)
        steps = list(pairwise(self.sizes))
        for position, (inputs, outputs) in enumerate(steps):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            parts["linear"] = nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)
            if activate_last or position < len(steps) - 1:
                if make_norm is not None:
                    parts["norm"] = made(make_norm, outputs)
                if make_activation is not None:
                    parts["activation"] = made(make_activation)
                if dropout:
                    parts["dropout"] = nn.Dropout(dropout)
            self.append(nn.Sequential(parts))
        self._batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in self.modules())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Sequential's own name for it
        """Compute the output; ``(*, sizes[0]) -> (*, sizes[-1])``."""
        requiring.last_dimension("MLP", requiring.tensor("MLP", "its input", input), self.sizes[0])
        if self._batch_norm and input.dim() != 2:  # noqa: PLR2004 - batch and features
            # BatchNorm1d would take the second dimension for the features, silently where the sizes agree.
            raise BlockError(
                f"MLP: with norm='batch', expected an input of shape (batch, {self.sizes[0]}), found "
                f"{requiring.shape(input)}; flatten what stands before the features, or take norm='layer'"
            )
        for layer in self:
            input = layer(input)  # noqa: A001 - same
        return input


def _sizes(sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise BlockError(f"MLP: sizes must be a list of numbers, such as [64, 128, 10], found {sizes!r}")
    found = tuple(requiring.whole_number("MLP", "each size", size, least=1) for size in sizes)
    if len(found) < 2:  # noqa: PLR2004 - an input and an output
        raise BlockError(f"MLP: sizes must have an input's and an output's, such as [64, 10], found {list(found)}")
    return found


def _check_probability(dropout: Any) -> None:
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise BlockError(f"MLP: dropout must be a probability between 0 and 1, found {dropout!r}")


def _factory(name: str, given: Any, known: Mapping[str, Factory]) -> Factory | None:
    """Look up a name; classes and functions are factories already."""
    if given is None:
        return None
    if isinstance(given, str):
        if given not in known:
            raise BlockError(f"MLP: {name} must be one of {', '.join(known)}, a class or None, found {given!r}")
        return known[given]
    if isinstance(given, nn.Module):
        raise BlockError(f"MLP: {name} is called for each layer, so give a class or a function, not a module")
    if not callable(given):
        raise BlockError(
            f"MLP: {name} must be a name, a class, a function that makes a module, or None; found {given!r}"
        )
    factory: Factory = given
    return factory


def _made(device: Any, dtype: torch.dtype | None, factory: Factory, *args: int) -> nn.Module:
    with nullcontext() if device is None else torch.device(device):
        made = requiring.module("MLP", "what activation and norm make", factory(*args))
    return made if dtype is None else made.to(dtype=dtype)
