"""`TrainingState`: everything that a training run needs to go on as if nothing had happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.errors import StateError
from torchkeep.training.state.contents import has_state
from torchkeep.training.state.keepers import (
    GeneratorKeeper,
    Keeper,
    LoaderKeeper,
    ModuleKeeper,
    RandomKeeper,
    StatefulKeeper,
    ValueKeeper,
)
from torchkeep.training.state.merging import Merger
from torchkeep.training.state.naming import Names
from torchkeep.training.state.optimizing import OptimizerKeeper, has_own_format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim.lr_scheduler import LRScheduler

    from torchkeep.tables.survey import Survey

OWN: Final = ("epoch", "batch", "sampler")
"""What every state has besides its parts."""
RNG: Final = "rng"


class TrainingState:
    """The state of a training run: what a store saves and restores.

    Each part is an attribute under the name that it was given. Kept of it is

    - of a module: parameters, persistent buffers and extra state, under canonical names: wrappers
      (DistributedDataParallel, DataParallel, ``torch.compile``) leave no trace, a tied tensor is kept once;
    - of a ``torch.optim`` optimizer: hyperparameters by group, and the state of each parameter by the name that it
      has in the modules of this state. A reordered or extended model gives each parameter its own state back. An
      optimizer whose class or hooks change its state_dict is kept as that, like anything else that has one;
    - of ``loader``: its state_dict where it has one, else the states of its samplers and generators;
    - of anything with ``state_dict`` and ``load_state_dict`` (schedulers, GradScaler, averages): its state_dict;
    - of a ``torch.Generator``: its state;
    - of anything else: plain values and tensors, nested in lists, tuples, sets and dicts. On restoring, containers
      and tensors that are there and fit are filled in place.

    The global random generators of torch (on the CPU and on every device of the accelerator), numpy and Python are
    kept, too.

    Args:
        model: the module that is trained.
        optimizer: its optimizer.
        scheduler: what changes the learning rate.
        loader: what gives the batches.
        **parts: more of them, under names of your choice.

    Attributes:
        epoch: number of the epoch; 0 at first.
        batch: how many batches of it are done; 0 at first.
        sampler: plain values and tensors that whoever draws the batches needs to go on; empty at first.

    Raises:
        StateError: a part has a name that can't be one, or what is no part is read or set.

    Example:
        >>> state = tk.TrainingState(model=net, optimizer=opt, scheduler=sched, best=None)
        >>> state.best = 0.25
    """

    epoch: int
    batch: int
    sampler: dict[str, Any]

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | Any = None,
        loader: Any = None,
        **parts: Any,
    ) -> None:
        usual = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
        given = {name: obj for name, obj in usual.items() if obj is not None} | parts
        for name in given:
            if name.startswith("_") or "." in name or not name or name in {*OWN, RNG}:
                raise StateError(
                    f"a part of a TrainingState can't be called {name!r}: names hold no dot, begin with no "
                    f"underscore, and {', '.join((*OWN, RNG))} are kept anyway; choose another name"
                )
        self.__setstate__((given, {"epoch": 0, "batch": 0, "sampler": {}}))

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # What is remembered from save to save is true of these very objects only, not of copies.
        parts = {name: keeper.obj for name, keeper in self._keepers.items()}
        return parts, {name: getattr(self, name) for name in OWN}

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        parts, own = state
        fields = self.__dict__
        fields["_keepers"] = {name: keeper_of(name, obj) for name, obj in parts.items()}
        fields["_merger"], fields["_names"] = Merger(), None
        fields.update(own)

    def __getattr__(self, name: str) -> Any:
        keepers: Mapping[str, Keeper] = self.__dict__.get("_keepers", {})
        if name in keepers:
            return keepers[name].obj
        raise StateError(f"this TrainingState has no part {name!r}; it has {', '.join(keepers) or 'none'}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            self.__dict__[name] = value
        elif name in self._keepers:
            if value is not self._keepers[name].obj:
                self._keepers[name] = keeper_of(name, value)
        else:
            raise StateError(
                f"this TrainingState has no part {name!r}, so it would not be saved; give it when the state is "
                f"made: TrainingState(..., {name}=...)"
            )

    def __dir__(self) -> list[str]:
        return sorted({*OWN, *self._keepers, *super().__dir__()})

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={type(keeper.obj).__name__}" for name, keeper in self._keepers.items())
        return f"<TrainingState {parts}; epoch {self.epoch}, batch {self.batch}>"


def keeper_of(part: str, obj: Any) -> Keeper:
    """Return what keeps ``obj`` as a part of a state."""
    if isinstance(obj, nn.Module):
        return ModuleKeeper(part, obj)
    if isinstance(obj, Optimizer) and not has_own_format(obj):
        return OptimizerKeeper(part, obj)
    if part == "loader":
        return LoaderKeeper(part, obj)
    if isinstance(obj, torch.Generator):
        return GeneratorKeeper(part, obj)
    if has_state(obj) and not isinstance(obj, type):
        return StatefulKeeper(part, obj)
    return ValueKeeper(part, obj)


class BareModule:
    """A module that is saved again and again as it is: what is found out about it is remembered, as in a state.

    Attributes:
        net: the module.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._keepers: dict[str, Keeper] = {"": ModuleKeeper("", net)}
        self._merger, self._names = Merger(), None


def keepers_of(state: object) -> dict[str, Keeper]:
    """Return what keeps each part of a state, its own values and the random generators last."""
    if isinstance(state, BareModule):
        return state._keepers  # noqa: SLF001 - its own module
    if not isinstance(state, TrainingState):
        return {"": ModuleKeeper("", state) if isinstance(state, nn.Module) else ValueKeeper("", state)}
    own = {name: ValueKeeper(name, getattr(state, name)) for name in OWN}
    return {**state._keepers, **own, RNG: RandomKeeper(RNG, None)}  # noqa: SLF001 - its own module


def names_of(state: object, keepers: Mapping[str, Keeper]) -> Names:
    """Return the names of the parameters in a state's modules; the same as long as these do not change."""
    surveys: dict[str, Survey] = {
        part: keeper.survey() for part, keeper in keepers.items() if isinstance(keeper, ModuleKeeper)
    }
    if not isinstance(state, TrainingState | BareModule):
        return Names(surveys)
    fields = state.__dict__
    if fields["_names"] is None or not fields["_names"].are_of(surveys):
        fields["_names"] = Names(surveys)
    names: Names = fields["_names"]
    return names


def merger_of(state: object) -> Merger:
    """Return what remembers how a state's tensors share memory."""
    if not isinstance(state, TrainingState | BareModule):
        return Merger(remembering=False)
    merger: Merger = state.__dict__["_merger"]
    return merger
