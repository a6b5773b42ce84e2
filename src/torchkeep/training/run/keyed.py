"""Randomness of batches as a function of a key: set aside in the main process, anew for each batch in workers."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from torchkeep.tensors.streams import KeyPart, keyed_generator, secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_INITIAL_SEED: Final = 8
"""The first bytes of the state of torch's CPU generator are what ``torch.initial_seed()`` tells."""


def rekey(*key: KeyPart) -> None:
    """Start the global generators of torch, of `random` and, when it is loaded, of NumPy under a key.

    Of torch that is the CPU's and, in the main process, the current accelerator's, once that is in use.
    ``torch.initial_seed()`` becomes a number that depends on the key too, since dataset code seeds others with it.
    """
    state = keyed_generator(*key).get_state()
    derived = secret(*key, "seeds")
    # One bit less than fits, so that the number is the same to readers that take it as signed.
    state[:_INITIAL_SEED] = torch.frombuffer(bytearray(derived[:7] + b"\0"), dtype=torch.uint8)
    torch.set_rng_state(state)
    number = int.from_bytes(derived, "little")
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed([number >> shift & 0xFFFFFFFF for shift in range(0, 256, 32)])
    if get_worker_info() is None and (device := _accelerator()):
        device.manual_seed(int.from_bytes(derived[-7:], "little"))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the global random states back at the end."""
    before = _states()
    try:
        yield
    finally:
        _set_states(before)


class Aside:
    """A second set of global random states, in force between ``with aside:`` and its end, which goes on next time.

    What the loader's code draws in the main process comes from here, so that loading leaves no trace in the random
    states of the training loop. The current accelerator's generator is included once it is in use.

    Args:
        key: where the second set begins; see `torchkeep.tensors.streams.key_bytes`.
    """

    def __init__(self, *key: KeyPart) -> None:
        self._key: tuple[KeyPart, ...] | None = key
        self._inside: _States | None = None
        self._outside: _States | None = None

    def __enter__(self) -> None:
        self._outside = _states()
        if self._key is not None:
            rekey(*self._key)
            self._key = None
        elif self._inside is not None:
            _set_states(self._inside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = _states()
        assert self._outside is not None
        _set_states(self._outside)

    def restart(self, *key: KeyPart) -> None:
        """Begin under another key, the next time it is entered."""
        self._key = key


class Ticket(NamedTuple):
    """What is sent for a batch: which one it is, and what is in it.

    Attributes:
        epoch: counted from 0.
        batch: within the epoch, counted from 0.
        wanted: what the sampler gave: a list of indices, or one index where the loader does no batching.
    """

    epoch: int
    batch: int
    wanted: Any


class KeyedItems(Dataset[Any]):
    """A map-style dataset whose randomness starts anew for each batch; it is asked with tickets.

    Everything else (attributes, length) is the dataset's own.

    Args:
        dataset: the user's.
        key: what the randomness depends on besides epoch and batch.
    """

    def __init__(self, dataset: Any, key: tuple[KeyPart, ...]) -> None:
        self.dataset = dataset
        self._key = key
        self._epoch: int | None = None

    def __getitem__(self, ticket: Ticket) -> Any:
        """Fetch one sample, for a loader that does no batching."""
        self._begin(ticket)
        return self.dataset[ticket.wanted]

    def __getitems__(self, ticket: Ticket) -> Any:
        """Fetch the samples of a batch, at once if the dataset knows how."""
        self._begin(ticket)
        if getattr(self.dataset, "__getitems__", None):
            return self.dataset.__getitems__(ticket.wanted)
        return [self.dataset[index] for index in ticket.wanted]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return _of_dataset(self, name)

    def _begin(self, ticket: Ticket) -> None:
        if self._epoch != ticket.epoch:
            self._epoch = ticket.epoch
            tell_epoch(self.dataset, ticket.epoch)
        rekey(*self._key, "batch", ticket.epoch, ticket.batch)


class KeyedStream(IterableDataset[Any]):
    """An iterable dataset whose randomness starts anew for each epoch, in each worker.

    Args:
        dataset: the user's.
        key: what the randomness depends on besides epoch and worker.

    Attributes:
        epoch: the epoch that the next iteration is of. Workers that live for several epochs count for themselves.
    """

    def __init__(self, dataset: Any, key: tuple[KeyPart, ...]) -> None:
        self.dataset = dataset
        self.epoch = 0
        self._key = key

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        tell_epoch(self.dataset, self.epoch)
        rekey(*self._key, "stream", self.epoch, worker.id if worker else 0)
        self.epoch += 1
        return iter(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return _of_dataset(self, name)


def tell_epoch(thing: object, epoch: int) -> None:
    """Call ``set_epoch`` where there is one."""
    if callable(tell := getattr(thing, "set_epoch", None)):
        tell(epoch)


class _States(NamedTuple):
    torch: torch.Tensor
    python: tuple[Any, ...]
    numpy: Any
    accelerator: torch.Tensor | None


def _states() -> _States:
    numpy, device = sys.modules.get("numpy"), _accelerator()
    return _States(
        torch.get_rng_state(),
        random.getstate(),
        numpy.random.get_state() if numpy else None,
        device.get_rng_state() if device else None,
    )


def _set_states(states: _States) -> None:
    torch.set_rng_state(states.torch)
    random.setstate(states.python)
    if states.numpy is not None:
        sys.modules["numpy"].random.set_state(states.numpy)
    if states.accelerator is not None and (device := _accelerator()):
        device.set_rng_state(states.accelerator)


def _accelerator() -> Any:
    """Return the module of the accelerator in use; None before something has used it, which asking would do."""
    if not torch.accelerator.is_available():
        return None
    device = torch.get_device_module(torch.accelerator.current_accelerator())
    return device if getattr(device, "is_initialized", lambda: True)() else None


def _of_dataset(wrapper: Any, name: str) -> Any:
    # While a wrapper is unpickled it has no dataset yet.
    if "dataset" not in vars(wrapper):
        raise AttributeError(name)
    return getattr(wrapper.dataset, name)
