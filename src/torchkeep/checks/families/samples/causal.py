"""A position of a sequence does not depend on later ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchkeep.checks.attempting import attempt, rounded_outputs
from torchkeep.checks.comparing import close
from torchkeep.checks.probing import perturbed
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Inputs, Subject


@proves(needs=("eval_determinism", "inputs_unchanged"))
def causality(subject: Subject) -> Iterator[Finding]:
    """Prove that in eval mode the output at a position depends on no later position of the inputs.

    Applies where ``declare.causal_dim`` names the dimension of positions. The inputs and outputs that have as many
    positions there as the first input count; the others are left alone. Decided by changing the inputs from some
    position on (the second, the middle, the last): the output before it may differ by rounding only.
    """
    dim = subject.declare.causal_dim
    if dim is None:
        raise NotApplicable("it is not declared causal: declare.causal_dim is None")
    lengths = [_length(tensor, dim) for tensor in subject.input_tensors.values()]
    length = next((length for length in lengths if length), 0)
    if length < 2:  # noqa: PLR2004 - one position has no later one
        raise NotApplicable(f"no input has two or more positions along dimension {dim}, which is declared causal")
    before = {
        path: tensor
        for path, tensor in rounded_outputs(subject, subject.call(training=False, grad=False)).items()
        if _length(tensor, dim) == length
    }
    if not before:
        yield Finding(
            f"no output has the {length} positions of the inputs along dimension {dim}, which is declared causal",
            "declare the dimension of positions as causal_dim, or None",
        )
        return
    leaking: set[str] = set()
    for start in sorted({1, length // 2, length - 1}):
        found = attempt(subject, _changed(subject, dim, length, start))
        now = rounded_outputs(subject, found.output)
        for path, tensor in before.items():
            if path in leaking or path not in now or now[path].shape != tensor.shape:
                continue
            if not _alike(tensor.narrow(dim, 0, start), now[path].narrow(dim, 0, start)):
                leaking.add(path)
                yield Finding(
                    f"positions before {start} change when only the inputs from {start} on are changed",
                    "mask later positions (is_causal=True), and pad convolutions on the left only",
                    tensor=path,
                )


def _length(tensor: torch.Tensor, dim: int) -> int | None:
    return tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim and tensor.layout == torch.strided else None


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    return close(first, second) if first.is_floating_point() or first.is_complex() else same_bits(first, second)


def _changed(subject: Subject, dim: int, length: int, start: int) -> Inputs:
    """Return inputs that are others from position ``start`` on."""

    def changed(_: str, tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach().clone()
        if _length(own, dim) == length:
            later = own.narrow(dim, start, length - start)
            # Whole numbers may be indices, so that only values that are there already are surely allowed.
            later.copy_(perturbed(later, start) if own.is_floating_point() else _swapped(own, dim, start, length))
        return own

    return subject.inputs(changed)


def _swapped(tensor: torch.Tensor, dim: int, start: int, length: int) -> torch.Tensor:
    """Return values for the later positions: those of the first ones, again and again."""
    rolled = tensor.roll(start, dim).narrow(dim, start, length - start)
    return rolled.clone()
