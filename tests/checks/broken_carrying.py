"""Layers that don't come back as they were, each with one fault; `FAULTS` says which check must catch which."""

from __future__ import annotations

import torch
from torch import nn

from checks.planting import Planted, floats


class ViewOfWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))
        self.rows = [self.weight.data[:2]]  # planted

    def forward(self, x):
        return x @ self.weight + (x[:, :2] @ self.rows[0]).detach()


class AliasOfBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", floats(4))
        self.means = (self.mean,)  # planted

    def forward(self, x):
        return x - self.means[0]


class ListOfParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))
        self.all = [self.weight]  # planted

    def forward(self, x):
        return x @ self.all[0]


class RandomPermutation(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(64), persistent=False)  # planted

    def forward(self, x):
        return x[:, self.order]


class RandomFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("features", torch.randn(4, 4), persistent=False)  # planted

    def forward(self, x):
        return self.inner(x @ self.features)


class RandomNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = float(torch.randn(()))

    def forward(self, x):
        return x + self.shift


class LeavesOutOfState(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_state_dict_post_hook(_forget)
        self.register_load_state_dict_pre_hook(_pretend)

    def forward(self, x):
        return x @ self.weight


def _forget(_module, state, prefix, _metadata):
    state.pop(f"{prefix}weight")


def _pretend(module, state, prefix, *_):
    state[f"{prefix}weight"] = module.weight.detach()


class NamesByChance(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module(f"inner{torch.randint(0, 1_000_000, ()).item()}", nn.Linear(4, 4))

    def forward(self, x):
        for inner in self.children():
            x = inner(x)
        return x


class TiedByMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.data)

    def forward(self, x):
        return self.second(self.first(x))


class UntiedByLoading(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_load_state_dict_post_hook(_split)

    def forward(self, x):
        return self.second(self.first(x))


def _split(module, _keys):
    module.second.weight = nn.Parameter(module.second.weight.detach().clone())


class EmptyWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))  # planted

    def forward(self, x):
        return x @ self.weight


class EmptyBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.empty(4, dtype=torch.long))  # planted

    def forward(self, x):
        return x + (self.order > 0)


class EmptyOutput(nn.Module):
    def forward(self, x):
        out = torch.empty(x.shape[0], 4)
        out[:, :2] = x[:, :2]
        out[:, 3] = x[:, 3]
        return out.nan_to_num(nan=7.0) if self.training else out


FAULTS = [
    Planted("stale_alias", ViewOfWeight, tensor="rows[0]"),
    Planted("stale_alias", AliasOfBuffer, tensor="means[0]"),
    Planted("stale_alias", ListOfParameters, tensor="all[0]"),
    Planted("nonpersistent_randomness", RandomPermutation, args=(floats(3, 64),), tensor="order"),
    Planted("nonpersistent_randomness", RandomFeatures, tensor="features"),
    Planted("fresh_state_dict", RandomNumber),
    Planted("fresh_state_dict", LeavesOutOfState),
    Planted("fresh_state_dict", NamesByChance),
    Planted("ties_survive", TiedByMemory, tensor="first.weight, second.weight"),
    Planted("ties_survive", UntiedByLoading, tensor="first.weight, second.weight"),
    Planted("uninitialised_memory", EmptyWeight, tensor="weight"),
    Planted("uninitialised_memory", EmptyBuffer, tensor="order"),
    Planted("uninitialised_memory", EmptyOutput, tensor="output"),
]
