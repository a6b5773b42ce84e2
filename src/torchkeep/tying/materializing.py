"""Bring a model from the meta device to a real one, without inventing values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from torchkeep.errors import MaterializeError
from torchkeep.names import join
from torchkeep.tables.survey import Place, Survey, survey
from torchkeep.tying.allocating import allocate
from torchkeep.tying.hanging import dressed_like, hang_all
from torchkeep.tying.scratching import Scratch, rebuild_buffers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn


def materialize(net: nn.Module, device: torch.device | str | int) -> nn.Module:
    """Give every tensor of ``net`` memory on ``device``, in place; all of them, or none.

    What comes from the meta device has no values. Parameters are NaN until somebody fills them (integers
    hold their smallest value, unsigned ones their largest, bool False). Buffers are rebuilt: the module's own
    ``reset_parameters``, ``reset_running_stats`` or ``reset_buffers`` runs twice on a copy of that module alone on
    the CPU, over different garbage and under a generator keyed by the module's name, and what is equal bit for
    bit after both is the buffer. What can't be rebuilt is an error, never garbage.

    Tensors that are real already keep their values and their gradients; they move where they are not on
    ``device``. Lazy parameters stay lazy, on ``device``. Ties of every kind, and other overlaps, are what they
    were; so are shapes, dtypes, strides, ``requires_grad``, and the class and attributes of a Parameter. Hooks
    on a Parameter go, and the Parameters that changed are new objects: an optimizer made before follows inside
    ``with tk.keeping_ties(net, optimizer)``.

    Args:
        net: the model; a part of it or all of it may be on the meta device.
        device: any but the meta device.

    Returns:
        ``net``.

    Raises:
        SourceError: ``net`` is no module, or contains itself.
        MaterializeError: buffers that can't be rebuilt, or tensors on the meta device that are neither
            parameter nor buffer; all are named. Nothing was changed.
    """
    plan_materializing(net, device).hang()
    return net


@dataclass(frozen=True)
class Materializing:
    """New tensors for a model, made but not yet hung.

    Attributes:
        device: where they are.
        changes: which tensor goes where; every place of a tie, and one object for each one there was.
    """

    device: torch.device
    changes: tuple[tuple[Place, Tensor], ...]

    @property
    def new(self) -> dict[str, Tensor]:
        """The new tensors by name, each name of a tie included. Fill them before they are hung, or after."""
        return {place.name: tensor for place, tensor in self.changes}

    def hang(self) -> None:
        """Put them into the model: all, or none when a module refuses one."""
        hang_all(self.changes)


def plan_materializing(net: nn.Module, device: torch.device | str | int) -> Materializing:
    """Do all of `materialize` but its last step: ``net`` is not changed.

    Args:
        net: as for `materialize`.
        device: as for `materialize`.

    Raises:
        MaterializeError: as for `materialize`.
    """
    target = torch.empty(0, device=device).device
    if target.type == "meta":
        raise MaterializeError("the meta device holds no values; name a real one, such as 'cpu' or 'cuda'")
    found = survey(net)
    everything = {id(place.tensor): place.tensor for places in found.places for place in places}
    values, problems = _rebuilt(found, everything.values())
    problems += _strays(found, everything)
    if problems:
        advice = (
            "construct these modules on the CPU (`with torch.device('cpu'):` around them), or give their "
            "classes a reset_buffers() method that fills what their constructor computes; nothing was changed"
        )
        raise MaterializeError("\n".join([*problems, advice]))
    old = [tensor for tensor in everything.values() if tensor.device != target]
    with torch.no_grad():
        new = _dressed(old, allocate(old, target), values)
    changes = [
        (place, new[id(place.tensor)]) for places in found.places for place in places if id(place.tensor) in new
    ]
    return Materializing(target, tuple(changes))


def _dressed(old: list[Tensor], made: dict[int, Tensor], values: dict[int, Tensor]) -> dict[int, Tensor]:
    """Fill in the rebuilt buffers, and make Parameters of what were Parameters."""
    new: dict[int, Tensor] = {}
    for tensor in old:
        room = made[id(tensor)]
        if id(tensor) in values:
            room.copy_(values[id(tensor)])
        new[id(tensor)] = dressed_like(tensor, room)
        if not tensor.is_meta and tensor.grad is not None:
            new[id(tensor)].grad = tensor.grad.to(room.device)
    return new


def _rebuilt(found: Survey, tensors: Iterable[Tensor]) -> tuple[dict[int, Tensor], list[str]]:
    """Return the values of every buffer on the meta device, by its ``id``, and what could not be rebuilt."""
    scratch = Scratch(tensors)
    runs: dict[int, tuple[dict[str, Tensor], str]] = {}
    values: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    for row, places in zip(found.listing.rows, found.places, strict=True):
        for place in places:
            tensor = place.tensor
            if place.kind != "buffer" or not tensor.is_meta or is_lazy(tensor) or tensor.numel() == 0:
                continue
            module = place.module
            if id(module) not in runs:
                runs[id(module)] = rebuild_buffers(scratch, module, place.name.rpartition(".")[0])
            buffers, reason = runs[id(module)]
            if place.key in buffers:
                values.setdefault(id(tensor), buffers[place.key])
            else:
                which = "" if row.persistent else ", which no state_dict holds,"
                reasons.setdefault(id(tensor), f"the buffer {place.name!r}{which} can't be rebuilt: {reason}")
    return values, [reason for key, reason in reasons.items() if key not in values]


def _strays(found: Survey, registered: dict[int, Tensor]) -> list[str]:
    """Name the tensors on the meta device that hang in modules as plain attributes: nothing can fill them."""
    strays: dict[int, str] = {}
    for path, module in found.modules.items():
        for name, value in vars(module).items():
            if name in {"_parameters", "_buffers", "_modules"}:
                continue
            for tensor in _tensors_in(value):
                if tensor.is_meta and id(tensor) not in registered:
                    strays.setdefault(
                        id(tensor),
                        f"{join(path, name)!r} holds a tensor on the meta device that is neither parameter nor "
                        "buffer: register it as a buffer",
                    )
    return list(strays.values())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (item for item in value.values() if isinstance(item, torch.Tensor))
    elif isinstance(value, list | tuple | set):
        yield from (item for item in value if isinstance(item, torch.Tensor))
