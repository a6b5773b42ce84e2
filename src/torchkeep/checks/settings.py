"""Global state that a layer must leave alone: random generators and settings, captured, compared and put back."""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules import module as torch_module

if TYPE_CHECKING:
    from collections.abc import Callable


class Setting(NamedTuple):
    """One piece of global state.

    Attributes:
        read: returns its value, which is never changed afterwards.
        write: puts a value back.
        random: whether it is the state of a random generator.
    """

    read: Callable[[], Any]
    write: Callable[[Any], object]
    random: bool = False


_HOOKS = tuple(
    name
    for name, held in vars(torch_module).items()
    if name.startswith("_global_") and name.endswith("hooks") and isinstance(held, dict)
)


def _read_hooks() -> list[dict[Any, Any]]:
    return [dict(vars(torch_module)[name]) for name in _HOOKS]


def _write_hooks(saved: list[dict[Any, Any]]) -> None:
    for name, content in zip(_HOOKS, saved, strict=True):
        held = vars(torch_module)[name]
        held.clear()
        held.update(content)


def _write_device(device: torch.device) -> None:
    if torch.get_default_device() != device:
        # Naming the CPU would leave a mode behind where there was none.
        torch.set_default_device(None if device.type == "cpu" else device)


def _read_accelerator() -> dict[torch.device, torch.Tensor]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return {}
    module = torch.get_device_module(accelerator)
    devices = [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return {device: module.get_rng_state(device) for device in devices}


def _write_accelerator(states: dict[torch.device, torch.Tensor]) -> None:
    for device, state in states.items():
        torch.get_device_module(device).set_rng_state(state, device)


def _numpy_random() -> Any:
    return sys.modules.get("numpy.random")


def _write_numpy(state: Any) -> None:
    if state is not None:
        _numpy_random().set_state(state)


def _write_autocast(value: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled("cpu", value[0])
    torch.set_autocast_dtype("cpu", value[1])


def _write_deterministic(value: tuple[bool, bool]) -> None:
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    else:
        # The public function would import all of torch.compile to tell it, which takes seconds.
        torch._C._set_deterministic_algorithms(value[0], warn_only=value[1])  # noqa: SLF001


_PRECISIONS = (
    *("fp32_precision", "cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"),
    *("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision"),
)
"""Where ``torch.backends`` keeps what the older function tells in one word."""


def _read_precision() -> str | dict[str, str]:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set through torch.backends, of which the older function refuses to tell
        return {name: attrgetter(name)(torch.backends) for name in _PRECISIONS}


def _write_precision(value: str | dict[str, str]) -> None:
    if isinstance(value, str):
        torch.set_float32_matmul_precision(value)
        return
    for name, held in value.items():
        if attrgetter(name)(torch.backends) != held:
            path, _, key = name.rpartition(".")
            setattr(attrgetter(path)(torch.backends) if path else torch.backends, key, held)


_SMALLEST, _ONE = 5e-324, 1.0
"""Their product is zero where denormals are flushed; they have names so that it is worked out each time."""

SETTINGS: dict[str, Setting] = {
    "torch's random state": Setting(torch.get_rng_state, torch.set_rng_state, random=True),
    "the accelerator's random state": Setting(_read_accelerator, _write_accelerator, random=True),
    "Python's random state": Setting(random.getstate, random.setstate, random=True),
    "numpy's random state": Setting(
        lambda: _numpy_random() and _numpy_random().get_state(), _write_numpy, random=True
    ),
    "grad mode": Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
    "the default device": Setting(torch.get_default_device, _write_device),
    "the number of threads": Setting(torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": Setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _write_deterministic,
    ),
    "anomaly detection": Setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    "autocast on the CPU": Setting(
        lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        _write_autocast,
    ),
    "float32 matmul precision": Setting(_read_precision, _write_precision),
    "flush of denormals": Setting(lambda: _SMALLEST * _ONE == 0.0, torch.set_flush_denormal),
    "hooks on all modules": Setting(_read_hooks, _write_hooks),
}


@dataclass(frozen=True)
class Captured:
    """The values of all settings at one moment."""

    values: dict[str, Any]

    @classmethod
    def now(cls, *, random: bool = True) -> Captured:
        """Read every setting.

        Args:
            random: whether random generators are read too, which takes most of the time.
        """
        return cls({name: setting.read() for name, setting in SETTINGS.items() if random or not setting.random})

    def restore(self) -> None:
        """Put every setting back.

        Those that are as they were stay untouched, since writing one may settle what it was inherited from.
        """
        self.mend()
        for name, value in self.values.items():
            if SETTINGS[name].random:
                SETTINGS[name].write(value)

    def mend(self) -> None:
        """Put back the settings that are others by now; random generators stay as they are."""
        for name in self.changed(random=False):
            SETTINGS[name].write(self.values[name])

    def changed(self, *, random: bool) -> list[str]:
        """Return the names of the settings (random generators, or all others) whose values are others by now."""
        return [
            name
            for name, setting in SETTINGS.items()
            if setting.random is random and not _same(self.values[name], setting.read())
        ]


def _same(before: Any, after: Any) -> bool:
    """Compare nested values in which tensors and arrays may sit."""
    if isinstance(before, torch.Tensor):
        return isinstance(after, torch.Tensor) and torch.equal(before, after)
    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and list(before) == list(after)
            and _same([*before.values()], [*after.values()])
        )
    if isinstance(before, tuple | list):
        with suppress(ValueError, RuntimeError):  # an array or a tensor in it, which is neither true nor false
            return bool(before == after)
        return len(before) == len(after) and all(map(_same, before, after))
    same = before == after
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def reseed(seed: int) -> None:
    """Seed every generator that code may draw from, so that two runs can be compared."""
    torch.default_generator.manual_seed(seed)
    if torch.accelerator.is_available():
        # Where there is none, this queues calls for later, with a traceback each: a hundred times as long.
        torch.manual_seed(seed)
    random.seed(seed)
    if _numpy_random() is not None:
        _numpy_random().seed(seed % 2**32)
