"""Carrying: a layer comes back from its state_dict, keeps its ties, and starts from values that somebody chose."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils import deterministic

from torchkeep.checks.comparing import differences, kept, outputs
from torchkeep.checks.reaching import assigned_at
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.subject import SEED, in_a_line
from torchkeep.tables.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from torchkeep.checks.subject import Subject


@proves(
    needs=(
        "eval_determinism",
        "hidden_module",
        "unregistered_tensor",
        "stale_alias",
        "nonpersistent_randomness",
        "uninitialised_memory",
    ),
    factory=True,
)
def fresh_state_dict(subject: Subject) -> Iterator[Finding]:
    """Prove that a state_dict holds all that two instances may differ in.

    Needs a factory. Decided by loading the state_dict, strictly, into an instance that was made from another
    random state: both must give the same output in eval mode.
    """
    subject.snapshot.restore()
    state = kept(subject.layer.state_dict())
    expected = kept(subject.call(training=False, grad=False))
    other = subject.fresh(SEED + 1)
    try:
        other.load_state_dict(state)
    except RuntimeError as error:
        yield Finding(
            f"another instance does not take this state_dict: {in_a_line(error)}",
            "make the same names and shapes each time, whatever the random state",
        )
        return
    found = differences(expected, subject.call(layer=other, training=False, grad=False))
    if found:
        yield Finding(
            "another instance computes otherwise after it has loaded this layer's state_dict, so something that "
            "differs is not in it",
            "keep all that is drawn or learned in parameters and buffers, or pass it to the constructor",
            tensor=", ".join(found),
        )


def _deepcopied(subject: Subject) -> nn.Module:
    return copy.deepcopy(subject.layer)


def _unpickled(subject: Subject) -> nn.Module:
    return pickle.loads(pickle.dumps(subject.layer))  # type: ignore[no-any-return]  # noqa: S301 - made just now


def _loaded(subject: Subject) -> nn.Module:
    other = subject.layer if subject.make is None else subject.fresh(SEED + 1)
    other.load_state_dict(kept(subject.layer.state_dict()))
    return other


def _converted(subject: Subject) -> nn.Module:
    # What .to() does, without another device.
    subject.layer._apply(torch.clone)  # type: ignore[no-untyped-call]  # noqa: SLF001 - torch gives it no hints
    return subject.layer


_ROUTES: dict[str, Callable[[Subject], nn.Module]] = {
    "copy.deepcopy": _deepcopied,
    "pickle": _unpickled,
    "load_state_dict": _loaded,
    "a conversion such as .to(device)": _converted,
}


@proves()
def ties_survive(subject: Subject) -> Iterator[Finding]:
    """Prove that tensors with several names are still one after the layer was copied, pickled, loaded or moved.

    Does not apply without ties. Decided by comparing the ties of the result with those before; a way that raises
    is left to the check of its name.
    """
    before = {(group.owner, *group.aliases): group.kind for group in subject.survey.ties}
    if not before:
        raise NotApplicable("no tensor has several names")
    lost: dict[tuple[str, ...], list[str]] = {}
    for title, route in _ROUTES.items():
        subject.snapshot.restore()
        try:
            after = survey(route(subject))
        except Exception:  # noqa: BLE001, S112 - deepcopy, pickle and fresh_state_dict tell of what raises
            continue
        groups = [{group.owner, *group.aliases} for group in after.ties]
        for names in before:
            if not any(group.issuperset(names) for group in groups):
                lost.setdefault(names, []).append(title)
    for names, titles in lost.items():
        yield Finding(
            f"these are one tensor, but not any more after {' and '.join(titles)}",
            "make them one nn.Parameter, for which tk.tie(net, owner, alias) is the shortest way",
            tensor=", ".join(names),
            where=assigned_at(subject, names[-1]),
        )


@contextmanager
def _filled_memory() -> Iterator[None]:
    """Let new memory hold NaN, or the largest whole number, instead of whatever lay there."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filling = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    # torch.use_deterministic_algorithms imports all of torch.compile to tell it, which takes seconds.
    torch._C._set_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003, SLF001 - it takes no keyword
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)  # noqa: SLF001 - see above
        deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


@proves()
def uninitialised_memory(subject: Subject) -> Iterator[Finding]:
    """Prove that nothing is left as ``torch.empty`` gave it, neither in a new layer nor in its output.

    Decided by making the layer, where a factory is given, and running it while torch fills new memory with NaN and
    with the largest whole number: either, where there is none otherwise, was read without having been written.
    """
    found = False
    if subject.make is not None:
        with _filled_memory():
            filled = survey(subject.fresh())
        given = subject.survey
        usual = {row.name: tensor for row, tensor in zip(given.listing.rows, given.tensors, strict=True)}
        for row, tensor in zip(filled.listing.rows, filled.tensors, strict=True):
            if _marks(tensor) > (_marks(usual[row.name]) if row.name in usual else 0):
                found = True
                yield Finding(
                    "its values are never set: they are whatever lay in memory",
                    "fill it in the constructor, such as with nn.init or torch.zeros",
                    tensor=row.name,
                    where=assigned_at(subject, row.name),
                )
    if found:
        return
    for training in (False, True):
        usual_output = outputs(subject.call(training=training, grad=False))
        with _filled_memory():
            output = outputs(subject.call(training=training, grad=False))
        for path, tensor in output.items():
            if path in usual_output and _marks(tensor) > _marks(usual_output[path]):
                yield Finding(
                    "forward returns memory that it never wrote",
                    "allocate with torch.zeros, or write every element of what torch.empty gave",
                    tensor=path,
                )
                return


def _marks(tensor: torch.Tensor) -> int:
    """Count what torch fills new memory with."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.dtype == torch.bool:
        return 0
    if tensor.is_floating_point() or tensor.is_complex():
        return int(tensor.isnan().sum())
    return int((tensor == torch.iinfo(tensor.dtype).max).sum())
