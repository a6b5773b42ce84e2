"""Forward leaves the layer's own parameters, buffers, modes and hooks alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as preserve_versions
from torch.nn.parameter import is_lazy

from torchkeep.checks.comparing import differences, kept
from torchkeep.checks.nested import tensors
from torchkeep.checks.probing import call_with_others, differentiable, is_real, noise, perturbed, with_leaves
from torchkeep.checks.reaching import attributes, rebound
from torchkeep.checks.registry import proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.snapshot import same_bits
from torchkeep.checks.subject import set_mode
from torchkeep.checks.tracing import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject


@proves(needs=("eval_determinism",))
def state_unchanged(subject: Subject) -> Iterator[Finding]:
    """Prove that forward changes no parameter, and in eval mode nothing that the next call depends on.

    Always applies; tensors that ``declare.mutates`` selects are excused. Decided by comparing every parameter
    (in both modes) and every buffer (in eval mode) with a copy made before the call, by the names that there are
    before and after, and by calling in eval mode with other inputs in between: outputs that differ although no
    buffer changed come from something that is in no state_dict. What forward computed from parameters must not
    outlive a training step: with other values in them, and training mode in between, the output must be that of a
    layer which was never called. A buffer that forward makes and state_dict leaves out is a cache: a warning.
    """
    excused = subject.selected(subject.declare.mutates)
    found: set[str] = set()
    for training in (False, True):
        before = _copies(subject)
        subject.call(training=training)
        now = _held(subject.layer)
        for name in before.keys() | now.keys():
            gone = name not in before or name not in now
            matters = gone or not training or isinstance(now[name], nn.Parameter)
            if (
                name in excused | found
                or not matters
                or (not gone and same_bits(before[name], now[name].detach()))
            ):
                continue
            found.add(name)
            mode = "training" if training else "eval"
            if name not in before and _is_cache(subject.layer, name):
                yield Finding(
                    f"forward made this buffer, which state_dict leaves out, in {mode} mode",
                    "let it not depend on the inputs' values; make it in the constructor, or list the check in "
                    "`expected`",
                    tensor=name,
                    severe=False,
                )
                continue
            what = "added it to the state_dict or took it out" if gone else "changed its value"
            yield Finding(
                f"forward {what} in {mode} mode",
                "change state only in buffers, in place, and only `if self.training`; or declare mutates=[...]",
                tensor=name,
                where=_line(subject, name, before.get(name), training=training),
            )
    if not found and not excused:
        yield from _carried(subject)


def _carried(subject: Subject) -> Iterator[Finding]:
    """Yield what an eval call gives otherwise after one with other inputs."""
    first = kept(subject.call(training=False, grad=False))
    subject.snapshot.restore()
    before = attributes(subject.layer)
    call_with_others(subject, training=False)
    made = rebound(subject.layer, before)
    paths = differences(first, subject.call(training=False, grad=False, carry=True))
    if paths:
        yield Finding(
            f"in eval mode {', '.join(paths)} depends on what the layer was called with before",
            "hand state in and out through forward, or keep it in a buffer that changes only `if self.training`; "
            "a cache must not depend on the values of inputs",
            tensor=made,
        )
    else:
        yield from _kept_results(subject)


def _kept_results(subject: Subject) -> Iterator[Finding]:
    """Yield what forward keeps from its parameters and goes on using when their values have changed."""
    weights = [weight for weight in subject.layer.parameters() if is_real(weight) and not is_lazy(weight)]
    others = [perturbed(weight, 3, 0.1) for weight in weights]
    seen = []
    made = ""
    # An optimizer's step counts as a version, which a layer may look at; the caller's graphs must not see ours.
    with preserve_versions(tuple(weights)):
        for called_before in (False, True):
            subject.snapshot.restore()
            before = attributes(subject.layer)
            if called_before:
                subject.call(training=False, grad=False)
                made = rebound(subject.layer, before)
                set_mode(subject.layer, training=True)
            with torch.no_grad():
                for weight, other in zip(weights, others, strict=True):
                    weight.copy_(other)
            seen.append(kept(subject.call(training=False, grad=False, carry=True)))
        subject.snapshot.restore()
    if differences(*seen):
        yield Finding(
            "after a training step the output still depends on what the parameters were in an earlier eval call",
            "compute it in each call, or drop what is kept in train()",
            tensor=made,
        )


def _held(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _is_cache(layer: nn.Module, name: str) -> bool:
    """Tell whether a tensor is a buffer that is not persistent."""
    path, _, key = name.rpartition(".")
    return key in layer.get_submodule(path)._non_persistent_buffers_set  # noqa: SLF001 - torch has no other way


def _copies(subject: Subject) -> dict[str, torch.Tensor]:
    subject.snapshot.restore()
    return {name: tensor.detach().clone() for name, tensor in _held(subject.layer).items()}


def _line(subject: Subject, name: str, before: torch.Tensor | None, *, training: bool) -> str:
    def happened() -> bool:
        now = _held(subject.layer).get(name)
        return (now is None) != (before is None) or (
            now is not None and before is not None and not same_bits(before, now.detach())
        )

    return first_line(lambda: subject.call(training=training), happened)


@proves()
def hooks_left(subject: Subject) -> Iterator[Finding]:
    """Prove that forward and backward leave no hook behind, on a module, a parameter or an input.

    Always applies. Decided by counting hooks before and after a forward and a backward pass in both modes. A hook
    on an input is a warning: it changes gradients for whoever else uses that tensor.
    """
    found: set[str] = set()
    for training in (False, True):
        subject.snapshot.restore()
        before = _hooks(subject.layer)
        given, _ = with_leaves(subject, subject.inputs())
        output = subject.call(given, training=training)
        made = dict((*tensors(given[0], "args"), *tensors(given[1], "kwargs")))
        hooked = [path for path, tensor in made.items() if tensor._backward_hooks]  # noqa: SLF001 - nothing else tells
        _backward(output)
        left = [name for name, count in _hooks(subject.layer).items() if count > before.get(name, 0)]
        for name in [*left, *hooked]:
            if name not in found:
                found.add(name)
                yield Finding(
                    "forward left a hook behind" + ("" if name in left else " on its input"),
                    "register hooks in __init__, or remove each with its handle before forward returns",
                    tensor=name,
                    where=_hook_line(subject, name, training=training) if name in left else "",
                    severe=name in left,
                )


def _hook_line(subject: Subject, name: str, *, training: bool) -> str:
    subject.snapshot.restore()
    before = _hooks(subject.layer).get(name, 0)
    return first_line(lambda: subject.call(training=training), lambda: _hooks(subject.layer).get(name, 0) > before)


def _hooks(layer: nn.Module) -> dict[str, int]:
    """Return how many hooks hang on each module and parameter."""
    counts = {
        name or "the layer itself": sum(len(held) for key, held in vars(module).items() if _is_hooks(key, held))
        for name, module in layer.named_modules()
    }
    for name, tensor in _held(layer).items():
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            counts[name] = counts.get(name, 0) + len(getattr(tensor, key, None) or ())
    return counts


def _is_hooks(key: str, held: object) -> bool:
    return key.endswith("_hooks") and isinstance(held, dict)


def _backward(output: object) -> None:
    """Run backward where there is anything to differentiate; what it raises is for the checks of gradients."""
    starts = differentiable(output)
    try:
        torch.autograd.backward(starts, [noise(start, 1) for start in starts])
    except RuntimeError:
        return
