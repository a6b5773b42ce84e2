"""Copies of DataLoaders that know of epochs and batches, with workers that are shielded and end on time."""

from __future__ import annotations

import atexit
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from warnings import warn
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from torchkeep.errors import TorchkeepWarning
from torchkeep.training.run.signals import ShieldedStart

if TYPE_CHECKING:
    from collections.abc import Iterator


class Closeable(Protocol):
    """What may have workers."""

    def close(self) -> None:
        """End them."""


_open: WeakSet[Any] = WeakSet()


def copied(loader: DataLoader[Any], **changed: Any) -> Any:
    """Copy a loader, with other parts: of the same class, with all its options, and with shielded workers."""
    copy = object.__new__(type(loader))
    # Not by assignment, which a loader refuses for these.
    vars(copy).update(vars(loader), _iterator=None, **changed)
    if "dataset" in changed:
        # Seeds come from the run, and the generator is the order's alone; its own place is not ours.
        vars(copy).update(generator=None)
        if "next_iter_state" in vars(copy):
            vars(copy).update(next_iter_state=None, _initial_iter_for_state_dict=False)
    if loader.num_workers:
        start = ShieldedStart(loader.worker_init_fn, wrapped="dataset" in changed)
        vars(copy).update(worker_init_fn=start)
        if not getattr(loader, "in_order", True):  # a word of newer releases
            vars(copy).update(in_order=True)
            warn(
                "the loader has in_order=False, which gives batches as workers finish them; a run takes them in "
                "order, since it could not be gone on with otherwise",
                TorchkeepWarning,
                stacklevel=2,
            )
    return copy


def end_workers(loader: object, iterator: object) -> None:
    """Shut workers down now, not when the garbage collector comes by: a new start must not meet the old ones."""
    if isinstance(loader, DataLoader):
        vars(loader).update(_iterator=None)
    if callable(end := getattr(iterator, "_shutdown_workers", None)):
        end()


def rank() -> int:
    """Tell which of several processes that train together this is, so that each draws its own augmentations."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )


@contextmanager
def closed_at_exit(feed: Closeable) -> Iterator[None]:
    """Close a feed at the end, and no later than at the exit, where a loop may still hang on a traceback."""
    if not _open:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(feed)
    try:
        yield
    finally:
        _open.discard(feed)
        feed.close()


def _close_all() -> None:
    for feed in list(_open):
        feed.close()


def length_of(dataset: Any) -> int | None:
    """Return how many samples a dataset has; None where it does not tell."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None
