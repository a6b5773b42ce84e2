"""Lead optimizers from the Parameters that a model had to those that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchkeep.errors import TieError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer


class Held:
    """The parameters that some optimizers hold, by name.

    Args:
        optimizers: any of torch.optim's, or alike: ``param_groups`` and ``state``.
        names: name of each of the model's tensors by ``id``.

    Raises:
        TieError: an optimizer holds none of the model's parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> None:
        self.optimizers = optimizers
        self.names: dict[int, str] = {}
        # An id says nothing once its tensor is gone, so these stay alive as long as this does.
        self._alive: list[Tensor] = []
        for number, optimizer in enumerate(optimizers):
            mine = [parameter for parameter in _parameters(optimizer) if id(parameter) in names]
            if not mine:
                raise TieError(
                    f"optimizer {number} ({type(optimizer).__name__}) holds none of the model's parameters: it is "
                    "another model's, or the parameters were replaced since it was made; make it again from "
                    "net.parameters()"
                )
            self._alive += mine
            self.names |= {id(parameter): names[id(parameter)] for parameter in mine}

    def follow(self, live: Mapping[str, Tensor], elsewhere: Collection[int]) -> list[str]:
        """Put the live Parameters into groups and state, and return what could not be followed.

        Two entries that have become one Parameter are merged: the first keeps its place and its state.

        Args:
            live: the model's tensors by name, every name of a tie included.
            elsewhere: ``id`` of the model's tensors that have come under other names; who holds one keeps it.
        """
        here = {id(tensor) for tensor in live.values()} | set(elsewhere)
        moved: dict[int, Tensor] = {}
        problems: dict[str, str] = {}
        for parameter in self._alive:
            name = self.names[id(parameter)]
            if id(parameter) in here:
                continue
            if name in live:
                moved[id(parameter)] = live[name]
            else:
                problems[name] = (
                    f"an optimizer holds {name!r}, which the model no longer has; take it out of the optimizer's "
                    "groups inside the block too"
                )
        for optimizer in self.optimizers:
            _replace_in_groups(optimizer, moved)
            _replace_in_state(optimizer, moved)
        return list(problems.values())


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _replace_in_groups(optimizer: Optimizer, moved: Mapping[int, Tensor]) -> None:
    seen: set[int] = set()
    for group in optimizer.param_groups:
        keep: list[int] = []
        replaced: list[Tensor] = []
        for position, parameter in enumerate(group["params"]):
            new = moved.get(id(parameter), parameter)
            if id(new) not in seen:
                seen.add(id(new))
                keep.append(position)
                replaced.append(new)
        # In place: some optimizers (LBFGS) hold the list itself.
        group["params"][:] = replaced
        if "param_names" in group:
            group["param_names"] = [group["param_names"][position] for position in keep]


def _replace_in_state(optimizer: Optimizer, moved: Mapping[int, Tensor]) -> None:
    entries = list(optimizer.state.items())
    if not any(id(key) in moved for key, _ in entries):
        return
    state: dict[Any, Any] = {}
    for key, value in entries:
        state.setdefault(moved.get(id(key), key), value)
    optimizer.state.clear()
    optimizer.state.update(state)
