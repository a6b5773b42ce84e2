"""A model's recipe goes with its checkpoints, and is that of the model as it is."""

from __future__ import annotations

import torch
from torch import nn

import torchkeep as tk
from torchkeep.recipes import Recipe
from torchkeep.training.state import blueprints
from torchkeep.training.state.capturing import capture


class Alike(nn.Module):
    """A layer that compares as it likes."""

    __hash__ = nn.Module.__hash__

    def __eq__(self, other):
        return True


def rebuilt(state):
    """Build the model that a state's recipe describes."""
    return tk.build(Recipe.from_dict(capture(state).recipe))


def test_recipes_follow_the_model():
    """A changed attribute, layer or frozen parameter is in the next checkpoint's recipe; the mode is not."""
    state = tk.TrainingState(model=nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    assert rebuilt(state)[1].p == 0.1
    state.model[1].p = 0.25
    assert rebuilt(state)[1].p == 0.25
    first = capture(state).recipe
    state.model.eval()
    assert capture(state).recipe is first
    state.model.append(nn.ReLU())
    assert isinstance(rebuilt(state)[2], nn.ReLU)
    state.model[0].weight.requires_grad_(requires_grad=False)
    assert not rebuilt(state)[0].weight.requires_grad


def test_a_module_alone_has_its_recipe():
    """It is remembered with the module, though no state is there to hold it."""
    net = nn.Sequential(nn.Linear(2, 3))
    first = capture(net).recipe
    assert isinstance(tk.build(Recipe.from_dict(first))[0], nn.Linear)
    assert capture(net).recipe is first
    net[0] = nn.Linear(2, 4)
    assert tk.build(Recipe.from_dict(capture(net).recipe))[0].out_features == 4


def test_models_that_no_recipe_describes_are_kept_without():
    """That is no error: load_into can load them all the same."""
    assert capture(tk.TrainingState(model=Alike())).recipe is None
    assert capture(tk.TrainingState(other=nn.Linear(1, 1))).recipe is None
    assert capture({"w": torch.zeros(1)}).recipe is None


def test_a_large_model_that_keeps_changing_is_not_rebuilt_for_each_save(monkeypatch):
    """After a few times there is no recipe, rather than an old one; a new structure gives it another chance."""
    monkeypatch.setattr(blueprints, "_QUICK", 1)
    state = tk.TrainingState(model=nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    found = []
    for number in range(6):
        state.model[1].p = number / 10
        found.append(capture(state).recipe)
    assert all(recipe is not None for recipe in found[:4])
    assert found[4:] == [None, None]
    state.model.append(nn.ReLU())
    assert rebuilt(state)[1].p == 0.5
