"""Run somebody else's code and leave every global setting of torch as it was."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules import module as torch_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,  # noqa: SLF001 - no public way sets these aside
    torch_module._global_forward_pre_hooks,  # noqa: SLF001
    torch_module._global_backward_hooks,  # noqa: SLF001
    torch_module._global_backward_pre_hooks,  # noqa: SLF001
)


@contextmanager
def undisturbed(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore random states, default dtype and device, and the attention fast path on the way out.

    While it lasts, compiled functions run as they were written, hooks that the caller registered for all modules
    are set aside, and attention takes the path on which every module is called.

    Args:
        devices: those whose random state is to be restored, besides the CPU's.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    fast = torch.backends.mha.get_fastpath_enabled()
    with _random_states(devices), _without_global_hooks(), torch.compiler.set_stance("force_eager"):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)


@contextmanager
def _random_states(devices: Iterable[torch.device]) -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy.random")
    python_state = random.getstate()
    numpy_state = None if numpy is None else numpy.get_state()
    cpu_state = torch.get_rng_state()
    others = [(found, found[0]()) for device in devices if (found := _random_state_of(device))]
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.set_state(numpy_state)
        torch.set_rng_state(cpu_state)
        for (_, put), state in others:
            put(state)


def _random_state_of(
    device: torch.device,
) -> tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], None]] | None:
    """Return how to get and how to put an accelerator's random state, or None where it has none."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "get_rng_state"):
        return None
    if device.type == "mps":
        return module.get_rng_state, module.set_rng_state
    return partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    aside = [(hooks, dict(hooks)) for hooks in _GLOBAL_HOOKS if hooks]
    for hooks, _ in aside:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in aside:
            hooks.update(saved)
