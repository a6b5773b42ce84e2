"""Layers with one fault in how they are wired up; `FAULTS` says which check must catch which."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import Planted, floats
from checks.sound_wiring import (
    BATCH,
    COMPLEX,
    DATA,
    MASK,
    Affine,
    AffineLayer,
    Classifies,
    ComplexMap,
    MasksByNumbers,
    ModelOutput,
    Spectral,
    TakesABatch,
    TakesANamespace,
)
from torchkeep.checks.declaring import Declare


class RandomHiddenOutput(Classifies):
    """Only one of several outputs is wrong."""

    def forward(self, x, labels=None):
        found = super().forward(x, labels)
        return ModelOutput(logits=found.logits, hidden=(x, F.dropout(found.hidden[1])))  # planted


class PopsFromItsBatch(TakesABatch):
    def forward(self, batch):
        mask = batch.pop("mask")  # planted
        return self.inner(batch["x"]) * mask


class AddsToItsBatch(TakesABatch):
    def forward(self, batch):
        batch["hidden"] = self.inner(batch["x"])  # planted
        return batch["hidden"] * batch["mask"]


class AppendsToItsList(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, parts):
        parts.append(self.inner(parts[-1]))  # planted
        return parts[-1]


class ScalesItsNamespace(TakesANamespace):
    def forward(self, data):
        data.x.mul_(2)  # planted
        return super().forward(data)


class HidesACutInANamespace(TakesANamespace):
    def weight(self):
        return self.inner.weight.detach()  # planted


class MasksToInfinity(MasksByNumbers):
    lowest = -torch.inf


class TransposesItsGradient(Affine):
    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.T, grad.T @ x, grad.sum(0)


class ForgetsItsWeight(Affine):
    @staticmethod
    def backward(ctx, grad):
        _, weight = ctx.saved_tensors
        return grad @ weight, None, grad.sum(0)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, grad):
        return -grad


class TransposedGradient(AffineLayer):
    function = TransposesItsGradient


class NoGradientForItsWeight(AffineLayer):
    function = ForgetsItsWeight


class ReversesTheGradientOfItsInput(nn.Module):
    """Only a gradient of the input shows it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(Reversal.apply(x))


class SeesItsDataAsComplex(Spectral):
    def seen(self):
        return torch.view_as_complex(self.weight.data)  # planted


class DetachesAComplexWeight(ComplexMap):
    def forward(self, z):
        return z @ self.weight.detach() + self.bias  # planted


class InferenceInTheMiddle(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(floats(4)), nn.Parameter(floats(4))

    def forward(self, x):
        with torch.inference_mode():
            scale = self.weight.softmax(0)  # planted
        return x * scale.clone() + self.bias


class WrapsAnew(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(floats(4)), nn.Parameter(floats(4))

    def forward(self, x):
        return x * nn.Parameter(self.weight * 2) + self.bias


class ListsItsParametersOnce(nn.Module):
    """Keeps its parameters in a tuple at the first call, past which nobody can replace them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.held = None

    def forward(self, x):
        if self.held is None:
            self.held = tuple(self.inner.parameters())
        return F.linear(x, *self.held)


class LeavesOutOfItsState(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.scale

    def state_dict(self, *args, **kwargs):
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "scale" not in name}

    def load_state_dict(self, state, *_args, **_kwargs):
        return super().load_state_dict(state, strict=False)


class ReusesItsWorkspace(nn.Module):
    """Without autograd it writes into memory that it returned before."""

    def __init__(self):
        super().__init__()
        self.inner, self.workspace = nn.Linear(4, 4), None

    def forward(self, x):
        out = self.inner(x)
        if torch.is_grad_enabled():
            return out
        if self.workspace is None or self.workspace.shape != out.shape or self.workspace.dtype != out.dtype:
            self.workspace = torch.empty_like(out)
        return self.workspace.copy_(out)


class FlattensABatchOfOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x).squeeze()


class OffsetsOnTheCpu(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, index):
        return self.table(index + torch.tensor([0, 10]))  # planted


def _copy(batch):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


FAULTS = [
    Planted("eval_determinism", RandomHiddenOutput, tensor="output['hidden'][1]"),
    Planted("inputs_unchanged", PopsFromItsBatch, (_copy(BATCH),), tensor="args[0]['mask']"),
    Planted("inputs_unchanged", AddsToItsBatch, (_copy(BATCH),), tensor="args[0]['hidden']"),
    Planted("inputs_unchanged", AppendsToItsList, ([floats(3, 4)],), tensor="args[0][1]"),
    Planted("inputs_unchanged", ScalesItsNamespace, (SimpleNamespace(**vars(DATA)),), tensor="args[0].x"),
    Planted("severed_gradient", HidesACutInANamespace, (DATA,), tensor="inner.weight"),
    Planted("severed_gradient", NoGradientForItsWeight, tensor="weight"),
    Planted("severed_gradient", SeesItsDataAsComplex, (floats(3, 8),), tensor="weight"),
    Planted("severed_gradient", DetachesAComplexWeight, COMPLEX, tensor="weight"),
    Planted("severed_gradient", InferenceInTheMiddle, tensor="weight"),
    Planted("severed_gradient", WrapsAnew, tensor="weight"),
    Planted("custom_backward", TransposedGradient, tensor="args[0]"),
    Planted("custom_backward", ReversesTheGradientOfItsInput, tensor="args[0]"),
    Planted("fully_masked_inputs", MasksToInfinity, (floats(2, 5, 4),), MASK, tensor="output"),
    Planted("functional_call", ListsItsParametersOnce),
    Planted("fresh_state_dict", LeavesOutOfItsState, tensor="output"),
    Planted("output_overwritten", ReusesItsWorkspace, tensor="output"),
    Planted("batch_of_one", FlattensABatchOfOne, declare=Declare(batch_dim=0), tensor="output"),
    Planted("hard_coded_device", OffsetsOnTheCpu, (torch.tensor([[1, 2], [3, 0]]),)),
]
