"""Take a state apart: live tensors under names, all else as plain values. Nothing is copied or written."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from torchkeep import __version__
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.values import unsavable
from torchkeep.tensors.pausing import without_collections
from torchkeep.training.state.blueprints import blueprint_of
from torchkeep.training.state.contents import Content
from torchkeep.training.state.naming import MODEL, listed
from torchkeep.training.state.optimizing import OptimizerKeeper
from torchkeep.training.state.states import TrainingState, keepers_of, merger_of, names_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.training.state.holding import Held
    from torchkeep.training.state.naming import Names

_What = TypeVar("_What")


@dataclass(frozen=True)
class Captured:
    """A state at one moment. The tensors are the live ones: they change when training goes on; the rest does not.

    Attributes:
        tensors: by name, owners only, on any device.
        held: the same, as they lie in memory.
        aliases: owner by alias.
        tree: how everything is put together, in JSON's own types; see `torchkeep.archive.described`.
        recipe: how the model is built, in JSON's own types; None where no recipe describes it.
        stepped: names of the tensors that only the steps of ``optimizers`` change: their parameters and state.
        optimizers: the state's own.
        left_out: non-persistent buffers, which are no part of a module's state.
        versions: of the programs that take part.
    """

    tensors: dict[str, Tensor]
    held: dict[str, Held]
    aliases: dict[str, str]
    tree: Any
    recipe: Any
    stepped: frozenset[str]
    optimizers: tuple[torch.optim.Optimizer, ...]
    left_out: tuple[str, ...]
    versions: dict[str, str]


@without_collections()
def capture(state: object) -> Captured:
    """Take a state apart.

    Args:
        state: a `TrainingState`, a module (as a `BareModule`, what is found out about it serves again), or nested
            containers of tensors and plain values.

    Raises:
        UnsavableError: something in it can't be kept without pickle, or an optimizer's parameter is in two
            optimizers; all of it is told, each with its path.
        SourceError: a module that contains itself.
    """
    keepers = keepers_of(state)
    names = names_of(state, keepers)
    contents = {part: keeper.content(names) for part, keeper in keepers.items()}
    problems = [problem for content in contents.values() for problem in content.problems]
    problems += _wrong_counters(state)
    problems += _in_two_optimizers(contents, names)
    if problems:
        raise unsavable(problems)
    shared = merger_of(state).shared(contents)
    aliases = dict(shared.aliases)
    return Captured(
        tensors=_owners(contents, aliases, lambda content: content.tensors),
        held=_owners(contents, aliases, Content.held),
        aliases=aliases,
        tree=_tree(state, contents, shared.order),
        recipe=_recipe(names),
        stepped=shared.stepped,
        optimizers=tuple(keeper.obj for keeper in keepers.values() if isinstance(keeper, OptimizerKeeper)),
        left_out=tuple(name for content in contents.values() for name in content.left_out),
        versions=_versions(),
    )


def _owners(
    contents: Mapping[str, Content], aliases: Mapping[str, str], of: Callable[[Content], Sequence[_What]]
) -> dict[str, _What]:
    found: dict[str, _What] = {}
    for content in contents.values():
        found.update(zip(content.names, of(content), strict=True))
    for alias in aliases:
        found.pop(alias, None)
    return found


def _tree(state: object, contents: Mapping[str, Content], order: tuple[str, ...]) -> Any:
    """Return the tree of the state; see `torchkeep.archive.described.StateTree`."""
    if isinstance(state, TrainingState):
        value = {"dict": {part: content.node for part, content in contents.items()}}
    else:
        value = contents[""].node
    tree: dict[str, Any] = {"value": value}
    modules = {part: content.facts for part, content in contents.items() if content.facts is not None}
    if modules:
        tree["modules"] = modules
    if order:
        tree["order"] = list(order)
    return tree


def _wrong_counters(state: object) -> list[tuple[Path | str, str]]:
    if not isinstance(state, TrainingState):
        return []
    return [
        (Path(ROOT, name), f"it must be a whole number, not {getattr(state, name)!r}")
        for name in ("epoch", "batch")
        if type(getattr(state, name)) is not int
    ]


def _in_two_optimizers(contents: Mapping[str, Content], names: Names) -> list[tuple[Path | str, str]]:
    optimizers = {part: content for part, content in contents.items() if content.parameters}
    if len(optimizers) < 2:  # noqa: PLR2004 - two or more
        return []
    seen: dict[int, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for part, content in optimizers.items():
        for parameter in content.parameters:
            first = seen.setdefault(id(parameter), part)
            if first != part:
                name = names.of(parameter) or f"a parameter of shape {list(parameter.shape)}"
                shared.setdefault((first, part), []).append(name)
    return [
        (Path(ROOT, part), f"{listed(found)} are also in {first!r}; let each parameter be in one optimizer only")
        for (first, part), found in shared.items()
    ]


def _recipe(names: Names) -> Any:
    """Return the recipe of the model: of the part ``model``, or of a state that is a module."""
    found = names.surveys.get(MODEL, names.surveys.get(""))
    return None if found is None else blueprint_of(found.net).recipe(found)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "torchkeep": __version__}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        found["numpy"] = numpy.__version__
    return found
