"""A checkpoint whose values are not what they should be gives an error of torchkeep's own, and changes nothing."""

from __future__ import annotations

import copy
import random

import msgspec
import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.archive import Manifest
from torchkeep.errors import TorchkeepError
from training_runs import Store, bits, same, steps

_STRANGE = [
    None,
    1,
    "x",
    [],
    {},
    {"tensor": "no"},
    {"tensor": 5},
    {"dict": {}},
    {"module": "model"},
    {"a": 1, "b": 2},
]


def spoil(node, rng):
    """Return a tree in which one thing is missing, misnamed or something else."""
    if not node or not isinstance(node, dict | list) or rng.random() < 0.08:
        return copy.deepcopy(rng.choice(_STRANGE))
    place = rng.randrange(len(node)) if isinstance(node, list) else rng.choice(list(node))
    if isinstance(node, dict) and rng.random() < 0.15:
        found = node.pop(place)
        if rng.random() < 0.5:
            node[rng.choice(["dict", "tensor", "other"])] = found
    else:
        node[place] = spoil(node[place], rng)
    return node


def made(seed):
    """Return a state with every kind of part."""
    torch.manual_seed(seed)
    net = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(net.parameters())
    loader = torch.utils.data.DataLoader([1, 2], generator=torch.Generator())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    others = {"loader": loader, "values": [1, {"a": torch.ones(2)}], "generator": torch.Generator()}
    state = tk.TrainingState(model=net, optimizer=optimizer, scheduler=scheduler, **others)
    steps(net, optimizer, 1, scheduler)
    return state


@pytest.mark.parametrize("seed", range(4))
def test_spoiled_trees_are_refused_whole(seed):
    """Digests were right, so whoever made it made it so; still nothing else may happen."""
    store, rng = Store(), random.Random(seed)  # noqa: S311 - no secrets here
    manifest = store.save(made(0))
    refused = 0
    for _ in range(40):
        tree = copy.deepcopy(manifest.tree)
        tree["value"] = spoil(tree["value"], rng)
        raw = msgspec.Raw(msgspec.json.encode(tree))
        spoiled = Manifest(manifest.path, manifest.summary, msgspec.structs.replace(manifest.body, tree=raw))
        state = made(1)
        before = bits(state)
        caught = None
        try:
            store.restore(state, spoiled)
        except TorchkeepError as error:
            caught = error
        if caught is not None:
            refused += 1
            assert getattr(caught, "replaced", ()) or same(bits(state), before)
    assert refused > 10
