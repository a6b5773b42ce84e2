"""Forward leaves its inputs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.checks.nested import tensors
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import same_bits
from torchkeep.checks.tracing import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Inputs, Subject


@proves()
def inputs_unchanged(subject: Subject) -> Iterator[Finding]:
    """Prove that forward leaves its inputs' values alone, in training and in eval mode.

    Does not apply without input tensors. Decided by comparing each input, positional or keyword, however nested,
    with a copy made before the call, and by whether containers of inputs still hold the same tensors.
    """
    if not subject.input_tensors:
        raise NotApplicable("the layer takes no tensors")
    found: set[str] = set()
    for training in (False, True):
        given = subject.inputs()
        subject.call(given, training=training, grad=False)
        for path in _changed(subject, given):
            if path in found:
                continue
            found.add(path)
            yield Finding(
                f"forward changed its input ({'training' if training else 'eval'} mode)",
                "work on a copy (`x = x.clone()`) or without the trailing underscore, and return new lists",
                tensor=path,
                where=_line(subject, path, training=training),
            )


def _changed(subject: Subject, given: Inputs) -> list[str]:
    """Return the paths of the inputs whose values are no longer the caller's."""
    now = (*tensors(given[0], "args"), *tensors(given[1], "kwargs"))
    before = subject.input_tensors
    gone = before.keys() - dict(now).keys()
    return [*gone, *(path for path, tensor in now if path not in before or not same_bits(tensor, before[path]))]


def _line(subject: Subject, path: str, *, training: bool) -> str:
    given = subject.inputs()
    return first_line(
        lambda: subject.call(given, training=training, grad=False), lambda: path in _changed(subject, given)
    )
