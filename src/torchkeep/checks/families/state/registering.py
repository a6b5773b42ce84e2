"""Registering: what a layer computes with is where state_dict, ``.to`` and ``.eval`` look for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from torchkeep.checks.comparing import differences, kept
from torchkeep.checks.probing import effective, perturbed
from torchkeep.checks.reaching import assigned_at, reach
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import Snapshot
from torchkeep.tables.survey import survey
from torchkeep.tensors.identity import storage_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from torchkeep.checks.subject import Subject

_ENOUGH = 6
"""Tensors of a hidden module that are tried; its first ones matter if any does."""


def _registered_memory(layer: nn.Module) -> set[object]:
    return {storage_key(tensor) for tensor in (*layer.parameters(), *layer.buffers())}


def _unregistered(subject: Subject) -> dict[str, torch.Tensor]:
    """Return tensors that the code can reach and that share no memory with registered ones, by where they sit."""
    memory = _registered_memory(subject.layer)
    found = reach(subject).tensors.items()
    return {path: tensor for path, tensor in found if not is_lazy(tensor) and storage_key(tensor) not in memory}


@proves()
def hidden_module(subject: Subject) -> Iterator[Finding]:
    """Prove that every module that changes the output is registered.

    Decided by walking attributes, lists, dicts, plain objects, closures and globals that the code names. A module
    found there and nowhere among the registered ones is hidden if changing one of its tensors changes the output,
    or if its training mode does, which ``.eval()`` never reaches. What `tk.block` remembers is no such place.
    """
    for path, module in reach(subject).modules.items():
        held = {
            f"{path}.{name}": tensor
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if not is_lazy(tensor)
        }
        matters = effective(subject, dict(list(held.items())[:_ENOUGH]))
        modal = not matters and _mode_matters(subject, module)
        if matters or modal:
            yield Finding(
                f"the output depends on this {type(module).__name__}, which is not registered: "
                + (
                    "train() and eval() do not reach it"
                    if modal
                    else "state_dict, .to() and optimizers do not see it"
                ),
                "assign it to an attribute, or keep several in nn.ModuleList or nn.ModuleDict",
                tensor=path,
                where=assigned_at(subject, path),
            )


def _mode_matters(subject: Subject, module: nn.Module) -> bool:
    seen = []
    for training in (False, True):
        subject.snapshot.restore()
        module.train(training)
        seen.append(kept(subject.call(training=False, grad=False, carry=True)))
    return bool(differences(*seen, exact=True))


@proves(needs=("eval_determinism",))
def unregistered_tensor(subject: Subject) -> Iterator[Finding]:
    """Prove that every tensor that changes the output is a parameter or a buffer.

    Decided by walking attributes, lists, dicts, plain objects, closures, default arguments and globals that the
    code names. A tensor found there whose change changes the output is missing from state_dict, and stays behind
    when the layer moves to another device or dtype. A tensor inside a hidden module is told of by
    ``hidden_module``, one that shares memory with a registered one by ``stale_alias``.
    """
    found = _unregistered(subject)
    subject.memo["unregistered"] = {path: found[path] for path in effective(subject, found)}
    for path in subject.memo["unregistered"]:
        yield Finding(
            "the output depends on this tensor, but it is neither a parameter nor a buffer, so it is not saved "
            "and does not move with the layer",
            "register it: self.register_buffer(name, tensor), or nn.Parameter if it is learned; persistent=False "
            "if it can be computed again",
            tensor=path,
            where=assigned_at(subject, path),
        )


@proves(needs=("eval_determinism",))
def stale_alias(subject: Subject) -> Iterator[Finding]:
    """Prove that forward computes with the registered tensors themselves, not with references to what they were.

    Decided by converting the layer as ``.to(device)`` does, and by loading a state_dict with ``assign=True``: an
    unregistered reference that shared memory with a registered tensor, no longer does, and still changes the
    output, is stale.
    """
    subject.snapshot.restore()
    apart = _unregistered(subject)
    stale: dict[str, list[str]] = {}
    for title, convert in _CONVERSIONS.items():
        subject.snapshot.restore()
        try:
            convert(subject.layer)
        except Exception:  # noqa: BLE001, S112 - whether it can be converted at all is for other checks to tell
            continue
        for path, tensor in _unregistered(subject).items():
            if path not in apart and _matters_now(subject, tensor):
                stale.setdefault(path, []).append(title)
    for path, titles in stale.items():
        yield Finding(
            f"it refers to a registered tensor, but not any more after {' and '.join(titles)}, and the output "
            "still depends on what it was",
            "use the parameter or buffer itself in forward, or compute the view there",
            tensor=path,
            where=assigned_at(subject, path),
        )


def _convert(layer: nn.Module) -> None:
    # What .to() and .double() do, without another device or dtype.
    layer._apply(torch.clone)  # type: ignore[no-untyped-call]  # noqa: SLF001 - torch gives it no hints


def _assign(layer: nn.Module) -> None:
    state = {name: kept(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


_CONVERSIONS: dict[str, Callable[[nn.Module], None]] = {
    "a conversion such as .to(device)": _convert,
    "load_state_dict(assign=True)": _assign,
}


def _matters_now(subject: Subject, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor changes the output of the layer as it is now, in one of the modes."""
    now = Snapshot(subject.layer)
    copy = tensor.data.clone()
    for training in (False, True):
        before = kept(subject.call(training=training, grad=False, carry=True))
        now.restore()
        tensor.data.copy_(perturbed(tensor, 2))
        try:
            after = kept(subject.call(training=training, grad=False, carry=True))
        finally:
            tensor.data.copy_(copy)
            now.restore()
        if differences(before, after, exact=True):
            return True
    return False


@proves(needs=("eval_determinism",), factory=True)
def nonpersistent_randomness(subject: Subject) -> Iterator[Finding]:
    """Prove that buffers which state_dict leaves out are the same in each instance.

    Needs a factory, and does not apply without non-persistent buffers. Decided by making two instances from two
    seeds: a non-persistent buffer whose values differ and whose change changes the output can't be got back.
    """
    found = subject.survey
    buffers = {
        row.name: tensor
        for row, tensor in zip(found.listing.rows, found.tensors, strict=True)
        if row.kind == "buffer" and not row.persistent
    }
    if not buffers:
        raise NotApplicable("the layer has no non-persistent buffers")
    other = survey(subject.other)
    others = {row.name: tensor for row, tensor in zip(other.listing.rows, other.tensors, strict=True)}
    random = {
        name: tensor
        for name, tensor in buffers.items()
        if name in others and differences(tensor, others[name], exact=True)
    }
    for name in effective(subject, random):
        yield Finding(
            "this buffer is random and not saved, and the output depends on it: a loaded layer computes otherwise",
            "register it with persistent=True, or compute it from what is saved",
            tensor=name,
            where=assigned_at(subject, name),
        )
