"""The layer runs in the dtype that it is converted to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from torchkeep.checks.attempting import (
    Attempt,
    agree,
    attempt,
    converted,
    not_numbers,
    require_no_draws,
    require_python,
    rounded_outputs,
)
from torchkeep.checks.comparing import outputs
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.spotting import DtypeSpotter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject

_UNMOVED = ("unregistered_tensor", "hidden_module", "stale_alias")
"""Checks of what a conversion can't reach: where one failed, the layer can't run in another dtype."""
_MISMATCH = re.compile(r"dtype|scalar type|\b(Double|Float|double|float)\b")
_NO_KERNEL = re.compile(r"Expected .* to be .* or .*,? (but )?got")
"""How torch says that an operation has no kernel for a dtype, as opposed to being given two."""


@proves(needs=("eval_determinism", "hard_coded_device", *_UNMOVED))
def hard_coded_dtype(subject: Subject) -> Iterator[Finding]:
    """Prove that a layer converted to another dtype computes in that one.

    Does not apply to TorchScript, where neither the layer nor its inputs hold floating-point numbers, or where it
    does not run in float64 for another reason. Decided by running the layer, converted to float64, on float64
    inputs: an output of another floating-point dtype, or an error about mixed dtypes after an operation brought
    another one in, fails. The same is done in bfloat16, where a tensor made in float32 raises nothing but widens
    the output: a warning, since some layers widen on purpose.
    """
    _require_floats(subject)
    plain = attempt(subject)
    for dtype, severe in ((torch.float64, True), (torch.bfloat16, False)):
        spotter = DtypeSpotter(dtype)
        found = _run_in(subject, dtype, spotter)
        said = str(found.error or "")
        mismatch = bool(_MISMATCH.search(said)) and not _NO_KERNEL.search(said)
        if mismatch and spotter.spotted and severe:
            yield Finding(
                f"with everything in {_name(dtype)} it raises {found.raised}",
                "make tensors in the dtype of the inputs or weights: x.new_zeros(...), dtype=x.dtype, .to(x)",
                where=spotter.where or found.where,
            )
        others = _foreign(plain, found, dtype)
        if others:
            yield Finding(
                f"it has another dtype, although everything that goes in is {_name(dtype)}",
                "make tensors in the dtype of the inputs or weights: x.new_zeros(...), dtype=x.dtype, .to(x)",
                tensor=", ".join(others),
                where=spotter.where,
                severe=severe,
            )
        if mismatch or others:
            return


def _foreign(plain: Attempt, found: Attempt, dtype: torch.dtype) -> list[str]:
    """Return the outputs that followed the inputs' dtype as given, but don't follow ``dtype``."""
    before, after = outputs(plain.output), outputs(found.output)
    return [
        path
        for path, tensor in after.items()
        if path in before
        and before[path].is_floating_point()
        and tensor.is_floating_point()
        and tensor.dtype != dtype
    ]


@proves(needs=("hard_coded_dtype",))
def float64(subject: Subject) -> Iterator[Finding]:
    """Prove that the layer runs in float64 and gives the same values as in its own dtype.

    Does not apply to TorchScript, where neither the layer nor its inputs hold floating-point numbers, or where the
    layer runs, but draws random numbers in eval mode. Decided by converting both; the outputs must agree to half
    the digits of the narrower dtype. A warning, unless ``declare.dtypes`` lists float64.
    """
    _require_floats(subject)
    plain, found = attempt(subject), _run_in(subject, torch.float64)
    trouble = list(_trouble(subject, torch.float64, plain, found))
    yield from trouble
    if trouble:
        return
    require_no_draws(subject)
    before, after = rounded_outputs(subject, plain.output), outputs(found.output)
    for path in before.keys() & after.keys():
        if not agree(before[path], after[path]):
            yield Finding(
                "it differs from the output in the layer's own dtype by more than rounding explains",
                "convert to no fixed dtype inside; compare the two runs step by step",
                tensor=path,
                severe=_declared(subject, torch.float64),
            )


@proves(needs=("hard_coded_dtype",))
def bfloat16(subject: Subject) -> Iterator[Finding]:
    """Prove that the layer runs in bfloat16, without NaNs where there were none.

    Does not apply to TorchScript, or where neither the layer nor its inputs hold floating-point numbers. Decided
    by converting both. A warning, unless ``declare.dtypes`` lists bfloat16.
    """
    _require_floats(subject)
    yield from _trouble(subject, torch.bfloat16, attempt(subject), _run_in(subject, torch.bfloat16))


@proves(needs=("hard_coded_dtype",))
def declared_dtypes(subject: Subject) -> Iterator[Finding]:
    """Prove that the layer runs in the other dtypes that it is declared to run in, such as float16.

    Applies where ``declare.dtypes`` lists more than float64 and bfloat16, which have checks of their own. Decided
    as for those.
    """
    others = [dtype for dtype in subject.declare.dtypes or () if dtype not in (torch.float64, torch.bfloat16)]
    if not others:
        raise NotApplicable("no dtypes but float64 and bfloat16 are declared")
    _require_floats(subject)
    for dtype in others:
        yield from _trouble(subject, dtype, attempt(subject), _run_in(subject, dtype))


def _require_floats(subject: Subject) -> None:
    require_python(subject)
    held = [*subject.layer.parameters(), *subject.layer.buffers()]
    if any(tensor.is_complex() for tensor in held):
        raise NotApplicable("the layer holds complex numbers, which a conversion to a real dtype would spoil")
    if not any(tensor.is_floating_point() for tensor in (*held, *subject.input_tensors.values())):
        raise NotApplicable("neither the layer nor its inputs hold floating-point numbers")


def _run_in(subject: Subject, dtype: torch.dtype, mode: DtypeSpotter | None = None) -> Attempt:
    """Convert the layer and its inputs, and call it."""
    subject.snapshot.restore()
    try:
        subject.layer.to(dtype)
    except Exception as error:  # noqa: BLE001 - a layer may refuse; the check decides what that means
        return Attempt(error=error)
    found = attempt(subject, converted(subject, dtype), carry=True, mode=mode)
    subject.snapshot.restore()
    return found


def _trouble(subject: Subject, dtype: torch.dtype, plain: Attempt, found: Attempt) -> Iterator[Finding]:
    """Yield what is wrong with a run in another dtype: an error, or new NaNs."""
    severe = _declared(subject, dtype)
    if found.error is not None:
        yield Finding(
            f"it does not run in {_name(dtype)}: {found.raised}",
            f"use operations that know {_name(dtype)}, or convert around those that don't"
            + ("" if severe else "; declare dtypes=[...] to say what it must run in"),
            where=found.where,
            severe=severe,
        )
    for path in sorted(not_numbers(found.output) - not_numbers(plain.output)):
        yield Finding(
            f"it holds NaN in {_name(dtype)}, but not in the layer's own dtype",
            "use a smaller constant than the dtype's largest value (torch.finfo), and a larger epsilon",
            tensor=path,
            severe=severe,
        )


def _declared(subject: Subject, dtype: torch.dtype) -> bool:
    return dtype in (subject.declare.dtypes or ())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
