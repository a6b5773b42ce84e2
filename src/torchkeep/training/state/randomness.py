"""The state of the global random generators: torch's, on every device, Python's and numpy's."""

from __future__ import annotations

import random
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from torch import Tensor

_KNOWN: Final = ("torch", "random", "numpy", "accelerator")


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators, as new tensors and plain values.

    Returns:
        ``"torch"``: that of the CPU, uint8. ``"random"``: Python's. ``"numpy"``: numpy's global one, where numpy
        is imported. ``"accelerator"``: those of every device of the accelerator, where there is one.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "random": [version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _from_numpy(numpy, numpy.random.get_state(legacy=False))
    device = accelerator()
    if device is not None:
        states = [_get(device, index) for index in range(_count(device))]
        state["accelerator"] = {"type": device, "states": states}
    return state


def rng_problems(state: object) -> list[str]:
    """Say why `set_rng_state` could not use a state, a sentence each; nothing is changed."""
    if not isinstance(state, dict) or not isinstance(state.get("torch"), torch.Tensor):
        return ["it is no state of random generators"]
    problems = []
    mine = torch.get_rng_state()
    if state["torch"].shape != mine.shape or state["torch"].dtype != mine.dtype:
        problems.append(f"torch {torch.__version__} keeps its generator's state otherwise: use the torch it is of")
    found = state.get("random")
    if not (isinstance(found, list) and len(found) == len(random.getstate()) and found[0] == random.getstate()[0]):
        problems.append("this Python keeps its generator's state otherwise: use the version it is of")
    numpy, kept = sys.modules.get("numpy"), state.get("numpy")
    if numpy is not None and kept is not None:
        here = numpy.random.get_state(legacy=False)
        if not isinstance(kept, dict) or (kept.keys(), kept.get("bit_generator")) != (
            here.keys(),
            here["bit_generator"],
        ):
            problems.append(f"numpy's global generator is a {here['bit_generator']} here, and was another")
    return problems


def set_rng_state(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Put the global generators into a state that `rng_state` returned: what is drawn next is the same.

    Returns:
        A sentence for each generator that could not be set, since it is not here, or of which there is no state.
    """
    torch.set_rng_state(state["torch"].cpu())
    version, words, gauss = state["random"]
    random.setstate((version, tuple(words.tolist()), gauss))
    left = [f"the random generators {name!r} are not known to this torchkeep" for name in state.keys() - {*_KNOWN}]
    return (*left, *_set_numpy(state.get("numpy")), *_set_accelerator(state.get("accelerator")))


def accelerator() -> str | None:
    """Return the type of the accelerator's devices, such as ``"cuda"``; None where there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type


def _set_numpy(state: Any) -> tuple[str, ...]:
    if state is None:
        imported = "numpy" in sys.modules
        return ("numpy's random generator keeps its state: the checkpoint has none of it",) if imported else ()
    if "numpy" not in sys.modules and find_spec("numpy") is None:
        return ("the state of numpy's random generator: numpy is not installed",)
    # The run had imported it; what it will draw must not start anew.
    import_module("numpy").random.set_state(_to_numpy(state))
    return ()


def _set_accelerator(state: Any) -> tuple[str, ...]:
    device = accelerator()
    if state is None:
        none = f"the random generators of {device} keep their state: the checkpoint has none of them"
        return () if device is None else (none,)
    if device is None or state["type"] != device:
        return (f"the state of the random generators of {state['type']}: there is no such device here",)
    count = _count(device)
    for index, one in enumerate(state["states"][:count]):
        _set(device, index, one.cpu())
    kept = len(state["states"])
    return () if count == kept else (f"random generators: the checkpoint has {kept} of {device}, here: {count}",)


def _count(device: str) -> int:
    return 1 if device == "mps" else torch.accelerator.device_count()


def _get(device: str, index: int) -> Tensor:
    module: Any = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device == "mps" else module.get_rng_state(index)
    return state


def _set(device: str, index: int, state: Tensor) -> None:
    module: Any = torch.get_device_module(device)
    if device == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, index)


def _from_numpy(numpy: ModuleType, value: Any) -> Any:
    """Make tensors and plain values of numpy's; what it gives out may be its own memory."""
    if isinstance(value, dict):
        return {key: _from_numpy(numpy, item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, numpy.generic) else value


def _to_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_numpy(item) for key, item in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
