"""Probe a layer: run it in both modes on several inputs, and see what a change of one tensor changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.comparing import differences, kept
from torchkeep.checks.nested import mapped, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torchkeep.checks.subject import Inputs, Subject


def noise(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Return standard normal values of the shape, dtype and device of a floating-point tensor."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(tensor.device, tensor.dtype)


_CHANGES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda tensor: tensor,
    lambda tensor: -tensor,
    lambda tensor: tensor + noise(tensor, 1),
    lambda tensor: tensor * 10,
)
"""Ways to change a floating-point input, for the sake of branches that depend on values."""


def is_real(tensor: torch.Tensor) -> bool:
    """Tell whether autograd can differentiate by a tensor: floating point or complex, and strided."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout == torch.strided


def probes(subject: Subject, *, count: int = len(_CHANGES)) -> Iterator[tuple[bool, Inputs]]:
    """Yield modes (True: training) and inputs to run the layer with; the inputs as given come first.

    Inputs that the layer does not run on, except those as given, are left out: others checks tell of that.

    Args:
        subject: the layer.
        count: how many kinds of inputs.
    """
    for position, change in enumerate(_CHANGES[:count]):

        def convert(_: str, tensor: torch.Tensor, change: Callable[..., torch.Tensor] = change) -> torch.Tensor:
            own = tensor.detach().clone()
            return change(own) if is_real(own) else own

        if position == 0 or _runs_on(subject, convert):
            for training in (False, True):
                yield training, subject.inputs(convert)


def _runs_on(subject: Subject, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> bool:
    """Tell whether the layer takes such values: a probability, say, has no negative."""
    try:
        subject.call(subject.inputs(convert), training=False, grad=False)
    except Exception:  # noqa: BLE001 - whatever it raises, these are not values to judge it by
        return False
    return True


def with_leaves(subject: Subject, inputs: Inputs) -> tuple[Inputs, dict[str, torch.Tensor]]:
    """Return inputs that lead to leaves, and those leaves by path (``args[0]``).

    What is handed over is computed from the leaves, since layers may work in place on what they are given. Inputs
    that the layer refuses when they require a gradient, as some losses refuse targets, are no leaves.
    """
    if "leaves" not in subject.memo:
        paths = [path for path, tensor in subject.input_tensors.items() if is_real(tensor)]
        every = _may_require_grad(subject, paths)
        subject.memo["leaves"] = paths if every else [path for path in paths if _may_require_grad(subject, [path])]
    return _requiring_grad(inputs, subject.memo["leaves"])


def _may_require_grad(subject: Subject, paths: list[str]) -> bool:
    try:
        subject.call(_requiring_grad(subject.inputs(), paths)[0])
    except Exception:  # noqa: BLE001 - as given the layer runs, so it is the gradient that it does not take
        return False
    return True


def _requiring_grad(inputs: Inputs, paths: list[str]) -> tuple[Inputs, dict[str, torch.Tensor]]:
    leaves: dict[str, torch.Tensor] = {}

    def convert(path: str, tensor: torch.Tensor) -> torch.Tensor:
        if path not in paths:
            return tensor
        leaves[path] = tensor.detach().clone().requires_grad_()
        return leaves[path].clone()

    args, kwargs = inputs
    return (mapped(args, convert, "args"), mapped(kwargs, convert, "kwargs")), leaves


def differentiable(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output that autograd can start from; no nested ones, whose sizes are no numbers."""
    return [tensor for _, tensor in tensors(output) if tensor.requires_grad and not tensor.is_nested]


def pull_back(output: Any, wanted: Iterable[torch.Tensor], *, retain: bool = False) -> list[torch.Tensor | None]:
    """Return the gradients of ``wanted`` under random cotangents of every differentiable output.

    Random ones, since the gradient of a plain sum vanishes for layers that normalise.
    """
    starts, ends = differentiable(output), list(wanted)
    if not starts or not ends:
        return [None for _ in ends]
    cotangents = [noise(start, seed) for seed, start in enumerate(starts, start=1)]
    try:
        return list(torch.autograd.grad(starts, ends, cotangents, allow_unused=True, retain_graph=retain))
    except RuntimeError as error:
        # Reentrant checkpointing works under backward() only.
        if "use_reentrant" not in str(error):
            raise
    return _accumulated(starts, ends, cotangents, retain=retain)


def _accumulated(
    starts: list[torch.Tensor], ends: list[torch.Tensor], cotangents: list[torch.Tensor], *, retain: bool
) -> list[torch.Tensor | None]:
    """Return gradients as ``backward()`` accumulates them; those that were there before stay."""
    before = [(end, end.grad) for end in ends]
    for end in ends:
        end.grad = None
        # An optimizer may hang there, and must not take a step. The layer's snapshot puts it back.
        end._post_accumulate_grad_hooks = None  # type: ignore[assignment]  # noqa: SLF001 - no public way, and no hint
    torch.autograd.backward(starts, cotangents, retain_graph=retain)
    found = [end.grad for end in ends]
    for end, grad in before:
        end.grad = grad
    return found


def perturbed(tensor: torch.Tensor, seed: int, size: float = 1.0) -> torch.Tensor:
    """Return other values of the same shape and dtype that are as likely to be valid as the given ones.

    Floating point: noise ``size`` times as large as the values. Booleans are negated; other values stand in
    reversed order, or, where that changes nothing, are one more than they were.
    """
    own = tensor.detach()
    if own.is_floating_point() or own.is_complex():
        scale = own.abs().double().mean().item() if own.numel() else 0.0
        return own + noise(own, seed) * (scale or 1.0) * size
    if own.dtype == torch.bool:
        return ~own
    reverse = own.flatten().flip(0).view(own.shape)
    return own + 1 if torch.equal(reverse, own) else reverse


def other_inputs(subject: Subject) -> Inputs:
    """Return inputs with other values, as likely to be valid, for what a call may leave to the next one."""

    def other(_: str, tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach().clone()
        return own * -2 + 1 if is_real(own) else perturbed(own, 1) if own.layout == torch.strided else own

    return subject.inputs(other)


def call_with_others(subject: Subject, *, training: bool) -> None:
    """Call the layer as it is by now with other inputs; where it refuses those, with the same."""
    try:
        subject.call(other_inputs(subject), training=training, grad=False, carry=True)
    except Exception:  # noqa: BLE001 - other values may be refused, which is no matter here
        subject.call(training=training, grad=False, carry=True)


def effective(
    subject: Subject, candidates: dict[str, torch.Tensor], *, size: float = 1.0, exact: bool = True
) -> list[str]:
    """Return the names of the tensors whose change changes an output in some probe.

    Each is changed by itself, in place, so that views and other references see it too. A layer that raises with
    other values depends on them.

    Args:
        subject: the layer.
        candidates: tensors by name; they need not be registered.
        size: of the change, relative to the values.
        exact: whether a change of a single bit counts; otherwise only what is more than rounding.
    """
    found: dict[str, None] = {}
    for training, inputs in probes(subject):
        waiting = {name: tensor for name, tensor in candidates.items() if name not in found and tensor.numel()}
        if not waiting:
            break
        before = kept(subject.call(kept(inputs), training=training, grad=False))
        if differences(before, subject.call(kept(inputs), training=training, grad=False), exact=True):
            continue  # it changes by itself, so a change shows nothing
        for name, tensor in waiting.items():
            if _changes(subject, tensor, (training, inputs), before, size=size, exact=exact):
                found[name] = None
    return [name for name in candidates if name in found]


def _changes(
    subject: Subject, tensor: torch.Tensor, probe: tuple[bool, Inputs], before: Any, *, size: float, exact: bool
) -> bool:
    subject.snapshot.restore()
    data = tensor.data  # not detach(): that would count the change as a version of the caller's tensor
    copy = data.clone()
    try:
        data.copy_(perturbed(data, 2, size))
    except RuntimeError:
        return False  # an expanded view or an inference tensor: its elements can't be written
    try:
        after = subject.call(kept(probe[1]), training=probe[0], grad=False, carry=True)
        return bool(differences(before, after, exact=exact))
    except Exception:  # noqa: BLE001 - raising is an effect as well
        return True
    finally:
        data.copy_(copy)
