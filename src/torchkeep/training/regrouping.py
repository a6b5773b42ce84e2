"""Give an optimizer back what was kept of it: each parameter its own state, each group its hyperparameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.keepable import why_not_filled
from torchkeep.training.optimizing import PARAMS
from torchkeep.training.planning import listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from torchkeep.formats.values import Node
    from torchkeep.training.naming import Names
    from torchkeep.training.optimizing import Named, OptimizerKeeper
    from torchkeep.training.planning import Plan


class _Kept(NamedTuple):
    """What a checkpoint has of an optimizer, as nodes of its tree."""

    kind: str
    groups: list[dict[str, Node]]
    parameters: dict[str, list[Any]]
    state: dict[str, Node]
    on_cpu: frozenset[str]
    shared: Node

    @property
    def names(self) -> list[list[str]]:
        """Names of the parameters, by group."""
        return [group["params"] for group in self.groups]


def kept_of(node: Node) -> _Kept | None:
    """Read what was kept of an optimizer; None where the node is nothing of that kind."""
    found = node.get("dict") if isinstance(node, dict) else None
    if not isinstance(found, dict) or not {"class", "groups", "parameters", "state"} <= found.keys():
        return None
    try:
        groups = [dict(group["dict"]) for group in found["groups"]]
        parameters, state = dict(found["parameters"]["dict"]), dict(found["state"]["dict"])
        if not all(isinstance(name, str) for group in groups for name in group["params"]):
            return None
        return _Kept(
            found["class"], groups, parameters, state, frozenset(found.get("on_cpu", ())), found.get("shared")
        )
    except (TypeError, KeyError, ValueError):
        return None


def plan_optimizer(plan: Plan, keeper: OptimizerKeeper, names: Names, kept: _Kept) -> None:
    """Plan what goes where in a live optimizer."""
    _Regrouping(plan, keeper, names, kept).plan()


class _Regrouping:
    def __init__(self, plan: Plan, keeper: OptimizerKeeper, names: Names, kept: _Kept) -> None:
        self._plan, self._kept = plan, kept
        self._part, self._optimizer = keeper.part, keeper.obj
        self._named: Named = keeper.named(names)

    def plan(self) -> None:
        """Compare, then decide for each parameter's state and each group's hyperparameters."""
        kind = type(self._optimizer).__qualname__
        if kind != self._kept.kind:
            self._problem(
                f"the checkpoint has the state of a {self._kept.kind}, and this is a {kind}; make a "
                f"{self._kept.kind}, or leave the optimizer out of the state to begin without"
            )
            return
        if isinstance(self._optimizer, torch.optim.LBFGS) and self._kept.names != self._named.names:
            self._problem(
                "LBFGS keeps one state for all its parameters in their order, and these are others than those of "
                f"the checkpoint ({listed([name for group in self._kept.names for name in group])})"
            )
            return
        pairs = self._matched_groups()
        options = [self._options(index, pairs.get(index)) for index in range(len(self._named.groups))]
        states: list[tuple[Tensor, Any]] = []
        for index, (group, names) in enumerate(zip(self._named.groups, self._named.names, strict=True)):
            flags = {**self._optimizer.param_groups[index], **options[index]}
            on_device = bool(flags.get("capturable") or flags.get("fused"))
            states += [
                (one, self._state(name, one, on_device=on_device))
                for name, one in zip(names, group, strict=True)
                if self._fits(name, one) and name in self._kept.state
            ]
        self._tell_differences()
        shared = self._plan.renew(self._part, self._kept.shared) if self._kept.shared is not None else {}
        self._plan.assign.append(lambda: self._assign(options, states, shared))

    def _problem(self, sentence: str) -> None:
        self._plan.problems.append(f"{self._part}: {sentence}")

    def _fits(self, name: str, parameter: Tensor) -> bool:
        """Compare a parameter with what it was; one that is new fits."""
        was = self._kept.parameters.get(name)
        if was is None:
            return True
        now = [dtype_name(parameter.dtype), list(parameter.shape)]
        if was[:2] == now:
            return True
        self._problem(
            f"its parameter {name!r} was {was[0]} {was[1]} in the checkpoint, and is {now[0]} {now[1]} here"
        )
        return False

    def _state(self, name: str, parameter: Tensor, *, on_device: bool) -> Any:
        prefix = f"{self._part}.state.{name}."

        def tensor(key: str) -> Tensor:
            live = self._plan.live.get(key)
            if live is not None:
                problem = self._plan.misfit(key, live)
                if problem is None and why_not_filled(live) is None:
                    if self._plan.fill(self._plan.owner(key), live, key) is None:
                        return live
                elif problem is not None and "." not in key.removeprefix(prefix):
                    self._problem(f"its state {key.removeprefix(f'{self._part}.')!r} does not fit: {problem}")
                    return live
            device = self._device(name, key, parameter, is_step=key == f"{prefix}step", on_device=on_device)
            return self._plan.make(key, device, parameter, within=self._part)

        return self._plan.decode(self._kept.state[name], tensor)

    def _device(
        self, name: str, key: str, parameter: Tensor, *, is_step: bool, on_device: bool
    ) -> torch.device | str:
        """Return where a tensor of the state belongs: beside its parameter, unless it was apart from it.

        torch's optimizers hold ``step`` on the CPU unless the group is capturable or fused.
        """
        was_on_cpu = len(self._kept.parameters.get(name, ())) <= 2  # noqa: PLR2004 - no device is noted
        if key in self._kept.on_cpu or (is_step and was_on_cpu and not on_device):
            return "cpu"
        return parameter.device

    def _options(self, index: int, other: int | None) -> dict[str, Any]:
        """Return the hyperparameters of a live group: those of the group of the checkpoint that it is."""
        if other is None:
            return {}
        mine, group = f"{self._part}.groups.{index}.", self._named.groups[index]
        theirs = f"{self._part}.groups.{other}."

        def tensor(name: str) -> Tensor:
            live = self._plan.live.get(mine + name.removeprefix(theirs))
            fits = live is not None and self._plan.misfit(name, live) is None and why_not_filled(live) is None
            if fits and live is not None and self._plan.fill(self._plan.owner(name), live, name) is None:
                return live
            beside = live if live is not None else group[0] if group and name not in self._kept.on_cpu else None
            return self._plan.make(name, "cpu" if beside is None else beside.device, within=self._part)

        kept = {key: node for key, node in self._kept.groups[other].items() if key not in PARAMS}
        found: dict[str, Any] = self._plan.decode({"dict": kept}, tensor)
        own = [key for key in self._optimizer.param_groups[index] if key not in found and key not in PARAMS]
        if own:
            self._plan.left.append(
                f"{self._part}: group {index} keeps its own {listed(own)}: the checkpoint has none"
            )
        return found

    def _matched_groups(self) -> dict[int, int]:
        """Return the group of the checkpoint that each live group is: by name, or by the parameters in it."""
        live = [_name(group) for group in self._optimizer.param_groups]
        kept = [_name(group) for group in self._kept.groups]
        pairs = {
            index: kept.index(name)
            for index, name in enumerate(live)
            if name is not None and live.count(name) == kept.count(name) == 1
        }
        mine, theirs = list(map(set, self._named.names)), list(map(set, self._kept.names))
        ranked = sorted(
            (-len(one & other), abs(index - position), index, position)
            for index, one in enumerate(mine)
            for position, other in enumerate(theirs)
            if index not in pairs and position not in pairs.values() and one & other
        )
        for _, _, index, position in ranked:
            if index not in pairs and position not in pairs.values():
                pairs[index] = position
        for index in range(len(mine)):
            if index not in pairs:
                told = (
                    f"group {index} keeps its own hyperparameters: no group of the checkpoint has its parameters"
                )
                self._plan.left.append(f"{self._part}: {told}")
        for position in range(len(theirs)):
            if position not in pairs.values():
                self._plan.left.append(
                    f"{self._part}: the hyperparameters of group {position}: no group here is it"
                )
        return pairs

    def _tell_differences(self) -> None:
        here = {name for names in self._named.names for name in names}
        there = {name for names in self._kept.names for name in names}
        new = [
            name for names in self._named.names for name in names if name not in there | self._kept.state.keys()
        ]
        if new and there:
            self._plan.left.append(
                f"{self._part}: parameters that are new here begin without state: {listed(new)}"
            )
        gone = [name for name in self._kept.state if name not in here]
        if gone:
            self._plan.left.append(f"{self._part}: the state of parameters that no group here has: {listed(gone)}")

    def _assign(
        self, options: Sequence[Mapping[str, Any]], states: Sequence[tuple[Tensor, Any]], shared: Mapping[Any, Any]
    ) -> None:
        for group, given in zip(self._optimizer.param_groups, options, strict=True):
            group.update(given)
        state: dict[Any, Any] = self._optimizer.state
        restored = {id(parameter) for parameter, _ in states}
        for holder in list(state):
            if id(holder) not in restored and not (holder in shared and not isinstance(holder, torch.Tensor)):
                del state[holder]
        for parameter, new in states:
            held = state.get(parameter)
            if type(held) is dict and type(new) is dict:
                held.clear()
                held.update(new)
            else:
                state[parameter] = new
        state.update(shared)


def _name(group: Mapping[str, Any]) -> str | None:
    name = group.get("name")
    return name if isinstance(name, str) else None
