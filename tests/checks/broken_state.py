"""Layers that compute with what is not registered or not set, each with one fault; `FAULTS` lists them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from checks.planting import Planted, floats

SCALE = torch.full((4,), 1.5)
TABLES = {"gain": torch.full((4,), 0.5)}
GLOBAL_HEAD = nn.Linear(4, 4)


def _times_table(x):
    return x * TABLES["gain"]


class InAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.full((4,), 2.0)  # planted

    def forward(self, x):
        return x * self.scale


class InList(nn.Module):
    def __init__(self):
        super().__init__()
        self.scales = [1.0, torch.full((4,), 2.0)]  # planted

    def forward(self, x):
        return x * self.scales[1]


class InDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.consts = {"shift": (torch.full((4,), 2.0),)}  # planted

    def forward(self, x):
        return x + self.consts["shift"][0]


class InObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(shift=torch.full((4,), 2.0))  # planted

    def forward(self, x):
        return x + self.config.shift


class InClosure(nn.Module):
    def __init__(self):
        super().__init__()
        table = torch.full((4,), 2.0)
        self.act = _times(table)  # planted

    def forward(self, x):
        return self.act(x)


class _Times:
    def __init__(self, table):
        self.table = table

    def __call__(self, x):
        return x * self.table


def _times(table):
    return _Times(table)


class InLambda(nn.Module):
    def __init__(self):
        super().__init__()
        table = torch.full((4,), 2.0)
        self.act = lambda x: x * table

    def forward(self, x):
        return self.act(x)


class InGlobal(nn.Module):
    def forward(self, x):
        return x * SCALE


class InGlobalOfAHelper(nn.Module):
    def forward(self, x):
        return _times_table(x)


class InClassAttribute(nn.Module):
    shift = torch.full((4,), 2.0)

    def forward(self, x):
        return x + self.shift


class InDefault(nn.Module):
    def forward(self, x, shift=torch.full((4,), 2.0)):  # noqa: B008 - the fault
        return x + shift


class InChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), InAttribute())

    def forward(self, x):
        return self.inner(x)


class WholeNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.order = torch.tensor([2, 0, 3, 1])  # planted

    def forward(self, x):
        return x[:, self.order]


class ModulesInList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(2)]  # planted

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class ModuleInDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = {"main": nn.Linear(4, 4)}  # planted

    def forward(self, x):
        return self.heads["main"](x)


class ModuleInObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = SimpleNamespace(head=nn.Linear(4, 4))  # planted

    def forward(self, x):
        return self.parts.head(x)


class DropoutInList(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.drops = [nn.Dropout(0.5)]  # planted

    def forward(self, x):
        return self.drops[0](self.inner(x))


class ModuleInGlobal(nn.Module):
    def forward(self, x):
        return GLOBAL_HEAD(x)


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


_UNREGISTERED = {
    InAttribute: "scale",
    InList: "scales[1]",
    InDict: "consts['shift'][0]",
    InObject: "config.shift",
    InClosure: "act.table",
    InGlobal: "global SCALE",
    InGlobalOfAHelper: "global TABLES['gain']",
    InClassAttribute: "InClassAttribute.shift",
    InDefault: "default 0 of InDefault.forward",
    InChild: "inner.1.scale",
    WholeNumbers: "order",
}

FAULTS = [
    *(Planted("unregistered_tensor", layer, tensor=name) for layer, name in _UNREGISTERED.items()),
    Planted("hidden_module", ModulesInList, tensor="layers[0], layers[1]"),
    Planted("hidden_module", ModuleInDict, tensor="heads['main']"),
    Planted("hidden_module", ModuleInObject, tensor="parts.head"),
    Planted("hidden_module", DropoutInList, tensor="drops[0]"),
    Planted("hidden_module", ModuleInGlobal, tensor="global GLOBAL_HEAD"),
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
