"""Give an optimizer back what was kept of it: each parameter its own state, each group its hyperparameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.keepable import why_not_filled
from torchkeep.training.state.naming import listed, paths_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from torchkeep.formats.values import Node
    from torchkeep.training.state.naming import Names
    from torchkeep.training.state.optimizing import Named, OptimizerKeeper
    from torchkeep.training.state.planning import Plan

_OWN: Final = ("params", "param_names", "name")
"""What a group says of itself and its parameters; all else are hyperparameters."""


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
        self._was = self._former_names(names)

    def _former_names(self, names: Names) -> dict[int, str]:
        """Return what each parameter was called in the checkpoint, by identity; those that are new are left out.

        A name depends on which other modules are kept, and on which of a tied parameter's names is its owner's.
        """
        aliases, tensors = self._plan.manifest.aliases, self._plan.manifest.tensors
        kept = dict.fromkeys(name for group in self._kept.names for name in group) | dict.fromkeys(
            self._kept.state
        )
        self._paths = paths = paths_of(list(kept), self._plan.modules, tensors.keys() | aliases.keys())
        by_path = {path: name for name, path in paths.items()}
        by_owner = {aliases.get(path, path): name for name, path in paths.items()}
        by_name = {name: name for name in kept if name not in paths}
        found: dict[int, str] = {}
        taken: set[str] = set()
        # A tie that is none any more: its owner's state goes to the owner.
        for known in (by_path, by_owner, by_name):
            for one, name in self._parameters():
                path = names.path(one)
                key = name if known is by_name else aliases.get(path or "", path) if known is by_owner else path
                was = known.get(key or "")
                if was is not None and was not in taken and id(one) not in found:
                    found[id(one)] = was
                    taken.add(was)
        return found

    def _parameters(self) -> list[tuple[Tensor, str]]:
        """Return the live parameters with their names."""
        return [
            pair
            for group, names in zip(self._named.groups, self._named.names, strict=True)
            for pair in zip(group, names, strict=True)
        ]

    def plan(self) -> None:
        """Compare, then decide for each parameter's state and each group's hyperparameters."""
        kind = type(self._optimizer).__qualname__
        if kind != self._kept.kind:
            self._problem(
                f"the checkpoint has the state of {self._kept.kind}, and this is {kind}; make that of the "
                "checkpoint, or, to begin without state, give this one another name and missing='ignore'"
            )
            return
        were = [[self._was.get(id(one)) for one in group] for group in self._named.groups]
        if isinstance(self._optimizer, torch.optim.LBFGS) and self._kept.names != were:
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
            for one, name in zip(group, names, strict=True):
                was = self._was.get(id(one))
                if was is not None and self._fits(name, was, one) and was in self._kept.state:
                    states.append((one, self._state(name, was, one, on_device=on_device)))
        self._tell_differences()
        shared = self._plan.renew(self._part, self._kept.shared) if self._kept.shared is not None else {}
        self._plan.assign.append(lambda: self._assign(options, states, shared))

    def _problem(self, sentence: str) -> None:
        self._plan.problems.append(f"{self._part}: {sentence}")

    def _fits(self, name: str, former: str, parameter: Tensor) -> bool:
        """Compare a parameter with what it was; nothing is known of one that was in no group."""
        was = self._kept.parameters.get(former)
        if is_lazy(parameter):
            self._problem(f"its parameter {name!r} has no shape yet; run a forward pass first")
            return False
        if was is None:
            return True
        now = [dtype_name(parameter.dtype), list(parameter.shape)]
        if was[:2] == now:
            return True
        self._problem(
            f"its parameter {name!r} was {was[0]} {was[1]} in the checkpoint, and is {now[0]} {now[1]} here"
        )
        return False

    def _state(self, name: str, was: str, parameter: Tensor, *, on_device: bool) -> Any:
        """Make a parameter's state, which the checkpoint has under the name that the parameter had."""
        mine, theirs = (f"{self._part}.state.{one}." for one in (name, was))

        def tensor(key: str) -> Tensor:
            inside = key.removeprefix(theirs)
            live = self._plan.live.get(mine + inside)
            if live is not None:
                problem = self._plan.misfit(key, live)
                if problem is None and why_not_filled(live) is None:
                    if self._plan.fill(self._plan.owner(key), live, mine + inside) is None:
                        return live
                elif problem is not None and "." not in inside:
                    self._problem(f"the state {inside!r} of its parameter {name!r} does not fit: {problem}")
                    return live
            was_on_cpu = len(self._kept.parameters.get(was, ())) <= 2  # noqa: PLR2004 - no device is noted
            # torch's optimizers hold ``step`` on the CPU unless the group is capturable or fused.
            apart = key in self._kept.on_cpu or (inside == "step" and was_on_cpu and not on_device)
            return self._plan.make(key, "cpu" if apart else parameter.device, parameter, within=self._part)

        return self._plan.decode(self._kept.state[was], tensor)

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

        kept = {key: node for key, node in self._kept.groups[other].items() if key not in _OWN}
        found: dict[str, Any] = self._plan.decode({"dict": kept}, tensor)
        own = [key for key in self._optimizer.param_groups[index] if key not in found and key not in _OWN]
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
        mine = [{self._was[id(one)] for one in group if id(one) in self._was} for group in self._named.groups]
        theirs = list(map(set, self._kept.names))
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
        found = set(self._was.values())
        new = [name for one, name in self._parameters() if id(one) not in self._was]
        if new and self._kept.state:
            self._plan.left.append(
                f"{self._part}: parameters that are new here begin without state: {listed(new)}"
            )
        for how, frozen in (("frozen", True), ("trained", False)):
            turned = [
                name
                for one, name in self._parameters()
                if one.requires_grad is frozen and self._was_frozen(one) is frozen
            ]
            if turned:
                told = f"requires_grad: {how} in the checkpoint, and not here: {listed(turned)}"
                self._plan.left.append(f"{self._part}: {told}")
        gone = [name for name in self._kept.state if name not in found]
        if gone:
            self._plan.left.append(f"{self._part}: the state of parameters that no group here has: {listed(gone)}")

    def _was_frozen(self, parameter: Tensor) -> bool | None:
        """Tell whether a parameter was frozen; None where the checkpoint does not say."""
        path = self._paths.get(self._was.get(id(parameter), ""))
        return None if path is None else path in self._plan.frozen

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
