"""Layers that compute with what is not registered, each with one fault; `FAULTS` says what must catch which."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from checks.planting import Planted

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
]
