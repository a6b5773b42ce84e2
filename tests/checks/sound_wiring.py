"""Sound layers with unusual wiring: inputs, outputs, kinds of numbers, hand-written gradients, compiled code."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from checks.planting import floats
from checks.sound_layers import Case
from torchkeep.checks.declaring import Declare


@dataclass
class ModelOutput(OrderedDict):
    """A dataclass that is a dict of what is not None, as those of transformers are."""

    logits: Any = None
    loss: Any = None
    hidden: Any = None

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Classifies(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, labels=None):
        hidden = self.body(x).tanh()
        logits = self.head(hidden)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ModelOutput(logits=logits, loss=loss, hidden=(x, hidden))


class TakesABatch(nn.Module):
    """Takes a dict of inputs, some of them no tensors."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, batch):
        return {"out": self.inner(batch["x"]) * batch["mask"], "name": batch["name"]}


class TakesANamespace(nn.Module):
    """Takes and gives plain objects that hold tensors."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, data):
        return SimpleNamespace(out=F.linear(data.x, self.weight(), self.inner.bias), steps=data.steps)

    def weight(self):
        return self.inner.weight


class MasksByNumbers(nn.Module):
    """Takes a mask of zeros and ones, as tokenizers give it."""

    lowest = -1e4

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x, attention_mask):
        scores = self.query(x) @ x.mT
        return scores.masked_fill(attention_mask[:, None] == 0, self.lowest).softmax(-1) @ x


class Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x, grad.sum(0)


class AffineLayer(nn.Module):
    function = Affine

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(4, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.function.apply(x, self.weight, self.bias)


class Spectral(nn.Module):
    """Multiplies frequencies; its weight is real, and seen as complex."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(5, 2))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.seen(), n=x.shape[-1])

    def seen(self):
        return torch.view_as_complex(self.weight)


class ComplexMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.complex(floats(4, 4), floats(4, 4, seed=1)))
        self.bias = nn.Parameter(torch.zeros(4, dtype=torch.complex64))

    def forward(self, z):
        return z @ self.weight + self.bias


class Contracts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(floats(2, 4, 5, 3))

    def forward(self, x):
        return torch.einsum("bij,hijk->bhk", x, self.weight)


class Generates(nn.Module):
    """Makes the weight of its layer, which `functional_call` puts in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.weights = nn.Linear(2, 16)
        self.register_buffer("code", floats(2))

    def forward(self, x):
        made = {"weight": self.weights(self.code).view(4, 4)}
        return torch.func.functional_call(self.layer, made, (x,))


class Tasks(nn.Module):
    """Takes the head that is asked for."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"first": nn.Linear(4, 2), "second": nn.Linear(4, 3)})

    def forward(self, x, task):
        return self.heads[task](x)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(4, 4)

    def forward(self, packed):
        return self.inner(packed)[0]


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=True)

    def forward(self, index):
        return self.table(index)


class Linear(nn.Linear):
    """One of a fixed size, for inputs of other kinds."""

    def __init__(self):
        super().__init__(4, 4)


class Narrow(nn.Module):
    """Computes in bfloat16 throughout."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.bfloat16)

    def forward(self, x):
        return self.inner(x)


class AddsConstants(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) @ torch.eye(4, dtype=x.dtype, device=x.device) + torch.zeros(x.shape[1:])


def scripted():
    """Make a module of TorchScript with buffers."""
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))


def traced():
    """Make a traced module, which holds constants of one dtype and device."""
    return torch.jit.trace(AddsConstants(), floats(3, 4))


def traced_inside():
    """Make an ordinary module around a traced one."""
    return nn.Sequential(traced(), nn.Linear(4, 2))


def rewritten():
    """Make what torch.fx makes of a module."""
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


BATCH = {"x": floats(3, 4), "mask": torch.tensor([[True, True, False, True]] * 3), "name": "some"}
DATA = SimpleNamespace(x=floats(3, 4), steps=2)
MASK = {"attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
COMPLEX = (torch.complex(floats(3, 4), floats(3, 4, seed=1)),)
WIRING = [
    Case(Classifies),
    Case(Classifies, kwargs={"labels": torch.tensor([0, 1, 1])}),
    Case(TakesABatch, (BATCH,)),
    Case(TakesANamespace, (DATA,)),
    Case(MasksByNumbers, (floats(2, 5, 4),), MASK),
    Case(AffineLayer),
    Case(Spectral, (floats(3, 8),), warns=("bfloat16", "empty_batch")),
    Case(ComplexMap, COMPLEX),
    Case(Contracts, (floats(3, 4, 5),)),
    Case(Generates, warns=("unused_parameter",)),
    Case(Tasks, kwargs={"task": "first"}, warns=("unused_parameter",)),
    Case(Packed, (nn.utils.rnn.pack_padded_sequence(floats(3, 5, 4), torch.tensor([5, 3, 2]), batch_first=True),)),
    Case(Sparse, (torch.tensor([[1, 2], [3, 0]]),)),
    Case(Linear, (torch.nested.nested_tensor([floats(2, 4), floats(3, 4)], layout=torch.jagged),)),
    Case(Narrow, (floats(3, 4).bfloat16(),)),
    Case(scripted, declare=Declare(batch_dim=0)),
    Case(traced),
    Case(traced_inside),
    Case(rewritten),
]
