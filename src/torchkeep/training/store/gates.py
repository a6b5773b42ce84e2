"""Know when an optimizer steps, and let it wait for a snapshot.

One hook for all optimizers of the process, by PyTorch's own `register_optimizer_step_pre_hook`, looks at the gates
that are closed. Hooks of single optimizers would have to be taken away while their optimizer, in another thread,
may be going through them; PyTorch does not allow that.
"""

from __future__ import annotations

import os
import sys
from threading import Lock, local
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer


class Gate:
    """Something that the steps of some optimizers wait for.

    Args:
        optimizers: these; they are kept alive meanwhile.
        wait: called before each step of them, in the thread that steps.
    """

    def __init__(self, optimizers: Iterable[Optimizer], wait: Callable[[], None]) -> None:
        self.optimizers = {id(optimizer): optimizer for optimizer in optimizers}
        self.wait = wait


class _Steps(local):
    """Ids of the optimizers that are stepping in this thread; after a step that raised, until the next ends."""

    def __init__(self) -> None:
        self.running: set[int] = set()


_steps = _Steps()
_changing = Lock()
_closed: tuple[Gate, ...] = ()
_watching = False


def watch_steps() -> None:
    """Begin to look at the steps of this process's optimizers, once for all."""
    global _watching  # noqa: PLW0603 - PyTorch's hooks are as global
    with _changing:
        if not _watching:
            register_optimizer_step_pre_hook(_before_step)
            register_optimizer_step_post_hook(_after_step)
            _watching = True


def close_gate(gate: Gate) -> None:
    """Let steps wait from now on."""
    global _closed  # noqa: PLW0603 - same
    with _changing:
        _closed = (*_closed, gate)


def open_gate(gate: Gate) -> None:
    """Let steps pass again; a second call does nothing."""
    global _closed  # noqa: PLW0603 - same
    with _changing:
        _closed = tuple(one for one in _closed if one is not gate)


def closed_gates() -> tuple[Gate, ...]:
    """Return the gates that steps wait for now."""
    return _closed


def is_stepping(optimizers: Iterable[Optimizer]) -> bool:
    """Tell whether this thread is inside of a step of one of these: their tensors are about to change."""
    return any(id(optimizer) in _steps.running for optimizer in optimizers)


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    _steps.running.add(id(optimizer))
    for gate in _closed:
        if id(optimizer) in gate.optimizers:
            _untraced(gate.wait)()


def _untraced(function: Callable[[], None]) -> Callable[[], None]:
    """Keep torch.compile, where it is in use, out of what is called: it takes counts of changes as fixed."""
    if "torch._dynamo" not in sys.modules:
        return function
    return cast("Callable[[], None]", torch.compiler.disable(function))  # type: ignore[no-untyped-call] # it has no hints


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    _steps.running.discard(id(optimizer))


# What torch.compiler.disable sets; to call it would import all of torch.compile. Compiled steps then call these
# instead of keeping what they did when the step was traced.
vars(_before_step)["_torchdynamo_disable"] = vars(_after_step)["_torchdynamo_disable"] = True


def _forget() -> None:
    """In a forked child nobody would ever open a gate."""
    global _closed, _changing
    _closed, _changing = (), Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
