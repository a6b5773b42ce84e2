"""Gradients that are being accumulated: they are a part of where a run is, between two steps of its optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeAlias
from warnings import warn
from weakref import ref

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from torchkeep.errors import TorchkeepWarning
from torchkeep.training.state.naming import listed
from torchkeep.training.state.states import keepers_of, names_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torchkeep.training.state.states import TrainingState


Gradient: TypeAlias = torch.Tensor | bool
"""A gradient that is added to; or whether there is one, of which only the memory is used again."""
Kept: TypeAlias = dict[str, Gradient] | bool
"""Those of an optimizer by the names of its parameters, without those that have none; a bool goes for them all."""


class Accumulation:
    """Knows which gradients were used up by a step since the last batch, and keeps all others.

    Between ``with accumulation:`` and its end it sees the steps of all torch optimizers.

    Args:
        state: whose optimizers count.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self._used: dict[int, tuple[Callable[[], torch.Tensor | None], int]] = {}
        self._hook: Any = None

    def __enter__(self) -> Self:
        def note(optimizer: Optimizer, *_: Any) -> None:
            for one in _parameters(optimizer):
                if one.grad is not None:
                    self._used[id(one)] = ref(one.grad), _changes(one.grad)

        # As `torch.compiler.disable` does it, without importing all of torch.compile.
        vars(note)["_torchdynamo_disable"] = True
        self._hook = register_optimizer_step_post_hook(note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def begin_batch(self) -> None:
        """Forget the steps so far."""
        self._used.clear()

    def kept(self) -> dict[str, Kept]:
        """Return the gradients that the next batch adds to, by optimizer.

        What a step has used up in this batch and nothing has changed since is left over, and not kept; but it
        matters which parameters have some, since optimizers treat zeros and None in different ways.
        """
        kept: dict[str, Kept] = {}
        for part, optimizer in self._optimizers().items():
            gradients = [self._gradient(one) for one in _parameters(optimizer)]
            if any(isinstance(one, torch.Tensor) and one.layout != torch.strided for one in gradients):
                _say(f"the gradients of {part!r} are sparse, and are not kept between two steps of it")
                gradients = [isinstance(one, torch.Tensor) or one for one in gradients]
            if all(one is True for one in gradients) or all(one is False for one in gradients):
                kept[part] = any(one is True for one in gradients)
            else:
                named = zip(self._names(optimizer), gradients, strict=True)
                kept[part] = {name: one for name, one in named if one is not False}
        return kept

    def put_back(self, kept: dict[str, Kept]) -> None:
        """Give parameters the gradients that `kept` returned: zeros for those that were used up."""
        for part, optimizer in self._optimizers().items():
            found, left = kept.get(part, False), list[str]()
            waiting = {} if isinstance(found, bool) else dict(found)
            for name, one in zip(self._names(optimizer), _parameters(optimizer), strict=True):
                gradient = found if isinstance(found, bool) else waiting.pop(name, False)
                if isinstance(gradient, torch.Tensor) and gradient.shape != one.shape:
                    left.append(name)
                    gradient = False
                one.grad = None if gradient is False else torch.zeros_like(one)
                if isinstance(gradient, torch.Tensor) and one.grad is not None:
                    one.grad.copy_(gradient)
            left += [name for name, gradient in waiting.items() if isinstance(gradient, torch.Tensor)]
            if left:
                _say(f"{part}: gradients in the checkpoint that no parameter here fits are left: {listed(left)}")

    def _gradient(self, parameter: torch.Tensor) -> Gradient:
        """Return what has to be kept of a parameter's gradient."""
        gradient = parameter.grad
        if gradient is None:
            return False
        known, changes = self._used.get(id(parameter), (None, 0))
        if known is not None and known() is gradient and _changes(gradient) == changes:
            return True
        return True if gradient.layout == torch.strided and not gradient.any() else gradient

    def _optimizers(self) -> dict[str, Optimizer]:
        found = {part: keeper.obj for part, keeper in keepers_of(self._state).items()}
        return {part: one for part, one in found.items() if isinstance(one, Optimizer)}

    def _names(self, optimizer: Optimizer) -> Iterator[str]:
        found = names_of(self._state, keepers_of(self._state)).of_groups(optimizer.param_groups)
        return (name for group in found for name in group)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _changes(gradient: torch.Tensor) -> int:
    """Return how often a tensor was changed."""
    return int(gradient._version)  # noqa: SLF001 - PyTorch documents it, under that name


def _say(sentence: str) -> None:
    warn(sentence, TorchkeepWarning, stacklevel=2)
