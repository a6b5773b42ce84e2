"""torchkeep: keep a PyTorch model's parameters.

Compose blocks; see, select, initialise and tie parameters; save and load them. Everything is imported when it is
first used, so that ``import torchkeep`` is quick and listing a file needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep import nn as nn
    from torchkeep.archive.retaining import Retention as Retention
    from torchkeep.checks.declaring import Declare as Declare
    from torchkeep.checks.reporting import CheckReport as CheckReport
    from torchkeep.checks.running import check as check
    from torchkeep.checks.running import check_cases as check_cases
    from torchkeep.errors import TorchkeepError as TorchkeepError
    from torchkeep.files.filling import LoadReport as LoadReport
    from torchkeep.files.filling import load_into as load_into
    from torchkeep.files.filling import plan_load as plan_load
    from torchkeep.files.loading import load as load
    from torchkeep.files.modelling import load_model as load_model
    from torchkeep.files.planning import LoadPlan as LoadPlan
    from torchkeep.files.saving import SaveReport as SaveReport
    from torchkeep.files.saving import save as save
    from torchkeep.init.plans import InitPlan as InitPlan
    from torchkeep.init.plans import initialize as initialize
    from torchkeep.recipes import Recipe as Recipe
    from torchkeep.recipes import block as block
    from torchkeep.recipes import build as build
    from torchkeep.recipes import recipe as recipe
    from torchkeep.selectors import Selector as Selector
    from torchkeep.selectors import select as select
    from torchkeep.selectors import where as where
    from torchkeep.tables.grouping import optimizer_groups as optimizer_groups
    from torchkeep.tables.structure import tree as tree
    from torchkeep.tables.table import ParameterTable as ParameterTable
    from torchkeep.tables.table import params as params
    from torchkeep.tensors.checkpoints import Checkpoint as Checkpoint
    from torchkeep.training.run.runs import Run as Run
    from torchkeep.training.run.signals import Preempted as Preempted
    from torchkeep.training.state.states import TrainingState as TrainingState
    from torchkeep.training.store.pending import PendingSave as PendingSave
    from torchkeep.training.store.stores import CheckpointStore as CheckpointStore
    from torchkeep.tying import TieGroup as TieGroup
    from torchkeep.tying import keeping_ties as keeping_ties
    from torchkeep.tying import materialize as materialize
    from torchkeep.tying import tie as tie
    from torchkeep.tying import ties as ties

__version__ = "0.1.0"

_HOMES = {
    "archive.retaining": ("Retention",),
    "checks.declaring": ("Declare",),
    "checks.reporting": ("CheckReport",),
    "checks.running": ("check", "check_cases"),
    "errors": ("TorchkeepError",),
    "files.filling": ("LoadReport", "load_into", "plan_load"),
    "files.loading": ("load",),
    "files.modelling": ("load_model",),
    "files.planning": ("LoadPlan",),
    "files.saving": ("SaveReport", "save"),
    "init.plans": ("InitPlan", "initialize"),
    "recipes": ("Recipe", "block", "build", "recipe"),
    "selectors": ("Selector", "select", "where"),
    "tables.grouping": ("optimizer_groups",),
    "tables.structure": ("tree",),
    "tables.table": ("ParameterTable", "params"),
    "tensors.checkpoints": ("Checkpoint",),
    "training.state.states": ("TrainingState",),
    "training.store.pending": ("PendingSave",),
    "training.store.stores": ("CheckpointStore",),
    "training.run.runs": ("Run",),
    "training.run.signals": ("Preempted",),
    "tying": ("TieGroup", "keeping_ties", "materialize", "tie", "ties"),
}
"""Public names by the module that defines them."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("errors", "init", "nn")

__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]  # noqa: PLE0604 - the names stand above, once


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, so that completion finds them before they are imported."""
    return sorted(__all__)
