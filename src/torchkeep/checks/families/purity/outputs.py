"""An output belongs to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.checks.comparing import outputs
from torchkeep.checks.nested import tensors
from torchkeep.checks.probing import call_with_others
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import Snapshot, same_bits
from torchkeep.checks.tracing import first_line
from torchkeep.tensors.identity import storage_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject


@proves(needs=("inputs_unchanged", "state_unchanged"))
def output_overwritten(subject: Subject) -> Iterator[Finding]:
    """Prove that an output stays as it is when the layer is called again, and is not kept with its graph.

    Does not apply where forward returns no tensors. Decided by calling again with other values without restoring
    anything, in both modes, and comparing the first output with a copy. A layer that holds on to an output that
    has a graph keeps the whole graph's memory until the next call: a warning.
    """
    first = subject.call(training=False)
    if not outputs(first):
        raise NotApplicable("forward returns no tensors")
    yield from _retained(subject, first)
    for training in (False, True):
        kept = outputs(subject.call(training=training, grad=False))
        copies = {path: tensor.clone() for path, tensor in kept.items()}
        call_with_others(subject, training=training)
        overwritten = [path for path, tensor in kept.items() if not same_bits(tensor, copies[path])]
        if overwritten:
            yield Finding(
                "the next call overwrites it, since the layer writes into memory that it returned",
                "return a new tensor, or a clone of the buffer that is reused",
                tensor=", ".join(overwritten),
                where=_line(subject, overwritten[0], training=training),
            )
            return


def _line(subject: Subject, path: str, *, training: bool) -> str:
    tensor = outputs(subject.call(training=training, grad=False))[path]
    before = tensor.clone()
    return first_line(lambda: call_with_others(subject, training=training), lambda: not same_bits(tensor, before))


def _retained(subject: Subject, output: object) -> Iterator[Finding]:
    """Yield the outputs with a graph that the layer still holds."""
    given = {id(tensor) for tensor in subject.snapshot.tensors}
    held = {
        storage_key(tensor)
        for tensor in Snapshot(subject.layer).tensors
        if tensor.grad_fn is not None and id(tensor) not in given
    }
    for path, tensor in tensors(output, "output"):
        if tensor.grad_fn is not None and storage_key(tensor) in held:
            yield Finding(
                "the layer keeps it, and its graph with all intermediate values, after forward returned",
                "keep it detached: self.last = output.detach()",
                tensor=path,
                severe=False,
            )
