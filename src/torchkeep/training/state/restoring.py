"""Give a live state back what a checkpoint has: everything is planned first, then filled in place, verified."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from torchkeep.errors import LoadError
from torchkeep.files.checkpointed import CheckpointSource
from torchkeep.files.matching import Options, match
from torchkeep.tensors.pausing import without_collections
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
from torchkeep.training.state.naming import MODEL, listed
from torchkeep.training.state.optimizing import OptimizerKeeper
from torchkeep.training.state.planning import Plan, can_put_back, put_back
from torchkeep.training.state.randomness import accelerator, rng_problems, set_rng_state
from torchkeep.training.state.regrouping import kept_of, plan_optimizer
from torchkeep.training.state.states import OWN, RNG, TrainingState, keepers_of, names_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torchkeep.archive import Archive, Manifest
    from torchkeep.files.planning import Policy
    from torchkeep.formats.values import Node
    from torchkeep.training.state.naming import Names

_OWN = (ModuleKeeper, OptimizerKeeper, ValueKeeper)
"""What is filled in place."""


@without_collections()
def restore_into(
    state: object,
    archive: Archive,
    manifest: Manifest,
    *,
    missing: Policy = "error",
    unexpected: Policy = "error",
) -> tuple[str, ...]:
    """Put a live state into the state that a checkpoint has.

    Live tensors are filled in place and stay the objects that they are; every byte is verified. An optimizer's
    state is given back by the names of its parameters. Code of others (``load_state_dict``, ``set_extra_state``)
    is called when everything has been read, random generators are set last.

    Args:
        state: a `TrainingState`, a module, or nested containers of tensors and plain values.
        archive: the store.
        manifest: of the checkpoint.
        missing: ``"ignore"`` leaves parts of a `TrainingState`, and what is in modules, as they are where the
            checkpoint has nothing for them.
        unexpected: ``"ignore"`` leaves what the checkpoint has in modules and these have not.

    Returns:
        A sentence for each thing that the checkpoint has and the state did not ask for, or that the state has and
        begins anew since the checkpoint has nothing for it, such as new parameters of an optimizer.

    Raises:
        LoadError: the checkpoint does not fit the state; all of it is told, nothing was changed. Or code of others
            refused what it was given; what was replaced before is told.
        DamageError: bytes are not what was written; ``replaced`` names the tensors changed before that was found.
            Another checkpoint may then be restored into the same state.
        MissingCheckpointError: the checkpoint was pruned meanwhile.
        FormatError: the manifest contradicts itself.
        StorageError: the store can't be read.
    """
    keepers = keepers_of(state)
    names = names_of(state, keepers)
    # The others' code is not asked what they hold: a loader might start its workers for that.
    contents = [keeper.content(names) for keeper in keepers.values() if isinstance(keeper, _OWN)]
    plan = Plan(archive, manifest, keepers, contents)
    restoring = _Restoring(state, plan, names, {"missing": missing, "unexpected": unexpected})
    if isinstance(state, TrainingState):
        restoring.parts(keepers)
    elif isinstance(keepers[""], ModuleKeeper):
        restoring.only_module(keepers[""])
    else:
        restoring.only_values(keepers[""].obj)
    restoring.finish()
    plan.raise_for_problems()
    plan.carry_out()
    return tuple(plan.left)


class _Restoring:
    """Plans each kind of part."""

    def __init__(self, state: Any, plan: Plan, names: Names, policies: Mapping[str, Policy]) -> None:
        self._state, self._plan, self._names = state, plan, names
        self._policies = policies
        self._rng: dict[str, Any] | None = None

    def parts(self, keepers: Mapping[str, Keeper]) -> None:
        """Plan the parts of a `TrainingState`; modules first: their tensors are filled whatever shares them."""
        plan = self._plan
        nodes = self._nodes()
        if nodes is None or nodes.keys().isdisjoint({*OWN, RNG}):
            held = "a module" if _prefix(plan.value) is not None else "values"
            plan.problems.append(f"the checkpoint holds {held} alone, and not a TrainingState; restore into that")
            return
        lacking = [part for part in keepers if part not in nodes]
        if lacking and self._policies["missing"] == "ignore":
            plan.left += [f"the part {part!r}: the checkpoint has none" for part in lacking]
        elif lacking:
            has = f"it has {', '.join(nodes)}; to keep what is there, give missing='ignore'"
            plan.problems += [f"the checkpoint has no part {part!r}; {has}" for part in lacking]
        for part, keeper in sorted(keepers.items(), key=lambda item: not isinstance(item[1], ModuleKeeper)):
            if part in nodes:
                self._part(keeper, nodes[part])
        plan.left += [f"the part {part!r}" for part in nodes if part not in keepers]

    def only_module(self, keeper: ModuleKeeper) -> None:
        """Plan a module: from a checkpoint of one, or from the module in one of a `TrainingState`."""
        nodes = self._nodes()
        if nodes is None:
            self._module(keeper, self._plan.value)
            return
        modules = [part for part, node in nodes.items() if _prefix(node) is not None]
        if MODEL not in modules and len(modules) != 1:
            which = f"several modules ({', '.join(modules)})" if modules else "no module"
            self._plan.problems.append(
                f"the checkpoint has {which}; restore into a TrainingState with the part that is wanted"
            )
            return
        part = MODEL if MODEL in modules else modules[0]
        self._module(keeper, nodes[part])
        self._plan.left += [f"the part {other!r}" for other in nodes if other != part]

    def only_values(self, obj: Any) -> None:
        """Plan containers: all that is there must be in the checkpoint and fit."""
        plan, node = self._plan, self._plan.value
        if any(_prefix(one) is not None for one in (node, *(self._nodes() or {}).values())):
            plan.problems.append("the checkpoint has a module there; restore into the module, or a TrainingState")
            return
        for name, target in plan.live.items():
            if name in plan.manifest.tensors or name in plan.manifest.aliases:
                problem = plan.misfit(name, target)
                plan.problems += [f"{name!r} does not fit: {problem}"] if problem else []
            else:
                plan.problems.append(f"the checkpoint has no tensor {name!r}")
        new = plan.reuse("", node)
        if isinstance(obj, dict) and isinstance(new, dict):
            plan.problems += [f"the checkpoint has nothing under {key!r}" for key in obj if key not in new]
            for key in [key for key in new if key not in obj]:
                plan.left.append(f"what is under {key!r}")
                del new[key]
        if type(obj) is not type(new):
            kinds = f"a {type(new).__qualname__}, and this is a {type(obj).__qualname__}"
            plan.problems.append(f"the checkpoint holds {kinds}")
        elif not can_put_back(obj, new) and not plan.problems:
            kind = type(obj).__qualname__
            plan.problems.append(f"what the checkpoint holds can't be put into a {kind}; give a dict or a list")
        plan.assign.append(lambda: put_back(obj, new))

    def finish(self) -> None:
        """Plan the random generators last: others' code may ask them meanwhile."""
        state = self._rng
        if state is not None:
            self._plan.hand_over.append((RNG, lambda: self._plan.left.extend(set_rng_state(state))))

    def _nodes(self) -> dict[str, Node] | None:
        """Return the parts by name; None where the checkpoint holds no mapping of them."""
        found = self._plan.value.get("dict") if isinstance(self._plan.value, dict) else None
        return found if isinstance(found, dict) else None

    def _part(self, keeper: Keeper, node: Node) -> None:
        part, plan = keeper.part, self._plan
        if isinstance(keeper, ModuleKeeper):
            self._module(keeper, node)
        elif _prefix(node) is not None:
            plan.problems.append(f"{part}: the checkpoint has a module there, and the state has none")
        elif isinstance(keeper, OptimizerKeeper):
            kept = kept_of(node)
            if kept is None:
                plan.problems.append(f"{part}: the checkpoint has no state of an optimizer by name there")
            else:
                plan_optimizer(plan, keeper, self._names, kept)
        elif isinstance(keeper, StatefulKeeper):
            self._stateful(keeper, node)
        elif isinstance(keeper, GeneratorKeeper):
            self._generator(part, keeper.obj, plan.renew(part, node))
        elif isinstance(keeper, LoaderKeeper):
            self._loader(keeper, node)
        elif isinstance(keeper, RandomKeeper):
            self._rng = plan.renew(part, node)
            plan.problems += [f"{part}: {problem}" for problem in rng_problems(self._rng)]
        else:
            assert isinstance(keeper, ValueKeeper)
            self._value(keeper, node)

    def _module(self, keeper: ModuleKeeper, node: Node) -> None:
        plan, prefix = self._plan, _prefix(node)
        where = f"{keeper.part}: " if keeper.part else ""
        if prefix is None:
            plan.problems.append(f"{where}the checkpoint has no module there")
            return
        source = CheckpointSource(plan.archive, plan.manifest, prefix)
        policies: dict[str, Policy] = {**self._policies, "mismatch": "error"}
        matched = match(keeper.obj, source, Options(policies=policies, may_cast=False))
        try:
            matched.plan.raise_for_problems()
        except LoadError as error:
            plan.report(keeper.part, error)
            return
        if matched.plan.missing:
            plan.left.append(f"{where}the checkpoint has no {listed(matched.plan.missing)}")
        if matched.plan.unexpected:
            plan.left.append(f"{where}there is no {listed(matched.plan.unexpected)} here")
        for (owner, target), pair in zip(matched.pairs, matched.plan.matched, strict=True):
            name = f"{keeper.part}.{pair.name}" if keeper.part else pair.name
            other = plan.fill(owner, target, name)
            if other is not None and not source.same(owner, other):
                plan.problems.append(
                    f"{name!r} is one tensor with another of the state, and the checkpoint has different values "
                    f"for them ({owner!r} and {other!r})"
                )
        if matched.plan.extra:
            extra = source.extra_state()
            for (_, key), module in zip(matched.plan.extra, matched.modules, strict=True):
                plan.hand_over.append((keeper.part, partial(module.set_extra_state, extra[key])))

    def _stateful(self, keeper: StatefulKeeper, node: Node) -> None:
        part = keeper.part
        if isinstance(keeper.obj, Optimizer) and kept_of(node) is not None:
            self._plan.problems.append(
                f"{part}: the checkpoint has its state by name, but this optimizer changes its state_dict itself"
            )
            return
        if accelerator() is not None:  # what it holds tells which device each tensor is wanted on
            held = keeper.content(self._names)
            self._plan.live.update(zip(held.names, held.tensors, strict=True))
        if node is None:
            told = "the checkpoint has None there; set the part to None, restore, and set it again to begin anew"
            self._plan.problems.append(f"{part}: {told}")
            return
        value = self._plan.renew(part, node)
        self._plan.hand_over.append((part, lambda: keeper.obj.load_state_dict(value)))

    def _generator(self, part: str, generator: torch.Generator, state: Any) -> None:
        mine = generator.get_state()
        if not isinstance(state, torch.Tensor) or (state.shape, state.dtype) != (mine.shape, mine.dtype):
            self._plan.problems.append(f"{part}: the checkpoint has no state of a generator on {generator.device}")
            return
        self._plan.hand_over.append((part, lambda: generator.set_state(state.cpu())))

    def _loader(self, keeper: LoaderKeeper, node: Node) -> None:
        part, plan = keeper.part, self._plan
        found = plan.renew(part, node)
        found = found if isinstance(found, dict) else {}
        here = keeper.stateful()
        for where, obj in here.items():
            if where not in found:
                plan.left.append(f"{part}: its {where} goes on as it is: the checkpoint has no state of it")
            elif isinstance(obj, torch.Generator):
                self._generator(f"{part}.{where}", obj, found[where])
            else:
                assert has_state(obj)
                plan.hand_over.append((part, partial(obj.load_state_dict, found[where])))
        gone = [str(where) for where in found if where not in here]
        if gone:
            plan.left.append(f"{part}: the state of {listed(gone)}: this loader has none")

    def _value(self, keeper: ValueKeeper, node: Node) -> None:
        new = self._plan.reuse(keeper.part, node)
        self._plan.assign.append(lambda: setattr(self._state, keeper.part, put_back(keeper.obj, new)))


def _prefix(node: Node) -> str | None:
    """Return the prefix of the module that a node stands for; None for any other node."""
    found = node.get("module") if isinstance(node, dict) and len(node) == 1 else None
    return found if isinstance(found, str) else None
