"""Layers that torch's and Python's tools don't work on, each with one fault; `FAULTS` lists them."""

from __future__ import annotations

import threading

from torch import nn

from checks.planting import Planted, floats


class AsksForAParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def forward(self, x):
        return x @ self.get_parameter("weight")


class ScalesParametersOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def forward(self, x):
        return x @ (self.weight * 2 if isinstance(self.weight, nn.Parameter) else self.weight)


class HoldsALock(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.inner(x)


class KeepsWhatItComputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))
        self.normed = self.weight / self.weight.norm()

    def forward(self, x):
        self.normed = self.weight / self.weight.norm()
        return x @ self.normed


class CopiesShallowly(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def __deepcopy__(self, memo):
        twin = CopiesShallowly()
        twin.inner = self.inner
        return twin

    def forward(self, x):
        return self.inner(x)


class ForgetsWhenCopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.power = 2

    def __deepcopy__(self, memo):
        twin = ForgetsWhenCopied()
        twin.load_state_dict(self.state_dict())
        twin.power = 1
        return twin

    def forward(self, x):
        return self.inner(x) ** self.power


class HoldsALambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.act = lambda x: x.relu()

    def forward(self, x):
        return self.act(self.inner(x))


class ForgetsWhenPickled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.power = 2

    def __deepcopy__(self, memo):
        twin = ForgetsWhenPickled()
        twin.load_state_dict(self.state_dict())
        return twin

    def __getstate__(self):
        return {**self.__dict__, "power": 1}

    def forward(self, x):
        return self.inner(x) ** self.power


class PrintsItsMean(nn.Module):
    def forward(self, x):
        mean = x.mean().item()  # planted
        return x - mean if mean > 0 else x + mean


class BranchesOnValues(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # planted
            return x * 2
        return x * 3


class ShapesByHand(nn.Module):
    def forward(self, x):
        return x - x.mean().item()


class BranchesUnderVmap(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


FAULTS = [
    Planted("functional_call", AsksForAParameter),
    Planted("functional_call", ScalesParametersOnly, tensor="weight"),
    Planted("deepcopy", HoldsALock, tensor="lock"),
    Planted("deepcopy", KeepsWhatItComputed, tensor="normed"),
    Planted("deepcopy", CopiesShallowly, tensor="inner.weight, inner.bias"),
    Planted("deepcopy", ForgetsWhenCopied),
    Planted("pickle", HoldsALambda, tensor="act"),
    Planted("pickle", ForgetsWhenPickled),
]
OPT_IN_FAULTS = [
    ("graph_breaks", PrintsItsMean),
    ("graph_breaks", BranchesOnValues),
    ("vmap", ShapesByHand),
    ("vmap", BranchesUnderVmap),
]
