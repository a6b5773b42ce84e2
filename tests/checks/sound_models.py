"""Sound parts of models, as people write them, with what must be declared; broken ones derive from them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import floats
from checks.sound_layers import CAUSAL, Case
from torchkeep.checks.declaring import Declare


class Attention(nn.Module):
    """Causal attention whose mask is a buffer that state_dict leaves out."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.register_buffer("mask", self.make_mask(16), persistent=False)

    def make_mask(self, length):
        return torch.ones(length, length, dtype=torch.bool).tril()

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (part.reshape(batch, length, 2, 4).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        scores = (q @ k.mT / 2).masked_fill(~self.mask[:length, :length], -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Rotary(nn.Module):
    """Keeps cosines for later calls, and makes them anew where length, device or dtype ask for it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.register_buffer("speeds", 10_000 ** -(torch.arange(0, 8, 2) / 8), persistent=False)
        self.known = None

    def forward(self, x):
        key = (x.shape[1], x.device, x.dtype)
        if self.known is None or self.known[0] != key:
            angles = torch.outer(torch.arange(x.shape[1], device=x.device), self.speeds.float())
            self.known = key, angles.cos().to(x), angles.sin().to(x)
        _, cos, sin = self.known
        a, b = self.inner(x).chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Recurrent(nn.Module):
    """Starts from a hidden state of zeros in each call."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.hidden = None

    def forward(self, x):
        self.hidden = x.new_zeros(len(x), 4)
        for part in x.unbind(1):
            self.hidden = self.cell(part, self.hidden)
        out, self.hidden = self.hidden, None
        return out


class LowRank(nn.Module):
    """A frozen layer and a trained update of low rank, which is nothing at first."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(requires_grad=False)
        self.down = nn.Parameter(torch.randn(2, 4) * 0.1)
        self.up = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class MergedForEval(LowRank):
    """Keeps the merged weight in eval mode, until training goes on."""

    def __init__(self):
        super().__init__()
        nn.init.normal_(self.up)
        self.merged = None

    def train(self, mode=True):
        self.merged = None if mode else self.merged
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return super().forward(x)
        if self.merged is None:
            self.merged = (self.base.weight + self.up @ self.down).detach()
        return F.linear(x, self.merged, self.base.bias)


class WeightNormed(nn.Module):
    """Weight normalisation by hand."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(3, 4))
        self.length = nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        return F.linear(x, self.length * F.normalize(self.direction, dim=1))


class ActNorm(nn.Module):
    """A flow's normalisation that takes its values from the first batch."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("ready", torch.tensor(data=False))

    def forward(self, x):
        if not self.ready:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.scale.copy_(1 / (x.std(0) + 1e-3))
                self.ready.fill_(value=True)
        return (x + self.shift) * self.scale, self.scale.abs().log().sum()


class Coupling(nn.Module):
    """A flow's coupling, with a mask and a permutation for buffers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 8)
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0]))
        self.register_buffer("order", torch.randperm(4))

    def forward(self, x):
        scale, shift = self.net(x * self.mask).chunk(2, -1)
        scale = scale.tanh() * (1 - self.mask)
        return (x * scale.exp() + shift * (1 - self.mask))[:, self.order], scale.sum(-1)


class Routed(nn.Module):
    """A mixture of experts: each sample takes the one its gate scores highest."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def weight(self, scores, chosen):
        return scores.gather(1, chosen)

    def forward(self, x):
        scores = self.gate(x).softmax(-1)
        chosen = scores.argmax(-1, keepdim=True)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            hit = chosen[:, 0] == index
            if hit.any():
                out[hit] = expert(x[hit])
        return out * self.weight(scores, chosen)


class Quantised(nn.Module):
    """A vector-quantised bottleneck with a straight-through gradient and a codebook that follows its codes."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 3)
        self.decode = nn.Linear(3, 4)
        self.register_buffer("codes", torch.randn(8, 3))

    def forward(self, x):
        z = self.encode(x)
        which = torch.cdist(z, self.codes).argmin(-1)
        near = self.codes[which]
        if self.training:
            self.codes.index_copy_(0, which, (near * 0.9 + z * 0.1).detach())
        return self.decode(self.through(z, near)), which

    def through(self, z, near):
        return z + (near - z).detach()


class RoundedWeight(nn.Module):
    """Quantisation-aware training: the weight is rounded, its gradient passes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))

    def rounded(self):
        return self.weight + ((self.weight * 10).round() / 10 - self.weight).detach()

    def forward(self, x):
        return F.linear(x, self.rounded())


class FixedPoint(nn.Module):
    """Iterates without a graph, then once with one."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        z = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(5):
                z = self.step(z, x)
        return self.step(z, x)

    def step(self, z, x):
        return (self.inner(z) * 0.3 + self.outer(x)).tanh()


class Compared(nn.Module):
    """Two inputs through one layer, whose bias cancels out but for rounding."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, pair):
        return (self.inner(pair[0]) - self.inner(pair[1])).abs().sum(-1)


class Distilled(nn.Module):
    """The distance of a student from its teacher, of which it is a copy: every gradient is zero at first."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(4, 4)
        self.teacher = nn.Linear(4, 4).requires_grad_(requires_grad=False)
        self.teacher.load_state_dict(self.student.state_dict())

    def forward(self, x):
        return (self.student(x) - self.teacher(x)).square().mean(-1)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, adjacency):
        return adjacency @ self.inner(x)


SEQUENCE = (floats(2, 5, 8),)
MODELS = [
    Case(Attention, SEQUENCE, declare=CAUSAL),
    Case(Rotary, SEQUENCE),
    Case(Recurrent, (floats(2, 5, 4),)),
    Case(LowRank),
    Case(MergedForEval),
    Case(WeightNormed),
    Case(ActNorm, declare=Declare(mutates=["shift", "scale", "ready"], batch_dim=None)),
    Case(Coupling),
    Case(Routed, (floats(6, 4),), warns=("unused_parameter",)),
    Case(Quantised, (floats(5, 4),), warns=("bfloat16",)),
    Case(RoundedWeight),
    Case(FixedPoint),
    Case(Compared, ([floats(3, 4), floats(3, 4, seed=1)],)),
    Case(Distilled),
    Case(Graph, (floats(5, 4), torch.eye(5).roll(1, 0)), declare=Declare(batch_dim=None)),
]
