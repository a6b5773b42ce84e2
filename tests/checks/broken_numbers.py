"""Layers with numerical faults, each with one; `FAULTS` says which check must catch which."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import Planted, floats
from torchkeep.checks.declaring import Declare


class DropsOutInEval(nn.Module):
    def forward(self, x):
        x = x * 2
        return F.dropout(x, 0.5)  # planted


class AddsNoiseInEval(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)  # planted


class DrawsFromNumpy(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())  # noqa: NPY002 - planted


class SeedsFromTheClock(nn.Module):
    def forward(self, x):
        return x * float(np.random.default_rng().random())


CALLS = itertools.count()


class CountsInAGlobal(nn.Module):
    def forward(self, x):
        return x + next(CALLS)


class MakesFloat32Weights(nn.Module):
    def forward(self, x):
        weight = torch.ones(4, 3)  # planted
        return x @ weight.to(x.device)


class ReturnsFloat32(nn.Module):
    def forward(self, x):
        return x.float()  # planted


class CopiesIntoFloat32(nn.Module):
    def forward(self, x):
        out = torch.empty(x.shape, device=x.device)  # planted
        return out.copy_(x)


class WidensBfloat16(nn.Module):
    def forward(self, x):
        return x + torch.ones(4, device=x.device)  # planted


class ReadsBits(nn.Module):
    def forward(self, x):
        return x * (x.view(torch.int32) >= 0)  # planted


class OnlyFloat32(nn.Module):
    def forward(self, x):
        if x.dtype is torch.float64:
            raise TypeError("float64 is not supported")  # planted
        return x * 2


class RoundsByPrecision(nn.Module):
    def forward(self, x):
        return x + torch.finfo(x.dtype).eps * 1e6


class InvertsMatrices(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x @ x.mT + torch.eye(4, dtype=x.dtype, device=x.device))  # planted


class DecomposesMatrices(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[1].abs()  # planted


class OverflowsHalf(nn.Module):
    def forward(self, x):
        high = x * 1e6
        return (high - high.amax(-1, keepdim=True)) / 1e6


class NaiveSoftmax(nn.Module):
    def forward(self, x):
        high = x.exp()
        return high / high.sum(-1, keepdim=True)  # planted


class NaiveSigmoid(nn.Module):
    def forward(self, x):
        return x.exp() / (1 + x.exp())  # planted


class NaiveTanh(nn.Module):
    def forward(self, x):
        return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())  # planted


class DividesByTheNorm(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True)  # planted


class DividesByTheSum(nn.Module):
    def forward(self, x):
        return x.abs() / x.abs().sum(-1, keepdim=True)  # planted


class RootOfSquares(nn.Module):
    def forward(self, x):
        return x.square().sum(-1).sqrt()


class MasksWithInfinity(nn.Module):
    def forward(self, x, mask):
        return x.masked_fill(mask, -torch.inf).softmax(-1)  # planted


class AddsItsMask(nn.Module):
    def forward(self, x, attn_mask):
        return (x + attn_mask).softmax(-1)  # planted


class AveragesWhatIsKept(nn.Module):
    def forward(self, x, keep):
        return (x * keep).sum(-1) / keep.sum(-1)  # planted


class MakesItsMaskOnTheCpu(nn.Module):
    def forward(self, x):
        mask = torch.ones(4, dtype=x.dtype)  # planted
        return x * mask


class CountsOnTheCpu(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, x):
        positions = torch.arange(x.shape[1], device="cpu")  # planted
        return x + self.table(positions)


class ReturnsPositionsOnTheCpu(nn.Module):
    def forward(self, x):
        return x * 2, torch.arange(x.shape[0])  # planted


class MultipliesOnTheCpu(nn.Module):
    def forward(self, x):
        weight = torch.eye(4, dtype=x.dtype)  # planted
        return x @ weight


class ViewsItsInput(nn.Module):
    def forward(self, x):
        return x.view(-1)  # planted


class ReadsByStride(nn.Module):
    def forward(self, x):
        return torch.as_strided(x, (3, 4), (4, 1)) * 2


class ReadsTheWholeMemory(nn.Module):
    def forward(self, x):
        if x.device.type == "meta":
            return x * 2
        values = x.new_empty(0).set_(x.untyped_storage())
        return x * 0 + values.sum()


class RemembersByPointer(nn.Module):
    def forward(self, x):
        places = {row.data_ptr(): place for place, row in enumerate(x)}
        return torch.stack([row * places[row.data_ptr()] for row in x])


class CountsUp(nn.Module):
    def forward(self, x):
        if 0 in x.stride():
            x.add_(1)  # planted
        return x * 2


BOOLS = torch.tensor([[True, False, True, False]] * 3)
HALF = Declare(dtypes=[torch.float16])

FAULTS = [
    Planted("eval_determinism", DropsOutInEval, tensor="output"),
    Planted("eval_determinism", AddsNoiseInEval, tensor="output"),
    Planted("eval_determinism", DrawsFromNumpy, tensor="output"),
    Planted("eval_determinism", SeedsFromTheClock, declare=Declare(stochastic=True)),
    Planted("eval_determinism", CountsInAGlobal),
    Planted("hard_coded_dtype", MakesFloat32Weights),
    Planted("hard_coded_dtype", ReturnsFloat32, tensor="output"),
    Planted("hard_coded_dtype", CopiesIntoFloat32, tensor="output"),
    Planted("hard_coded_dtype", WidensBfloat16, status="warned", tensor="output"),
    Planted("float64", ReadsBits, status="warned"),
    Planted("float64", OnlyFloat32, status="warned"),
    Planted("float64", OnlyFloat32, declare=Declare(dtypes=[torch.float64])),
    Planted("float64", RoundsByPrecision, status="warned", tensor="output"),
    Planted("bfloat16", InvertsMatrices, args=(floats(2, 4, 4),), status="warned"),
    Planted("bfloat16", DecomposesMatrices, args=(floats(2, 4, 4),), status="warned"),
    Planted("bfloat16", DecomposesMatrices, args=(floats(2, 4, 4),), declare=Declare(dtypes=[torch.bfloat16])),
    Planted("declared_dtypes", OverflowsHalf, declare=HALF, tensor="output"),
    Planted("declared_dtypes", InvertsMatrices, args=(floats(2, 4, 4),), declare=HALF),
    Planted("large_inputs", NaiveSoftmax, tensor="output"),
    Planted("large_inputs", NaiveSigmoid, tensor="output"),
    Planted("large_inputs", NaiveTanh, tensor="output"),
    Planted("zero_inputs", DividesByTheNorm, tensor="output"),
    Planted("zero_inputs", DividesByTheSum, tensor="output"),
    Planted("zero_inputs", RootOfSquares, status="warned", tensor="args[0]"),
    Planted("fully_masked_inputs", MasksWithInfinity, args=(floats(3, 4), BOOLS), tensor="output"),
    Planted("fully_masked_inputs", AddsItsMask, kwargs={"attn_mask": floats(3, 4)}, tensor="output"),
    Planted("fully_masked_inputs", AveragesWhatIsKept, args=(floats(3, 4), BOOLS), tensor="output"),
    Planted("hard_coded_device", MakesItsMaskOnTheCpu),
    Planted("hard_coded_device", CountsOnTheCpu, args=(floats(2, 3, 4),)),
    Planted("hard_coded_device", ReturnsPositionsOnTheCpu, tensor="output[1]"),
    Planted("hard_coded_device", MultipliesOnTheCpu),
    Planted("transposed_inputs", ViewsItsInput),
    Planted("transposed_inputs", ReadsByStride, tensor="output"),
    Planted("expanded_inputs", ReadsTheWholeMemory, tensor="output"),
    Planted("expanded_inputs", RemembersByPointer, tensor="output"),
    Planted("expanded_inputs", CountsUp),
]
