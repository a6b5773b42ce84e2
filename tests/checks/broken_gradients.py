"""Layers whose gradients go astray, each with one fault; `FAULTS` says which check must catch which."""

from __future__ import annotations

import torch
from torch import nn

from checks.planting import Planted, floats
from torchkeep.checks.declaring import Declare


class Scaled(nn.Module):
    """A linear map and a scale; those below lose the gradient of the scale."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(floats(4))


class UsesData(Scaled):
    def forward(self, x):
        return self.inner(x) * self.scale.data  # planted


class Detaches(Scaled):
    def forward(self, x):
        return self.inner(x) * self.scale.detach()  # planted


class DetachesInPlace(Scaled):
    def forward(self, x):
        doubled = self.scale * 2
        doubled.detach_()  # planted
        return self.inner(x) * doubled


class SwitchesGradOff(Scaled):
    def forward(self, x):
        with torch.no_grad():
            scale = self.scale.exp()  # planted
        return self.inner(x) * scale


class DecoratedHelper(Scaled):
    @torch.no_grad()
    def _scale(self):
        return self.scale.tanh()  # planted

    def forward(self, x):
        return self.inner(x) * self._scale()


class ThroughNumpy(Scaled):
    def forward(self, x):
        values = self.scale.detach().cpu().numpy()  # planted
        return self.inner(x) * torch.from_numpy(values.copy()).to(x)


class ThroughList(Scaled):
    def forward(self, x):
        return self.inner(x) * torch.tensor(self.scale.tolist(), dtype=x.dtype)  # planted


class ThroughItem(Scaled):
    def forward(self, x):
        return self.inner(x) * self.scale.mean().item()  # planted


class RebuildsTensor(Scaled):
    def forward(self, x):
        return self.inner(x) * torch.tensor(self.scale)  # planted


class DetachesLater(Scaled):
    def forward(self, x):
        return self.inner(x) * (self.scale + 1).softmax(0).detach()  # planted


class DetachesKeywordOnly(Scaled):
    def forward(self, x, *, gain):
        return {"out": self.inner(x) * gain * self.scale.detach(), "none": None}  # planted


class WholeForwardWithoutGrad(Scaled):
    @torch.no_grad()
    def forward(self, x):
        return self.inner(x) * self.scale  # planted


class DetachesItsInput(Scaled):
    def forward(self, x):
        return self.inner(x.detach()) * self.scale  # planted


class DeclaredStopped(Scaled):
    def forward(self, x):
        return self.inner(x) * self.scale


class TimesZero(Scaled):
    def forward(self, x):
        return self.inner(x) * (self.scale.detach() + 0 * self.scale)


class NeverUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.forgotten = nn.Parameter(floats(4))

    def forward(self, x):
        return self.inner(x)


class DiscardsResult(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        self.spare(x)
        return self.inner(x)


class ForgottenLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


class TakesAnotherBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)

    def forward(self, x):
        return self.rare(x) if x.shape[1] == 5 else self.inner(x)


class _HalfSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class _SignedAbs(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.abs()

    @staticmethod
    def backward(_, grad):
        return grad


class _ZeroGrad(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.exp()

    @staticmethod
    def backward(_, grad):
        return torch.zeros_like(grad)


class HalfGradient(Scaled):
    def forward(self, x):
        return _HalfSquare.apply(self.inner(x)) * self.scale


class IgnoresSign(Scaled):
    def forward(self, x):
        return _SignedAbs.apply(self.inner(x)) * self.scale


class NoGradientForScale(Scaled):
    def forward(self, x):
        return self.inner(x) * _ZeroGrad.apply(self.scale)


class KeepsItsGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.state = None

    def forward(self, x):
        out = self.inner(x).tanh()
        if self.training:
            out = out if self.state is None else out + self.state
            self.state = out
        return out


class AveragesWithGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        out = self.inner(x).exp()
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * out.mean(0)
        return out - self.mean


class _CountsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.calls = 0
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.calls += 1
        return grad * ctx.calls


class BackwardChanges(Scaled):
    def forward(self, x):
        return _CountsBackward.apply(self.inner(x)) * self.scale


_SEVERED = (
    UsesData,
    Detaches,
    DetachesInPlace,
    SwitchesGradOff,
    DecoratedHelper,
    ThroughNumpy,
    ThroughList,
    ThroughItem,
    RebuildsTensor,
    DetachesLater,
)

FAULTS = [
    *(Planted("severed_gradient", layer, tensor="scale") for layer in _SEVERED),
    Planted("severed_gradient", DetachesKeywordOnly, kwargs={"gain": floats(4, seed=1)}, tensor="scale"),
    Planted("severed_gradient", WholeForwardWithoutGrad, tensor="inner.weight, inner.bias"),
    Planted("severed_gradient", DeclaredStopped, declare=Declare(stop_gradient="scale"), tensor="scale"),
    Planted("severed_gradient", DetachesItsInput, status="warned", tensor="args[0]"),
    Planted("severed_gradient", TimesZero, status="warned", tensor="scale"),
    Planted("unused_parameter", NeverUsed, tensor="forgotten"),
    Planted("unused_parameter", DiscardsResult, tensor="spare.weight, spare.bias"),
    Planted("unused_parameter", ForgottenLayer, tensor="head.weight, head.bias"),
    Planted("unused_parameter", TakesAnotherBranch, status="warned", tensor="rare.weight, rare.bias"),
    Planted("custom_backward", HalfGradient, tensor="inner.weight, inner.bias"),
    Planted("custom_backward", IgnoresSign, tensor="inner.weight"),
    Planted("custom_backward", NoGradientForScale, tensor="scale"),
    Planted("backward_twice", KeepsItsGraph),
    Planted("backward_twice", AveragesWithGraph),
    Planted("backward_twice", BackwardChanges),
]
