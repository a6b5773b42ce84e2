"""Parts of models as people write them, each with one fault; `FAULTS` says which check must catch which."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import Planted, floats
from checks.sound_layers import CAUSAL
from checks.sound_models import (
    SEQUENCE,
    ActNorm,
    Attention,
    Coupling,
    LowRank,
    MergedForEval,
    Quantised,
    Recurrent,
    RoundedWeight,
    Routed,
    WeightNormed,
)
from torchkeep.checks.declaring import Declare


class SeesOneAhead(Attention):
    def make_mask(self, length):
        return torch.ones(length, length, dtype=torch.bool).tril(1)


class SeesOnlyAhead(Attention):
    def make_mask(self, length):
        return torch.ones(length, length, dtype=torch.bool).triu()


class AttendsOverTheBatch(nn.Module):
    """Forgets `batch_first`, which gives the right shapes."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class NormalisesOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(8, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x - x.mean(1, keepdim=True))[0]


class GoesOnFromTheLastCall(Recurrent):
    def forward(self, x):
        hidden = self.cell(x[:, 0], self.hidden)
        self.hidden = hidden.detach()
        return hidden


class BackwardIntoTheLastCall(Recurrent):
    def forward(self, x):
        hidden = self.cell(x[:, 0], self.hidden if self.training else None)
        self.hidden = hidden if self.training else None
        return hidden


class HidesItsBase(LowRank):
    def __init__(self):
        super().__init__()
        self.bases = [nn.Linear(4, 4).requires_grad_(requires_grad=False)]  # planted
        del self.base

    def forward(self, x):
        return self.bases[0](x) + x @ self.down.T @ self.up.T


class CutsBothHalves(LowRank):
    """As `up` is zero at first, only it changes the output; the other half is cut off at the same place."""

    def forward(self, x):
        return F.linear(x, self.base.weight + (self.up @ self.down).data, self.base.bias)  # planted


class MergesAgainAndAgain(MergedForEval):
    def forward(self, x):
        if not self.training:
            self.base.weight.data += self.up @ self.down  # planted
            return self.base(x)
        return super().forward(x)


class NeverMergesAnew(MergedForEval):
    """Its merged weight outlives a training step."""

    def train(self, mode=True):
        return nn.Module.train(self, mode)


class NormalisesOnce(WeightNormed):
    """The weight is computed in the constructor, with a graph for a single backward pass."""

    def __init__(self):
        super().__init__()
        self.weight = self.length * F.normalize(self.direction, dim=1)  # planted

    def forward(self, x):
        return F.linear(x, self.weight)


class KeepsItsMaskAside(Coupling):
    def __init__(self):
        super().__init__()
        del self.mask
        self.mask = torch.tensor([1.0, 0, 1, 0])  # planted


class LosesItsOrder(Coupling):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(4), persistent=False)


class LearnsNoRoute(Routed):
    """The gate chooses, but weighs nothing, so that nothing tells it which choice was right."""

    def weight(self, _scores, _chosen):
        return 1.0


class TakesTheBestOfTheBatch(Routed):
    """Each expert takes the two samples of the batch that score highest."""

    def forward(self, x):
        scores = self.gate(x).softmax(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            best = scores[:, index].topk(2).indices
            out = out.index_add(0, best, expert(x[best]) * scores[best, index, None])
        return out


class NoGradientThrough(Quantised):
    def through(self, _z, near):
        return near


class RoundsWithoutGradient(RoundedWeight):
    def rounded(self):
        return (self.weight * 10).round() / 10


class PutsDropoutBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        self.dropout.train()  # planted
        return self.inner(self.dropout(x))


class RemembersTheFirstMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return x - self.mean


class RemembersTheFirstKeys(nn.Module):
    """Keeps the keys of the first call for all others, as caches of generation that nobody clears do."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.cache = {}

    def forward(self, x):
        keys = self.key(x)
        if not self.training:
            keys = self.cache.setdefault("keys", keys.detach())
        return (self.query(x) @ keys.mT).softmax(-1) @ x


class MultipliesByTheWholeBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def forward(self, x):
        return torch.einsum("bij,cjk,kl->bil", x, x, self.weight)


class OwnBatchNorm(nn.Module):
    """Normalises each feature by the batch, in eval mode too."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-3)


class ZeroesPadding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, index):
        self.table.weight.data[0] = 0  # planted
        return self.table(index)


SAMPLES = Declare(batch_dim=0)
FAULTS = [
    Planted("causality", SeesOneAhead, SEQUENCE, declare=CAUSAL, tensor="output"),
    Planted("causality", SeesOnlyAhead, SEQUENCE, declare=CAUSAL, tensor="output"),
    Planted("causality", NormalisesOverTime, SEQUENCE, declare=CAUSAL, tensor="output"),
    Planted("batch_mixing", AttendsOverTheBatch, SEQUENCE, declare=SAMPLES, tensor="output"),
    Planted("batch_mixing", TakesTheBestOfTheBatch, (floats(6, 4),), declare=SAMPLES, tensor="output"),
    Planted("batch_mixing", MultipliesByTheWholeBatch, (floats(3, 4, 4),), declare=SAMPLES, tensor="output"),
    Planted("batch_mixing", OwnBatchNorm, (floats(5, 4),), declare=SAMPLES, tensor="output"),
    Planted("state_unchanged", GoesOnFromTheLastCall, (floats(2, 5, 4),), tensor="hidden"),
    Planted("state_unchanged", MergesAgainAndAgain, tensor="base.weight"),
    Planted("state_unchanged", NeverMergesAnew, tensor="merged"),
    Planted("state_unchanged", ActNorm, tensor="scale"),
    Planted("state_unchanged", RemembersTheFirstMean, tensor="mean"),
    Planted("state_unchanged", RemembersTheFirstKeys, SEQUENCE),
    Planted("state_unchanged", ZeroesPadding, (torch.tensor([[1, 2], [3, 0]]),), tensor="table.weight"),
    Planted("backward_twice", BackwardIntoTheLastCall, (floats(2, 5, 4),)),
    Planted("hidden_module", HidesItsBase, tensor="bases[0]"),
    Planted("severed_gradient", CutsBothHalves, tensor="up"),
    Planted("severed_gradient", LearnsNoRoute, (floats(6, 4),), tensor="gate.weight"),
    Planted("severed_gradient", NoGradientThrough, (floats(5, 4),), tensor="encode.weight"),
    Planted("severed_gradient", RoundsWithoutGradient, status="warned", tensor="weight"),
    Planted("unregistered_tensor", NormalisesOnce, tensor="weight"),
    Planted("unregistered_tensor", KeepsItsMaskAside, tensor="mask"),
    Planted("nonpersistent_randomness", LosesItsOrder, tensor="order"),
    Planted("eval_determinism", PutsDropoutBack, tensor="output"),
]
