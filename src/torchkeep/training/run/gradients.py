"""Gradients that are being accumulated: they are a part of where a run is, between two steps of its optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeAlias
from warnings import warn

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from torchkeep.errors import TorchkeepWarning
from torchkeep.training.state.states import keepers_of

if TYPE_CHECKING:
    from torchkeep.training.state.states import TrainingState


Gradient: TypeAlias = torch.Tensor | bool
"""A gradient that is added to; or whether there is one, of which only the memory is used again."""


class Accumulation:
    """Knows whether the optimizers of a state stepped since the last batch, and keeps gradients where none did.

    Between ``with accumulation:`` and its end it sees the steps of all torch optimizers.

    Args:
        state: whose optimizers count.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self._stepped: set[int] = set()
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_post_hook(lambda optimizer, *_: self._stepped.add(id(optimizer)))
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def begin_batch(self) -> None:
        """Forget the steps so far."""
        self._stepped.clear()

    def kept(self) -> dict[str, list[Gradient]]:
        """Return the gradients that the next batch adds to, by optimizer, in the order of its parameters.

        What an optimizer used up in this batch is left over, and not kept; but it matters which parameters have
        some, since optimizers treat zeros and None in different ways.
        """
        kept: dict[str, list[Gradient]] = {}
        for part, optimizer in self._optimizers().items():
            gradients = [parameter.grad for parameter in _parameters(optimizer)]
            if id(optimizer) in self._stepped or all(gradient is None for gradient in gradients):
                kept[part] = [gradient is not None for gradient in gradients]
            elif any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
                _say(f"the gradients of {part!r} are sparse, and are not kept between two steps of it")
            else:
                kept[part] = [False if gradient is None else gradient for gradient in gradients]
        return kept

    def put_back(self, kept: dict[str, list[Gradient]]) -> None:
        """Give parameters the gradients that `kept` returned: zeros for those that were used up."""
        for part, optimizer in self._optimizers().items():
            parameters = _parameters(optimizer)
            gradients = kept.get(part, [False] * len(parameters))
            shapes = [one.shape if isinstance(one, torch.Tensor) else None for one in gradients]
            if len(shapes) != len(parameters) or any(
                shape not in {None, parameter.shape} for shape, parameter in zip(shapes, parameters, strict=True)
            ):
                _say(f"the gradients of {part!r} in the checkpoint are of other parameters, and are left")
                continue
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is False:
                    parameter.grad = None
                else:
                    parameter.grad = torch.zeros_like(parameter)
                    if isinstance(gradient, torch.Tensor):
                        parameter.grad.copy_(gradient)

    def _optimizers(self) -> dict[str, Optimizer]:
        found = {part: keeper.obj for part, keeper in keepers_of(self._state).items()}
        return {part: one for part, one in found.items() if isinstance(one, Optimizer)}


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _say(sentence: str) -> None:
    warn(sentence, TorchkeepWarning, stacklevel=2)
