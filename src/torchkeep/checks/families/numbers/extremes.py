"""Extreme but finite inputs, and masks that mask everything, give no NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchkeep.checks.attempting import attempt, not_numbers
from torchkeep.checks.probing import pull_back, with_leaves
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.spotting import NanSpotter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torchkeep.checks.subject import Inputs, Subject

_LARGE = 1e3
"""More than exp and cosh bear in float32 and float64, and small enough for its sixth power."""


@proves(needs=("eval_determinism",))
def large_inputs(subject: Subject) -> Iterator[Finding]:
    """Prove that large finite inputs give no NaN where the inputs as given don't.

    Does not apply without floating-point inputs, where the layer refuses such inputs with an error of its own, or
    where its output for the inputs as given holds a NaN already. Decided in eval mode by scaling every
    floating-point input to a largest value of 1000. Infinities are allowed: they may be the right answer.
    """
    if not _real(subject):
        raise NotApplicable("the layer takes no floating-point inputs")

    def enlarged(_: str, tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach().clone()
        if not _is_real(own) or not own.numel():
            return own
        largest = own[own.isfinite()].abs().max().item() if bool(own.isfinite().any()) else 0.0
        return own * (_LARGE / largest) if 0 < largest < _LARGE else own

    fix = "compute it in a stable form: softmax, logsumexp, log1p, softplus, or subtract the maximum first"
    yield from _new_nans(subject, enlarged, f"inputs as large as {_LARGE:.0f}", fix)


@proves(needs=("eval_determinism",))
def zero_inputs(subject: Subject) -> Iterator[Finding]:
    """Prove that inputs of nothing but zeros, as padding makes them, give no NaN, forward or backward.

    Does not apply without floating-point inputs, where the layer refuses zeros with an error of its own, or where
    its output for the inputs as given holds a NaN already. Decided in eval mode with every floating-point input
    zero. A NaN in a gradient, as ``sqrt`` and ``norm`` have one at zero, is a warning.
    """
    if not _real(subject):
        raise NotApplicable("the layer takes no floating-point inputs")

    def zeroed(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor) if _is_real(tensor) else tensor.detach().clone()

    found = list(_new_nans(subject, zeroed, "inputs of zeros", "add a small epsilon to what is divided by"))
    yield from found
    if not found and not _gradient_nans(subject, subject.inputs()):
        for path in _gradient_nans(subject, subject.inputs(zeroed)):
            yield Finding(
                "its gradient is NaN for inputs of zeros",
                "add a small epsilon inside the root or norm, or mask with torch.where before it, not after",
                tensor=path,
                severe=False,
            )


@proves(needs=("eval_determinism",))
def fully_masked_inputs(subject: Subject) -> Iterator[Finding]:
    """Prove that a mask which masks everything gives no NaN.

    Applies where an input is boolean, or where its name holds "mask" and it is floating point (which is added to
    scores) or holds zeros and ones only. Decided in eval mode by making one mask after the other all True and all
    False, all minus infinity, or all one and all zero. Does not apply where the output for the inputs as given
    holds a NaN already.
    """
    masks = [path for path, tensor in subject.input_tensors.items() if _is_mask(path, tensor)]
    if not masks:
        raise NotApplicable("no input is a mask: none is boolean, and none of numbers is called so")
    fix = "write zeros, with torch.where, where a whole row is masked: softmax over nothing is NaN"
    refused: list[NotApplicable] = []
    tried = 0
    for mask in masks:
        for value in _extremes(subject.input_tensors[mask]):

            def filled(path: str, tensor: torch.Tensor, mask: str = mask, value: float = value) -> torch.Tensor:
                return torch.full_like(tensor, value) if path == mask else tensor.detach().clone()

            tried += 1
            try:
                yield from _new_nans(subject, filled, f"{mask} all {value}", fix)
            except NotApplicable as reason:
                refused.append(reason)
    if len(refused) == tried:
        raise refused[0]


def _real(subject: Subject) -> bool:
    return any(_is_real(tensor) for tensor in subject.input_tensors.values())


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided


def _is_mask(path: str, tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_complex():
        return False
    called = "mask" in path and (tensor.is_floating_point() or bool(((tensor == 0) | (tensor == 1)).all()))
    return tensor.dtype == torch.bool or called


def _extremes(mask: torch.Tensor) -> tuple[float, ...]:
    """Return the values that mask everything; which of two means that is for the layer to know."""
    if mask.dtype == torch.bool:
        return True, False
    return (-torch.inf,) if mask.is_floating_point() else (1, 0)


def _new_nans(
    subject: Subject, convert: Callable[[str, torch.Tensor], torch.Tensor], what: str, fix: str
) -> Iterator[Finding]:
    """Yield the outputs that hold a NaN for converted inputs, though not for the inputs as given."""
    if not_numbers(attempt(subject).output):
        raise NotApplicable("the output holds a NaN for the inputs as given")
    found = attempt(subject, subject.inputs(convert))
    if found.error is not None:
        raise NotApplicable(f"the layer refuses {what}: {found.raised}")
    paths = not_numbers(found.output)
    if paths:
        spotter = NanSpotter()
        attempt(subject, subject.inputs(convert), mode=spotter)
        for path in sorted(paths):
            yield Finding(f"it holds NaN for {what}", fix, tensor=path, where=spotter.where)


def _gradient_nans(subject: Subject, inputs: Inputs) -> list[str]:
    """Return the inputs and parameters whose gradient holds a NaN; empty where nothing can be differentiated."""
    handed, wanted = with_leaves(subject, inputs)
    found = attempt(subject, handed, grad=True)
    wanted.update((name, tensor) for name, tensor in subject.layer.named_parameters() if tensor.requires_grad)
    try:
        grads = pull_back(found.output, wanted.values())
    except RuntimeError:  # whatever is wrong with its backward is for the checks of gradients to say
        return []
    return [
        path
        for path, grad in zip(wanted, grads, strict=True)
        if grad is not None and grad.layout == torch.strided and bool(grad.isnan().any())
    ]
