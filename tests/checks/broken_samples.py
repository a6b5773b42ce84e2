"""Layers that mix samples or positions, each with one fault; `FAULTS` says which check must catch which."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import Planted, floats
from torchkeep.checks.declaring import Declare


class CentresOverTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class SoftmaxOverTheBatch(nn.Module):
    def forward(self, x):
        return x.softmax(0)


class ScalesByTheLargest(nn.Module):
    def forward(self, *, x):
        return {"scaled": x / (1 + x.abs().max()), "mask": x > 0}


class ShiftsSamples(nn.Module):
    def forward(self, index):
        return index.roll(1, 0)


class AttendsAcrossTheBatch(nn.Module):
    """Takes (sequence, batch, features) for (batch, sequence, features)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class SqueezesEverything(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x).squeeze()


class RefusesOneSample(nn.Module):
    def forward(self, x):
        if x.shape[0] == 1:
            raise ValueError("one sample is too few")  # planted
        return x * 2


class TransposesOneSample(nn.Module):
    def forward(self, x):
        return x.flip(1) if x.shape[0] == 1 else x * 1


class ViewsTheRest(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1)  # planted


class StacksItsSamples(nn.Module):
    def forward(self, x):
        return torch.stack([sample * 2 for sample in x])  # planted


class PadsAnEmptyBatch(nn.Module):
    def forward(self, x):
        return x.new_zeros(1, x.shape[1]) if x.shape[0] == 0 else x * 2


class PadsBothSides(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


class AttendsToTheFuture(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class SubtractsTheMeanOverTime(nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


class LooksUpTheNextToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, index):
        return self.table(index.roll(-1, 1))


class DropsPositions(nn.Module):
    def forward(self, x):
        return x[:, ::2] * 2


SAMPLES = Declare(batch_dim=0)
CAUSAL = Declare(batch_dim=0, causal_dim=1)
SEQUENCES = (floats(2, 6, 4),)
TOKENS = (torch.tensor([[0, 3, 1, 2, 6, 5], [4, 4, 2, 0, 1, 3]]),)

FAULTS = [
    Planted("batch_mixing", CentresOverTheBatch, declare=SAMPLES, tensor="output"),
    Planted("batch_mixing", CentresOverTheBatch, status="warned", tensor="output"),
    Planted("batch_mixing", SoftmaxOverTheBatch, declare=SAMPLES, tensor="output"),
    Planted(
        "batch_mixing",
        ScalesByTheLargest,
        args=(),
        kwargs={"x": floats(3, 4)},
        declare=SAMPLES,
        tensor="output['scaled']",
    ),
    Planted("batch_mixing", ShiftsSamples, args=(torch.arange(4),), declare=SAMPLES),
    Planted("batch_mixing", AttendsAcrossTheBatch, args=SEQUENCES, declare=SAMPLES),
    Planted("batch_of_one", SqueezesEverything, declare=SAMPLES, tensor="output"),
    Planted("batch_of_one", SqueezesEverything, status="warned", tensor="output"),
    Planted("batch_of_one", RefusesOneSample, declare=SAMPLES),
    Planted("batch_of_one", TransposesOneSample, declare=SAMPLES, tensor="output"),
    Planted("empty_batch", ViewsTheRest, status="warned"),
    Planted("empty_batch", StacksItsSamples, status="warned"),
    Planted("empty_batch", PadsAnEmptyBatch, declare=SAMPLES, status="warned", tensor="output"),
    Planted("causality", PadsBothSides, args=SEQUENCES, declare=CAUSAL, tensor="output"),
    Planted("causality", AttendsToTheFuture, args=SEQUENCES, declare=CAUSAL, tensor="output"),
    Planted("causality", SubtractsTheMeanOverTime, args=SEQUENCES, declare=CAUSAL),
    Planted("causality", LooksUpTheNextToken, args=TOKENS, declare=CAUSAL),
    Planted("causality", DropsPositions, args=SEQUENCES, declare=CAUSAL),
]
