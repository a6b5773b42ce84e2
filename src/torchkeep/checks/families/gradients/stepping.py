"""Backward: hand-written ones give the gradient of their forward, and two steps in a row work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.comparing import differences
from torchkeep.checks.families.gradients.flowing import custom_functions, flow_of
from torchkeep.checks.nested import mapped, tensors
from torchkeep.checks.probing import differentiable, noise, pull_back, with_leaves
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.subject import in_a_line, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torchkeep.checks.subject import Subject

_STEP = 1e-5
_AGREE = 1e-4
"""How closely a derivative must agree with its estimate, in float64, relative to the larger of them."""


@proves(needs=("severed_gradient",))
def custom_backward(subject: Subject) -> Iterator[Finding]:
    """Prove that a hand-written backward gives the gradient of its forward.

    Applies only where the graph holds somebody's own ``torch.autograd.Function`` and the layer runs in float64.
    Decided as by gradcheck's fast mode, in eval mode: the derivative along a random direction against central
    differences of two widths, which must agree with each other, at three points, since one may lie on a kink. A
    derivative that is wrong at every point where there is an estimate fails. A straight-through estimator or a
    reversed gradient is wrong on purpose: list the check in ``expected``.
    """
    # With inputs that need a gradient: what works on these alone is in no graph otherwise.
    found = custom_functions(subject.call(with_leaves(subject, subject.inputs())[0], training=False))
    if not found:
        raise NotApplicable("forward uses no autograd.Function of its own")
    weights = flow_of(subject).parameters
    if any(tensor.is_complex() for tensor in (*weights.values(), *subject.input_tensors.values())):
        raise NotApplicable("derivatives by complex numbers are not compared")
    settled = [wrong for seed in range(3) if (wrong := _wrong(subject, seed, weights)) is not None]
    if not settled:
        raise NotApplicable("the layer does not run in float64, or no difference quotient of it settles")
    if not all(settled):
        return
    given, estimate = next(iter(settled[0].values()))
    yield Finding(
        f"the backward of {', '.join(found)} is not the gradient of its forward: along a random direction it "
        f"gives {given:.4g}, while forward changes by {estimate:.4g}",
        "correct it; if it is another on purpose (straight-through), list custom_backward in `expected`",
        tensor=", ".join(name for name in settled[0] if name),
        where=", ".join(filter(None, map(_source, found.values()))),
    )


def _source(function: Any) -> str:
    """Return ``file:line`` of a Function's backward."""
    code = getattr(function.backward, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def _wrong(subject: Subject, seed: int, weights: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]] | None:
    """Return derivative and estimate for each tensor where they differ at one point; None: nothing settles."""
    subject.snapshot.restore()
    subject.layer.double()
    try:
        point = _Point(subject, seed, weights)
        whole = point.slopes(point.leaves)
        if whole is None or _agree(*whole):
            return None if whole is None else {}
        each = {name: point.slopes([name]) for name in point.leaves}
    except (RuntimeError, TypeError):
        return None
    parts = {name: slopes[:2] for name, slopes in each.items() if slopes is not None and not _agree(*slopes)}
    return parts or {"": whole[:2]}


def _agree(given: float, estimate: float, scale: float) -> bool:
    return abs(given - estimate) <= _AGREE * max(abs(given), abs(estimate), scale)


class _Point:
    """The layer in float64, with noise on its inputs: one number as a function of its weights and inputs."""

    def __init__(self, subject: Subject, seed: int, weights: dict[str, torch.Tensor]) -> None:
        self._subject = subject
        self.leaves = dict(weights)

        def noisy(path: str, tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor.detach().clone()
            own = tensor.detach().double()
            self.leaves[path] = (own + noise(own, seed) * 0.1).requires_grad_()
            return self.leaves[path]

        self._given = subject.inputs(noisy)
        self._moves = {name: noise(leaf.detach(), 100 + seed) for name, leaf in self.leaves.items()}
        parts = [part for part in self._parts(grad=True) if part.requires_grad]
        gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            [part.sum() for part in parts], [*self.leaves.values()], allow_unused=True
        )
        self._slopes = {
            name: 0.0 if grad is None else float((grad.to_dense() * self._moves[name]).sum())
            for name, grad in zip(self.leaves, gradients, strict=True)
        }

    def _parts(self, *, grad: bool) -> list[torch.Tensor]:
        """Return the outputs times fixed random cotangents."""
        # A layer may work in place on what it is given.
        inputs = mapped(self._given, lambda _, tensor: tensor.clone())
        output = self._subject.call(inputs, training=False, grad=grad, carry=True)
        found = [tensor for _, tensor in tensors(output) if tensor.dtype == torch.float64]
        return [tensor * noise(tensor, index) for index, tensor in enumerate(found)]

    def slopes(self, names: Iterable[str]) -> tuple[float, float, float] | None:
        """Return the slope by backward, its estimate, and the scale of rounding; None where no estimate settles.

        Args:
            names: of the leaves that are moved together.
        """
        narrow, scale = self._estimate(names, _STEP)
        wide, _ = self._estimate(names, 4 * _STEP)
        settles = abs(narrow - wide) <= _AGREE * max(abs(narrow), scale)
        return (sum(self._slopes[name] for name in names), narrow, scale) if settles else None

    def _estimate(self, names: Iterable[str], step: float) -> tuple[float, float]:
        above, scale = self._number(names, step)
        below, _ = self._number(names, -step)
        return (above - below) / (2 * step), scale

    def _number(self, names: Iterable[str], step: float) -> tuple[float, float]:
        copies = {name: self.leaves[name].data.clone() for name in names}
        try:
            for name in names:
                self.leaves[name].data.add_(self._moves[name], alpha=step)
            parts = self._parts(grad=False)
        finally:
            for name, copy in copies.items():
                self.leaves[name].data.copy_(copy)
        return sum(float(part.sum()) for part in parts), 1e-5 * sum(float(part.abs().sum()) for part in parts)


@proves(needs=("severed_gradient",))
def backward_twice(subject: Subject) -> Iterator[Finding]:
    """Prove that two training steps in a row work, and that backward gives the same gradients twice.

    Does not apply where no output requires a gradient. Decided by forward, backward twice over the one graph,
    forward, backward, with nothing restored in between: a state that is kept with its graph raises in the end.
    """
    inputs, leaves = with_leaves(subject, subject.inputs())
    output = subject.call(inputs, training=True)
    parameters = flow_of(subject).parameters.values()
    wanted = [*parameters, *leaves.values()]
    if not differentiable(output) or not wanted:
        raise NotApplicable("no output leads to anything that gets a gradient")
    first = pull_back(output, wanted, retain=True)
    if differences(first, pull_back(output, wanted)):
        yield Finding(
            "the gradients of one graph differ when backward runs over it a second time",
            "compute backward from saved tensors only, and change nothing there",
        )
    inputs, leaves = with_leaves(subject, subject.inputs())
    try:
        pull_back(subject.call(inputs, training=True, carry=True), [*parameters, *leaves.values()])
    except RuntimeError as error:
        yield Finding(
            f"a second training step raises in backward: {in_a_line(error).partition('. ')[0]}",
            "detach what is kept from one call to the next, as in `self.state = state.detach()`",
            where=source_of(error),
        )
