"""Samples of a batch are independent, and a batch may have any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.attempting import attempt, require_no_draws, rounded_outputs
from torchkeep.checks.comparing import close, outputs
from torchkeep.checks.probing import perturbed
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Inputs, Subject

_DECLARE = (
    "if dimension 0 is no batch, declare batch_dim=None or the one that is; if it is, and mixing is meant, None"
)


@proves(needs=("eval_determinism", "inputs_unchanged"))
def batch_mixing(subject: Subject) -> Iterator[Finding]:
    """Prove that in eval mode each sample's output depends on that sample alone.

    Does not apply with ``batch_dim=None``, or where the inputs and outputs don't share a size larger than one
    along that dimension. Decided by replacing the first, then the last sample of every input by its neighbour: the
    output of the others may differ by rounding only. With ``batch_dim="auto"`` it is a warning, since dimension 0
    may be something else; with a number it is a failure.
    """
    dim, size, output = _batch(subject)
    for path, other, sample in _mixed(subject, dim, size, output):
        yield Finding(
            f"sample {other} of the output changes when only sample {sample} of the inputs is replaced",
            f"compute along other dimensions than {dim} in eval mode"
            + ("" if _declared(subject) else f"; {_DECLARE}"),
            tensor=path,
            severe=_declared(subject),
        )


@proves(needs=("batch_mixing",))
def batch_of_one(subject: Subject) -> Iterator[Finding]:
    """Prove that a sample alone gives the output that it gives within a batch, in eval mode.

    Does not apply where ``batch_mixing`` does not apply or has found samples mixed, or where the layer draws
    random numbers in eval mode. Decided by running the first sample alone: an error, a lost dimension
    (``squeeze``) or other values than rounding explains are a warning, with a declared ``batch_dim`` a failure.
    """
    dim, size, output = _batch(subject)
    if _mixed(subject, dim, size, output):
        raise NotApplicable("samples are mixed, so that one alone gives something else")
    require_no_draws(subject)
    found = attempt(subject, _narrowed(subject, dim, 1))
    fix = "squeeze and view by named dimensions only, never by whatever has size one"
    if found.error is not None:
        yield Finding(
            f"it raises on a batch of one: {found.raised}", fix, where=found.where, severe=_declared(subject)
        )
        return
    alone = rounded_outputs(subject, found.output)
    for path, tensor in output.items():
        expected = tensor.narrow(dim, 0, 1)
        if path not in alone or alone[path].shape != expected.shape:
            shape = tuple(alone[path].shape) if path in alone else "missing"
            message = f"for a batch of one it is {shape}, expected {tuple(expected.shape)}"
        elif not _alike(alone[path], expected):
            message = "for a batch of one it differs from what the same sample gives within a batch"
        else:
            continue
        yield Finding(message, fix, tensor=path, severe=_declared(subject))


@proves(needs=("batch_mixing",))
def empty_batch(subject: Subject) -> Iterator[Finding]:
    """Prove that a batch without samples gives an output without samples, in eval mode.

    Does not apply where the inputs and outputs don't share a size along the batch dimension, or where
    ``batch_mixing`` has found samples mixed. Decided by running on inputs of size zero along it. At most a
    warning: many layers are never given such a batch.
    """
    dim, size, output = _batch(subject)
    if _mixed(subject, dim, size, output):
        raise NotApplicable("samples are mixed, so that none of them are no batch")
    found = attempt(subject, _narrowed(subject, dim, 0))
    fix = "give reshape the sizes instead of -1, and reduce only over dimensions that are not empty"
    if found.error is not None:
        yield Finding(f"it raises on an empty batch: {found.raised}", fix, where=found.where, severe=False)
        return
    empty = outputs(found.output)
    for path, tensor in output.items():
        shape = tuple(tensor.narrow(dim, 0, 0).shape)
        if path not in empty or tuple(empty[path].shape) != shape:
            seen = tuple(empty[path].shape) if path in empty else "missing"
            yield Finding(f"for an empty batch it is {seen}, expected {shape}", fix, tensor=path, severe=False)


def _declared(subject: Subject) -> bool:
    return isinstance(subject.declare.batch_dim, int)


def _batch(subject: Subject) -> tuple[int, int, dict[str, torch.Tensor]]:
    """Return the batch dimension, its size, and the output of an eval call by path.

    Raises:
        NotApplicable: there is none, or it is smaller than two.
    """
    dim: Any = subject.declare.batch_dim
    if dim is None:
        raise NotApplicable("no dimension is a batch: declare.batch_dim is None")
    auto = dim == "auto"
    dim = 0 if auto else dim
    given = list(subject.input_tensors.values())
    found = attempt(subject)
    if found.error is not None:
        raise NotApplicable(f"it does not run in eval mode: {found.raised}")
    output = rounded_outputs(subject, found.output)
    sizes = {
        tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim and tensor.layout == torch.strided else None
        for tensor in (*given, *output.values())
    }
    if not given or not output or len(sizes) != 1 or None in sizes:
        why = "so none is taken for the batch" if auto else "which is declared to be the batch"
        raise NotApplicable(f"the inputs and outputs don't share one size along dimension {dim}, {why}")
    size = sizes.pop()
    assert size is not None
    if size < 2:  # noqa: PLR2004 - one sample has none to be mixed with
        raise NotApplicable("the batch has fewer than two samples: give inputs with two or more")
    return dim, size, output


def _mixed(subject: Subject, dim: int, size: int, output: dict[str, torch.Tensor]) -> list[tuple[str, int, int]]:
    """Return (path, sample that changed, sample that was replaced) for outputs in which samples are mixed."""
    if "mixed samples" not in subject.memo:
        found: dict[str, tuple[str, int, int]] = {}
        for sample in (0, size - 1):
            now = rounded_outputs(subject, attempt(subject, _replaced(subject, dim, sample)).output)
            start = 1 if sample == 0 else 0
            for path, before in output.items():
                if path in now and now[path].shape == before.shape:
                    rest = before.narrow(dim, start, size - 1)
                    first = _first_apart(rest, now[path].narrow(dim, start, size - 1), dim)
                    if first is not None:
                        found.setdefault(path, (path, start + first, sample))
        subject.memo["mixed samples"] = list(found.values())
    mixed: list[tuple[str, int, int]] = subject.memo["mixed samples"]
    return mixed


def _first_apart(before: torch.Tensor, now: torch.Tensor, dim: int) -> int | None:
    """Return the first index along ``dim`` at which two tensors differ by more than rounding."""
    if _alike(before, now):
        return None
    indices = (
        index
        for index in range(before.shape[dim])
        if not _alike(before.select(dim, index), now.select(dim, index))
    )
    return next(indices, 0)


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.is_floating_point() or first.is_complex():
        return close(first, second)
    return same_bits(first, second)


def _replaced(subject: Subject, dim: int, sample: int) -> Inputs:
    """Return inputs in which one sample is its neighbour, so that its values are surely allowed."""

    def replaced(_: str, tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach().clone()
        own.select(dim, sample).copy_(tensor.detach().select(dim, 1 if sample == 0 else sample - 1))
        if same_bits(own, tensor.detach()) and own.is_floating_point():
            own.select(dim, sample).copy_(perturbed(own.select(dim, sample), sample))
        return own

    return subject.inputs(replaced)


def _narrowed(subject: Subject, dim: int, size: int) -> Inputs:
    """Return inputs with only the first ``size`` samples."""
    return subject.inputs(lambda _, tensor: tensor.detach().narrow(dim, 0, size).clone())
