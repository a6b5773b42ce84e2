"""Write recipes: describe a module, build it again, and give the recipe out only when nothing differs."""

from __future__ import annotations

import random
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from torchkeep.errors import RecipeError, TorchkeepError
from torchkeep.recipes.comparing import attribute_differences, differences
from torchkeep.recipes.describing import Describer
from torchkeep.recipes.document import FORMAT, VERSION, Recipe
from torchkeep.recipes.finishing import finishing
from torchkeep.recipes.rebuilding import build
from torchkeep.tables.survey import Survey, survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_SHOWN = 20


def recipe(net: nn.Module) -> Recipe:
    """Write down how ``net`` was made, so that `build` makes another like it.

    Described are blocks (classes registered with ``@tk.block``, by id and constructor arguments), torch.nn's
    modules (by what they hold), the children of torch.nn's containers, modules and tensors that are shared,
    frozen parameters and converted dtypes. Values, devices and the training mode are no part of a recipe.

    The recipe is given out only after a rebuild was compared: the same names, shapes, dtypes, kinds, persistence,
    classes, plain attributes, hooks, ``requires_grad`` and ties. The rebuild is made on the meta device, where it
    costs no memory; where a constructor needs values, on the CPU. The random state is what it was.

    Args:
        net: the model; wrappers (DistributedDataParallel, ``torch.compile``, ...) are no part of the recipe.

    Returns:
        The recipe.

    Raises:
        SourceError: ``net`` is no module, or contains itself.
        RecipeError: something can't be described, or a rebuild differs; all of it is named, with what to do.
    """
    mine = survey(net)
    describer = Describer()
    root = describer.describe(mine.net, "")
    if describer.problems:
        raise RecipeError(_listed("no recipe describes this model", describer.problems))
    plain = Recipe.from_dict({"format": FORMAT, "version": VERSION, "root": root})
    try:
        whole, other, attributes = _rebuilt(mine, plain, "meta")
    except TorchkeepError:
        # A constructor may compute with values, which the meta device does not have.
        whole, other, attributes = _rebuilt(mine, plain, "cpu")
    else:
        if attributes and not other:
            # An attribute may say what device or values were met: only a real rebuild can tell.
            whole, other, attributes = _rebuilt(mine, plain, "cpu")
    if other or attributes:
        raise RecipeError(_listed("a rebuild of this model differs from it", [*other, *attributes]))
    return whole


def try_recipe(net: nn.Module) -> Recipe | None:
    """Return the recipe of ``net``, or None where `recipe` raises RecipeError."""
    try:
        return recipe(net)
    except RecipeError:
        return None


def _rebuilt(mine: Survey, plain: Recipe, device: str) -> tuple[Recipe, list[str], list[str]]:
    """Complete a recipe by what a rebuild lacks, rebuild it again, and return it with what still differs."""
    with _undisturbed(), torch.device(device):
        draft = survey(build(plain))
        whole = Recipe.from_json(finishing(mine, draft, plain).to_json())
        rebuilt = draft if whole == plain else survey(build(whole))
    return whole, list(differences(mine, rebuilt)), list(attribute_differences(mine, rebuilt))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave random states and warnings as they were: the rebuild is nobody's business."""
    numpy = sys.modules.get("numpy")
    python_before, numpy_before = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python_before)
        if numpy:
            numpy.random.set_state(numpy_before)


def _listed(head: str, sentences: list[str]) -> str:
    more = len(sentences) - _SHOWN
    lines = sentences[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
    return "\n  ".join([f"{head}:", *lines])
