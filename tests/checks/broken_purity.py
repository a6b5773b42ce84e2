"""Layers that change what is not theirs, each with one fault; `FAULTS` says which check must catch which."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from checks.planting import Planted, floats


class ReluInPlace(nn.Module):
    def forward(self, x):
        return x.relu_() + 1  # planted


class MaskFilledInPlace(nn.Module):
    def forward(self, x, mask):
        mask.logical_not_()  # planted
        return x * mask


class SortsItsList(nn.Module):
    def forward(self, parts):
        parts[1].add_(parts[0])  # planted
        return parts[1] * 2


class FillsItsList(nn.Module):
    def forward(self, x, seen):
        seen.append(x)  # planted
        return x * 2


class ZeroesInTraining(nn.Module):
    def forward(self, x):
        if self.training:
            x[:, 0] = 0  # planted
        return x * 2


class RenormalisesItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def forward(self, x):
        with torch.no_grad():
            self.weight.div_(self.weight.norm())  # planted
        return x @ self.weight


class CountsInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1  # planted
        return x * 2


class MeanFollowsInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)  # planted
        return x + 1


class RegistersInForward(nn.Module):
    def forward(self, x):
        self.register_buffer("seen", torch.ones(4))  # planted
        return x + 1


class CountsInAnAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class SeedsItself(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)  # planted
        return x + torch.rand_like(x)


class SeedsAfterDrawing(nn.Module):
    def forward(self, x):
        if self.training:
            x = nn.functional.dropout(x)
            torch.manual_seed(3)  # planted
        return x * 2


class SeedsNumpy(nn.Module):
    def forward(self, x):
        np.random.seed(0)  # noqa: NPY002 - planted
        return x * 2


class DrawsForNothing(nn.Module):
    def forward(self, x):
        noise = torch.rand_like(x)  # planted
        return x + noise if self.training else x * 2


class ShufflesForNothing(nn.Module):
    def forward(self, x):
        random.random()  # noqa: S311 - planted
        return x * 2


class EvaluatesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout()

    def forward(self, x):
        self.inner.eval()  # planted
        return self.inner(x) * 2


class TrainsItself(nn.Module):
    def forward(self, x):
        self.train()  # planted
        return x * 2


class SwitchesGradOff(nn.Module):
    def forward(self, x):
        torch.set_grad_enabled(False)  # planted
        return x * 2


class SetsTheDefaultDtype(nn.Module):
    def forward(self, x):
        torch.set_default_dtype(torch.float64)  # planted
        return x * 2


class HooksItsChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        self.inner.register_forward_hook(lambda *_: None)  # planted
        return self.inner(x)


class HooksItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def forward(self, x):
        if torch.is_grad_enabled():
            self.weight.register_hook(lambda grad: grad)  # planted
        return x @ self.weight


class HooksItsInput(nn.Module):
    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda grad: grad.clamp(-1, 1))
        return x * 2


class ReusesItsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = None

    def forward(self, x):
        if self.out is None:
            self.out = torch.empty_like(x)
        self.out.copy_(x.detach() * 2)  # planted
        return self.out


class ReturnsAViewOfItsRing(nn.Module):
    def __init__(self):
        super().__init__()
        self.ring = {}

    def forward(self, x):
        key = (x.shape, x.dtype, x.device)
        ring = self.ring.setdefault(key, torch.zeros_like(x))
        torch.mul(x.detach(), 3, out=ring)  # planted
        return ring[:, :2]


class KeepsItsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        self.last = self.inner(x)
        return self.last


class KeepsItsOutputInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.history = []

    def forward(self, x):
        out = self.inner(x)
        self.history.append(out)
        return out.view(-1).view(out.shape)


FAULTS = [
    Planted("inputs_unchanged", ReluInPlace, tensor="args[0]"),
    Planted(
        "inputs_unchanged",
        MaskFilledInPlace,
        kwargs={"mask": torch.tensor([True, False, True, False])},
        tensor="kwargs['mask']",
    ),
    Planted("inputs_unchanged", SortsItsList, args=([floats(3, 4), floats(3, 4, seed=1)],), tensor="args[0][1]"),
    Planted("inputs_unchanged", FillsItsList, args=(floats(3, 4), []), tensor="args[1][0]"),
    Planted("inputs_unchanged", ZeroesInTraining, tensor="args[0]"),
    Planted("state_unchanged", RenormalisesItsWeight, tensor="weight"),
    Planted("state_unchanged", CountsInEval, tensor="calls"),
    Planted("state_unchanged", MeanFollowsInEval, tensor="mean"),
    Planted("state_unchanged", RegistersInForward, tensor="seen"),
    Planted("state_unchanged", CountsInAnAttribute, tensor="calls"),
    Planted("random_state_unchanged", SeedsItself),
    Planted("random_state_unchanged", SeedsAfterDrawing),
    Planted("random_state_unchanged", SeedsNumpy),
    Planted("random_state_unchanged", DrawsForNothing),
    Planted("random_state_unchanged", ShufflesForNothing),
    Planted("settings_unchanged", EvaluatesItself),
    Planted("settings_unchanged", TrainsItself),
    Planted("settings_unchanged", SwitchesGradOff),
    Planted("settings_unchanged", SetsTheDefaultDtype),
    Planted("hooks_left", HooksItsChild, tensor="inner"),
    Planted("hooks_left", HooksItsWeight, tensor="weight"),
    Planted("hooks_left", HooksItsInput, tensor="args[0]", status="warned"),
    Planted("output_overwritten", ReusesItsOutput, tensor="output"),
    Planted("output_overwritten", ReturnsAViewOfItsRing, tensor="output"),
    Planted("output_overwritten", KeepsItsOutput, tensor="output", status="warned"),
    Planted("output_overwritten", KeepsItsOutputInAList, tensor="output", status="warned"),
]
