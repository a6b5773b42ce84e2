"""The output does not depend on how the inputs lie in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchkeep.checks.attempting import agree, attempt, require_no_draws, reversed_layout, rounded_outputs
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Inputs, Subject


@proves(needs=("eval_determinism", "inputs_unchanged"))
def transposed_inputs(subject: Subject) -> Iterator[Finding]:
    """Prove that inputs that are transposed views give the same output as contiguous ones.

    Does not apply where no input has two dimensions larger than one, or where the layer draws random numbers in
    eval mode. Decided by laying out every input in the opposite order of dimensions, with the same values; the
    outputs must agree to half their digits.
    """
    plain = subject.inputs(lambda _, tensor: _copied(tensor))
    other = subject.inputs(lambda _, tensor: reversed_layout(tensor))
    if not any(_is_reordered(tensor) for tensor in subject.input_tensors.values()):
        raise NotApplicable("no input has two dimensions larger than one, so there is only one layout")
    yield from _compared(subject, plain, other, "transposed (not contiguous)")


@proves(needs=("transposed_inputs", "inputs_unchanged"))
def expanded_inputs(subject: Subject) -> Iterator[Finding]:
    """Prove that inputs made by ``expand``, whose samples share memory, give the same output as copies do.

    Does not apply where no input has a first dimension larger than one, or where the layer does not run on equal
    samples or draws random numbers in eval mode. Decided by expanding the first sample of every input along
    dimension 0; the outputs must agree to half their digits.
    """
    if not any(tensor.ndim and tensor.shape[0] > 1 for tensor in subject.input_tensors.values()):
        raise NotApplicable("no input has a first dimension larger than one")
    plain = subject.inputs(lambda _, tensor: _copied(_expanded(tensor)))
    other = subject.inputs(lambda _, tensor: _expanded(tensor))
    yield from _compared(subject, plain, other, "expanded (stride 0)")


def _compared(subject: Subject, plain: Inputs, other: Inputs, how: str) -> Iterator[Finding]:
    """Yield what differs between an output for contiguous inputs and for the same values in another layout."""
    require_no_draws(subject)
    reference = attempt(subject, plain)
    if reference.error is not None:
        raise NotApplicable(f"the layer does not run on contiguous inputs of these values: {reference.raised}")
    found = attempt(subject, other)
    if found.error is not None:
        yield Finding(
            f"it raises on {how} inputs: {found.raised}",
            "use reshape instead of view, and no in-place operation on an input",
            where=found.where,
        )
        return
    results = (attempt(subject).output, reference.output, found.output)
    usual, before, after = (rounded_outputs(subject, output) for output in results)
    for path, tensor in before.items():
        if path in after and agree(tensor, after[path], usual.get(path)):
            continue
        yield Finding(
            f"it differs when the inputs are {how}, although their values are the same",
            "read inputs by index, never by storage or stride; call .contiguous() where a kernel needs it",
            tensor=path,
        )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy; of a sparse tensor, a copy."""
    own = tensor.detach()
    return own.clone(memory_format=torch.contiguous_format) if own.layout == torch.strided else own.clone()


def _is_reordered(tensor: torch.Tensor) -> bool:
    several = sum(size > 1 for size in tensor.shape) > 1
    return several and tensor.numel() > 0 and tensor.layout == torch.strided


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    own = tensor.detach().clone()
    if own.ndim == 0 or own.shape[0] < 2 or own.layout != torch.strided:  # noqa: PLR2004 - one sample is its own expansion
        return own
    return own[:1].expand(own.shape)
