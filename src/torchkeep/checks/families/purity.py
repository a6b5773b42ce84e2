"""Purity: a forward pass changes nothing but what it says it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.checks.nested import tensors
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject


@proves()
def inputs_unchanged(subject: Subject) -> Iterator[Finding]:
    """Prove that forward leaves its inputs' values alone, in training and in eval mode.

    Does not apply without input tensors. Decided by comparing each input, positional or keyword, however nested,
    with a copy made before the call.
    """
    if not subject.input_tensors:
        raise NotApplicable("the layer takes no tensors")
    for training in (False, True):
        args, kwargs = subject.inputs()
        subject.call((args, kwargs), training=training, grad=False)
        for path, tensor in (*tensors(args, "args"), *tensors(kwargs, "kwargs")):
            if not same_bits(tensor, subject.input_tensors[path]):
                yield Finding(
                    f"forward changed its input in place ({'training' if training else 'eval'} mode)",
                    "work on a copy: `x = x.clone()`, or use the operation without the trailing underscore",
                    tensor=path,
                )
