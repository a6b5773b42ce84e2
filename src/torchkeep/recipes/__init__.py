"""Blocks and recipes: how a model was made, as data, and making it again."""

from __future__ import annotations

from torchkeep.recipes.document import Recipe as Recipe
from torchkeep.recipes.rebuilding import build as build
from torchkeep.recipes.registry import block as block
from torchkeep.recipes.writing import recipe as recipe
from torchkeep.recipes.writing import try_recipe as try_recipe
