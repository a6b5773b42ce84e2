"""Small training runs and the stores their states go through, for the tests of training."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
from torch import nn

from torchkeep.archive import TensorBytes, Writer
from torchkeep.storage.memory import MemoryStorage
from torchkeep.tensors.copying import copy_out
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.training.state.capturing import capture
from torchkeep.training.state.restoring import restore_into


class Store:
    """A store in memory that saves and restores states without anything in between."""

    def __init__(self):
        self.storage = MemoryStorage()
        self.writer = Writer(self.storage, "/runs/store", wait=0.0)

    def save(self, state, step=1):
        """Commit a state and return its manifest."""
        found = capture(state)
        tensors = {
            name: TensorBytes.whole(dtype_name(tensor.dtype), tuple(tensor.shape), partial(copy_out, tensor))
            for name, tensor in found.tensors.items()
        }
        return self.writer.commit(
            step, tensors, aliases=found.aliases, tree=found.tree, recipe=found.recipe, versions=found.versions
        )

    def restore(self, state, manifest=None, **policies):
        """Restore a state, from the latest checkpoint if no other is given."""
        return restore_into(state, self.writer, manifest or self.writer.latest(), **policies)


def seed_everything(seed):
    """Seed all global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what is kept


def steps(net, optimizer, count, scheduler=None, size=6):
    """Train for some steps on batches drawn at random; return the losses."""
    losses = []
    for _ in range(count):
        batch = torch.randn(8, size) * float(np.random.rand() + random.random())  # noqa: NPY002, S311 - the kept ones

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = (net(batch) ** 2).mean() + (net(batch) - 1).abs().mean()
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
        if scheduler is not None:
            scheduler.step()
    return losses


def bits(state):
    """Return the bits of every tensor in a state, and its tree, so that two can be compared."""
    found = capture(state)
    values = {
        name: tensor.detach().clone().contiguous().view(torch.uint8)
        if tensor.numel() and tensor.dim()
        else tensor.clone()
        for name, tensor in found.tensors.items()
    }
    return values, found.tree, found.aliases


def same(one, other):
    """Tell whether two results of `bits` are equal."""
    return (
        one[0].keys() == other[0].keys()
        and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
        and one[1:] == other[1:]
    )


def mlp(seed=0, *, dropout=True):
    """Return a model with batch norm, dropout and a tied pair."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2 if dropout else 0.0), nn.Tanh(), nn.Linear(6, 6)
    )
    net[4].weight = net[0].weight
    return net
