"""Carry a decision out: draw what can fail first, then write, so that a failure leaves the model as it was."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchkeep.errors import RuleError
from torchkeep.init.computed import through_right_inverse
from torchkeep.init.defaults import run_default
from torchkeep.init.drawing import Job, draw, one_torch_thread, seed_secret
from torchkeep.init.fixed import Constant, Keep
from torchkeep.init.initializers import Elementwise
from torchkeep.init.parts import Index, draw_part, is_distributed, local_index
from torchkeep.init.wholes import Order, TorchDefault, Whole
from torchkeep.names import parent
from torchkeep.tying.materializing import plan_materializing

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from torchkeep.init.distributions import Distribution
    from torchkeep.init.planning import Decision, Item


def carry_out(decision: Decision, device: torch.device | str | int | None) -> None:
    """Fill the model's tensors; see `InitPlan.apply`."""
    found = decision.found
    if not any(tensor.is_meta for tensor in found.tensors):
        _check_device(decision, device)
        prepared = prepare(decision)
        with _noted("some tensors may have been filled already; apply the plan again"):
            _write(decision, prepared, found.tensors)
            _set_buffers(prepared)
        return
    prepared = prepare(decision)
    new = plan_materializing(found.net, _target(decision) if device is None else device)
    rooms = new.new
    tensors = [rooms.get(row.name, tensor) for row, tensor in zip(found.listing.rows, found.tensors, strict=True)]
    _write(decision, prepared, tensors)
    new.hang()
    _set_buffers(prepared, new.device)


@dataclass(frozen=True)
class Prepared:
    """Values that are only to be copied.

    Attributes:
        tensors: CPU tensors by position in the survey.
        buffers: module, key, CPU tensor and device of buffers that parametrizations keep for themselves.
    """

    tensors: dict[int, Tensor] = field(default_factory=dict)
    buffers: list[tuple[nn.Module, str, Tensor, torch.device]] = field(default_factory=list)


def prepare(decision: Decision) -> Prepared:
    """Make all values that other people's code has a part in: whole draws, defaults, computed weights.

    The model is not touched.
    """
    found = decision.found
    prepared = Prepared()
    with one_torch_thread():
        defaults = _run_defaults(decision)
        for item in decision.items:
            if isinstance(item.initializer, Keep):
                continue
            if item.computed is not None:
                value = whole_value(decision, item, defaults).to(item.dtype)
                rows = [found.listing.rows[position] for position in item.computed.originals]
                with _noted(f"while {item.row.name!r} was set by the rule {item.rule!r}; nothing was changed"):
                    made = through_right_inverse(item.computed, value, rows)
                for position, tensor in zip(item.computed.originals, made.originals, strict=True):
                    if position not in item.raw:
                        prepared.tensors[position] = tensor
                beside = found.tensors[item.computed.originals[0]].device
                prepared.buffers.extend((*buffer, beside) for buffer in made.buffers)
            elif isinstance(item.initializer, Whole | TorchDefault):
                assert item.position is not None
                prepared.tensors[item.position] = whole_value(decision, item, defaults)
    return prepared


def whole_value(decision: Decision, item: Item, defaults: Mapping[str, Tensor] | None = None) -> Tensor:
    """Make all values of one item, on the CPU; in a dtype from which they are still to be rounded, perhaps.

    Args:
        decision: which the item is of.
        item: not one that is kept.
        defaults: what `torch_default` gives, by the items' names, where it was run already.
    """
    initializer = item.initializer
    if isinstance(initializer, Constant):
        return torch.full(item.shape, initializer.value, dtype=item.dtype, device="cpu")
    if isinstance(initializer, Elementwise):
        distribution = initializer.for_dtype(item.shape, item.dtype)
        key = seed_secret(decision.seed)
        return draw_part(distribution, key, item.row.name, item.shape, dtype=item.dtype)
    if isinstance(initializer, Whole):
        order = Order(decision.seed, item.row.name, item.shape, item.dtype)
        with _noted(f"while {item.row.name!r} was drawn by the rule {item.rule!r}; nothing was changed"):
            return initializer.make(order)
    if defaults is None:
        defaults = _run_defaults(decision, only=item)
    return defaults[item.row.name]


def _run_defaults(decision: Decision, only: Item | None = None) -> dict[str, Tensor]:
    """Run the modules' own reset methods, once for each module, and return the values by the items' names."""
    groups: dict[tuple[int, str], list[Item]] = {}
    for item in decision.items:
        if isinstance(item.initializer, TorchDefault):
            groups.setdefault((id(item.module), parent(item.row.name)), []).append(item)
    values: dict[str, Tensor] = {}
    others = _tensors(decision) if groups else {}
    for (_, path), items in groups.items():
        if only is not None and only not in items:
            continue
        keys = {_key(decision, item): item.row.name for item in items}
        weights = [weight for weight in decision.computed if weight.module is items[0].module]
        made = run_default(items[0].module, path, keys, seed=decision.seed, others=others, weights=weights)
        values |= {keys[key]: value for key, value in made.items()}
    return values


def _tensors(decision: Decision) -> dict[int, Tensor]:
    """Return by ``id`` what a copy of a module does without: all registered tensors, and results of a forward."""
    registered = [place.tensor for places in decision.found.places for place in places]
    resets = {
        id(item.module): item.module for item in decision.items if isinstance(item.initializer, TorchDefault)
    }
    values = (value for module in resets.values() for value in vars(module).values())
    results = [value for value in values if isinstance(value, torch.Tensor) and value.grad_fn is not None]
    return {id(tensor): tensor for tensor in (*registered, *results)}


def _key(decision: Decision, item: Item) -> str:
    """Return the attribute of the owning module that an item is."""
    if item.computed is not None:
        return item.computed.key
    assert item.position is not None
    return decision.found.places[item.position][0].key


def _write(decision: Decision, prepared: Prepared, tensors: Sequence[Tensor]) -> None:
    """Fill the tensors: what was prepared is copied, the rest drawn in place where that can be.

    Args:
        decision: what fills what.
        prepared: from `prepare`.
        tensors: what to fill, by position in the survey.
    """
    for position, values in prepared.tensors.items():
        _copy_whole(tensors[position], values)
    elsewhere: list[tuple[Item, Tensor]] = []
    draw(_jobs(decision, prepared.tensors, tensors, elsewhere))
    for item, tensor in elsewhere:
        _draw_elsewhere(item, tensor, seed_secret(decision.seed))


def _set_buffers(prepared: Prepared, device: torch.device | None = None) -> None:
    """Hand parametrizations the buffers that they set for themselves, on ``device`` or beside the weight."""
    for module, key, values, beside in prepared.buffers:
        old = module._buffers.get(key)  # noqa: SLF001 - it may be None so far
        if old is not None and old.shape == values.shape:
            old.copy_(values)
        else:
            module._buffers[key] = values.to(device or beside)  # noqa: SLF001 - as above


def _jobs(
    decision: Decision,
    prepared: Mapping[int, Tensor],
    tensors: Sequence[Tensor],
    elsewhere: list[tuple[Item, Tensor]],
) -> Iterator[Job]:
    """Yield what can be drawn in place, fill constants on the way, and leave the rest in ``elsewhere``.

    One at a time: 20,000 small tensors are drawn and forgotten before Python's garbage collector looks at them.
    """
    key = seed_secret(decision.seed)
    known: dict[tuple[Hashable, ...], Distribution] = {}
    for item in decision.items:
        position, initializer = item.position, item.initializer
        if position is None or position in prepared or isinstance(initializer, Keep):
            continue
        tensor = tensors[position].detach()
        if isinstance(initializer, Constant):
            tensor.fill_(initializer.value)
        elif (room := _flat_room(tensor)) is None:
            elsewhere.append((item, tensors[position]))
        else:
            assert isinstance(initializer, Elementwise)
            shape, dtype = item.shape, item.dtype
            distribution = known.get((id(initializer), shape, dtype))
            if distribution is None:
                distribution = known[id(initializer), shape, dtype] = initializer.for_dtype(shape, dtype)
            yield Job(distribution, key, item.row.name, shape, room, 0, room.numel())


def _flat_room(tensor: Tensor) -> Tensor | None:
    """Return the tensor's reals in one dimension if they can be drawn where they are."""
    if not tensor.is_cpu or not tensor.is_contiguous() or _is_wrapper(tensor):
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.dim() == 1 else tensor.view(-1)


def _draw_elsewhere(item: Item, tensor: Tensor, key: bytes) -> None:
    """Draw on the host, and copy: for other devices, strides, and distributed tensors."""
    assert isinstance(item.initializer, Elementwise)
    distribution = item.initializer.for_dtype(item.shape, item.dtype)
    held, index = _held(tensor)
    held.copy_(draw_part(distribution, key, item.row.name, item.shape, dtype=item.dtype, index=index))


def _copy_whole(tensor: Tensor, values: Tensor) -> None:
    held, index = _held(tensor)
    held.copy_(values[index])


def _held(tensor: Tensor) -> tuple[Tensor, Index]:
    """Return what this process holds of a tensor, apart from autograd, and which part that is."""
    if not is_distributed(tensor):
        return tensor.detach(), ...
    distributed: Any = tensor
    index = local_index(distributed)
    assert index is not None
    with torch.no_grad():
        return distributed.to_local(), index


def _is_wrapper(tensor: Tensor) -> bool:
    given: object = tensor
    return type(tensor) is not torch.Tensor and is_traceable_wrapper_subclass(given)


def _check_device(decision: Decision, device: torch.device | str | int | None) -> None:
    """Refuse to move what is no longer on the meta device."""
    if device is None:
        return
    wanted = torch.empty(0, device=device).device
    others = sorted({str(tensor.device) for tensor in decision.found.tensors if tensor.device != wanted})
    if others:
        raise RuleError(
            f"device={str(wanted)!r} is where a model on the meta device is brought, but this one is on "
            f"{', '.join(others)} already; leave device away, or move the model with net.to({str(wanted)!r})"
        )


def _target(decision: Decision) -> torch.device:
    """Choose where a model on the meta device goes: where the rest of it is, else torch's default device."""
    real = {tensor.device for tensor in decision.found.tensors if not tensor.is_meta}
    if len(real) == 1:
        return real.pop()
    default = torch.get_default_device()
    return default if default.type != "meta" else torch.device("cpu")


@contextmanager
def _noted(note: str) -> Iterator[None]:
    """Add a note to whatever is raised inside."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"torchkeep: {note}")
        raise
