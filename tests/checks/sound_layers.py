"""Sound layers of unusual kinds, with what must be declared about them: no check may fail or warn on any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import floats
from torchkeep.checks.declaring import Declare


class CausalConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        return self.convolution(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class CausalAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


class CausalLookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, index):
        return self.table(index).cumsum(1)


class MaskedAverage(nn.Module):
    def forward(self, x, keep):
        return (x * keep).sum(-1) / keep.sum(-1).clamp(min=1)


class MaskedSoftmax(nn.Module):
    def forward(self, x, mask):
        safe = torch.where(mask.all(-1, keepdim=True), False, mask)  # noqa: FBT003 - a value to fill with
        return x.masked_fill(safe, -torch.inf).softmax(-1).masked_fill(mask, 0)


class DropsAlways(nn.Module):
    """Monte Carlo dropout: random in eval mode on purpose."""

    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class FollowsTheMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


class CountsEveryCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return x * 2


class TakesHidden(nn.Module):
    """Hands its state in and out, which is None at first."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 5)

    def forward(self, x, hidden=None):
        return {"hidden": self.cell(x, hidden), "length": x.shape[0], "nothing": None}


class Scores(NamedTuple):
    best: torch.Tensor
    where: torch.Tensor


@dataclass
class Boxes:
    corners: torch.Tensor
    label: str


class Maximum(nn.Module):
    def forward(self, x):
        return Scores(*x.max(-1))


class Shifts(nn.Module):
    def forward(self, boxes):
        return Boxes(boxes.corners + 1, boxes.label)


class OneHot(nn.Module):
    def forward(self, index):
        return F.one_hot(index, 5)


class AddsNested(nn.Module):
    def forward(self, parts, *, scale):
        return [parts["first"][0] + parts["first"][1] * scale, (parts["second"],)]


class ChecksOutCached(nn.Module):
    """Keeps positions for later calls, and grows them: its output never depends on what was called before."""

    def __init__(self):
        super().__init__()
        self.known = {}

    def forward(self, x):
        key = (x.shape[1], x.device, x.dtype)
        if key not in self.known:
            self.known[key] = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return x + self.known[key]


class PlainConstant(nn.Module):
    def forward(self, x):
        return x + torch.tensor(0.5)


class MixesNeighbours(nn.Module):
    """Takes a sparse matrix."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, graph, x):
        return torch.sparse.mm(graph, self.inner(x))


class Sparsifies(nn.Module):
    def forward(self, x):
        return x.relu().to_sparse()


class Rotates(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("phase", torch.polar(torch.ones(4), floats(4)))

    def forward(self, z):
        return z * self.phase


class TakesNothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(floats(3, 2))

    def forward(self):
        return self.table * 2


class ReturnsADistribution(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(4, 2)

    def forward(self, x):
        return torch.distributions.Normal(self.mean(x), 1.0)


class ReturnsItsInput(nn.Module):
    def forward(self, x):
        return x


class Compares(nn.Module):
    def forward(self, x):
        return x > 0


class EmbedsWords(nn.Module):
    """Takes no tensors, but strings."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 3)

    def forward(self, words):
        return self.table(torch.tensor([len(word) for word in words], device=self.table.weight.device))


class ReturnsNothing(nn.Module):
    def forward(self, x):
        assert x.ndim


class Case(NamedTuple):
    make: Any
    args: tuple[Any, ...] = (floats(3, 4),)
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    declare: Declare = Declare()
    warns: tuple[str, ...] = ()


TOKENS = torch.tensor([[0, 3, 1, 2], [4, 4, 2, 0]])
BOOLS = torch.tensor([[True, False, True, False]] * 3)
CAUSAL = Declare(batch_dim=0, causal_dim=1)

SOUND = [
    Case(CausalConvolution, (floats(2, 6, 4),), declare=CAUSAL),
    Case(CausalAttention, (floats(2, 6, 4),), declare=CAUSAL),
    Case(CausalLookup, (TOKENS,), declare=CAUSAL),
    Case(MaskedAverage, (floats(3, 4), BOOLS)),
    Case(MaskedSoftmax, (floats(3, 4),), {"mask": BOOLS}),
    Case(DropsAlways, declare=Declare(stochastic=True)),
    Case(FollowsTheMean),
    Case(CountsEveryCall, declare=Declare(mutates="calls")),
    Case(TakesHidden),
    Case(TakesHidden, (floats(3, 4),), {"hidden": floats(3, 5)}),
    Case(Maximum),
    Case(Shifts, (Boxes(floats(3, 4), "cat"),)),
    Case(OneHot, (TOKENS,)),
    Case(AddsNested, ({"first": [floats(3, 4), floats(3, 4)], "second": TOKENS.T[:3]},), {"scale": 2.0}),
    Case(ChecksOutCached),
    Case(PlainConstant),
    Case(MixesNeighbours, (torch.eye(3).to_sparse(), floats(3, 4))),
    Case(Sparsifies),
    Case(Rotates, (torch.complex(floats(3, 4), floats(3, 4)),)),
    Case(TakesNothing, ()),
    Case(ReturnsADistribution),
    Case(ReturnsItsInput),
    Case(Compares),
    Case(EmbedsWords, (["one", "three"],)),
    Case(ReturnsNothing),
]
