"""Where a run's batches come from: loaders and other iterables, an epoch at a time, whole or from within."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from warnings import warn

from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, MapDataPipe

from torchkeep.errors import SourceError, TorchkeepWarning
from torchkeep.names import with_article
from torchkeep.training.run.keyed import Aside, KeyedItems, KeyedStream, tell_epoch, undisturbed
from torchkeep.training.run.loaders import copied, end_workers, length_of, rank
from torchkeep.training.run.ordering import Order, generators_in
from torchkeep.training.run.signals import ShieldedStart, shielding
from torchkeep.training.state.contents import has_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.tensors.streams import KeyPart

Kept: TypeAlias = dict[str, Any]
"""What a checkpoint holds to come back to a place in an epoch: plain values and tensors."""


class Feed(Protocol):
    """The batches of one loader."""

    def begin(self, epoch: int, done: int, kept: Kept | None) -> str | None:
        """Get ready for an epoch, of which ``done`` batches are done; ``kept`` is of then, None at its begin.

        Returns:
            None if all is well; else how what is left is not what would have followed. It can be had all the same.
        """

    def following(self) -> Any:
        """Load the next batch. Raises StopIteration at the epoch's end."""

    def kept(self, done: int) -> Kept:
        """Tell what the checkpoint must hold when ``done`` batches of the epoch are done."""

    def rewinds(self, done: int) -> bool:
        """Tell whether `kept` gives the place of ``done`` batches although one more was loaded."""

    def close(self) -> None:
        """End the workers."""


def feed_for(source: object, key: tuple[KeyPart, ...]) -> Feed:
    """Choose how to take batches from a loader.

    Args:
        source: what the user gave.
        key: what order and randomness depend on besides epoch and batch.

    Raises:
        SourceError: it can't be gone through once an epoch.
    """
    if isinstance(source, DataLoader) and not _streams(source):
        return OrderedFeed(source, key)
    if has_state(source):
        return StatefulFeed(source, key)
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return SequenceFeed(source)
    return ReplayedFeed(source, key)


def check_source(source: object) -> None:
    """Make sure that batches can be taken from this.

    Raises:
        SourceError: they can't.
    """
    if hasattr(source, "__next__"):
        raise SourceError(
            f"run.batches() goes through its loader every epoch, and {with_article(type(source).__name__)} allows "
            "one pass; give a DataLoader, a list, another iterable, or the function that makes the iterator"
        )
    if isinstance(source, (str, bytes)) or not (
        isinstance(source, Iterable) or callable(source) or hasattr(source, "__getitem__")
    ):
        raise SourceError(
            f"run.batches() takes a DataLoader, another iterable of batches, or a function that makes an "
            f"iterator, not {with_article(type(source).__name__)}"
        )


class OrderedFeed:
    """A DataLoader over a map-style dataset: each batch's indices and randomness depend on its number only.

    The loader given is left alone. A copy of it, of the same class and with the same options, gets a dataset and
    a sampler that know of epochs and batches. Batches are skipped at the sampler, so nothing is loaded for them.
    """

    def __init__(self, loader: DataLoader[Any], key: tuple[KeyPart, ...]) -> None:
        place = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        sampler = getattr(loader, place)
        self._order = Order(sampler, generators_in(loader), key)
        dataset = KeyedItems(loader.dataset, (*key, rank()))
        self._loader = copied(loader, dataset=dataset, **{place: self._order})
        self._key = key
        self._iterator: Any = None
        self._given = 0
        self._samples: int | None = None

    def begin(self, epoch: int, done: int, kept: Kept | None) -> str | None:
        """See `Feed`."""
        tell_epoch(self._loader, epoch)
        problem = self._order.begin(epoch, done, kept)
        self._given, self._samples = done, length_of(self._loader.dataset.dataset)
        had = (kept or {}).get("samples", self._samples)
        if problem is None and had != self._samples:
            problem = f"its dataset has {self._samples} samples, and had {had}"
        if self._order.left:
            # Persistent workers are seeded once, so it must not matter in which epoch they were started.
            seeds = Aside(*self._key, "loader", *(() if self._loader.persistent_workers else (epoch,)))
            with seeds, shielding():
                self._iterator = iter(self._loader)
        else:
            self._iterator = iter(())  # without starting workers for nothing
        return problem

    def following(self) -> Any:
        """See `Feed`."""
        if self._loader.num_workers:
            batch = next(self._iterator)  # workers draw, and the order has randomness of its own
        else:
            with undisturbed():  # each batch begins with a key
                batch = next(self._iterator)
        self._given += 1
        if self._given > self._order.drawn:
            raise SourceError(
                f"the {type(self._loader).__name__} gives batches that its sampler did not draw, so a run can't "
                "tell which is which; use a plain DataLoader (persistent_workers=True keeps its workers)"
            )
        self._order.forget(self._given - 1)
        return batch

    def kept(self, done: int) -> Kept:
        """See `Feed`."""
        return {**self._order.kept(done), "samples": self._samples}

    def rewinds(self, done: int) -> bool:
        """See `Feed`."""
        return self._order.rewinds(done)

    def close(self) -> None:
        """See `Feed`."""
        end_workers(self._loader, self._iterator)
        self._iterator = None


class StatefulFeed:
    """A loader that keeps its own place (``state_dict`` and ``load_state_dict``), such as a StatefulDataLoader."""

    def __init__(self, loader: Any, key: tuple[KeyPart, ...]) -> None:
        self._loader = loader
        self._start = getattr(loader, "worker_init_fn", None)
        self._key = key
        self._aside = Aside(*key)
        self._iterator: Any = None

    def begin(self, epoch: int, done: int, kept: Kept | None) -> str | None:
        """See `Feed`."""
        self._aside = Aside(*self._key, "loader", epoch)
        tell_epoch(self._loader, epoch)
        place = (kept or {}).get("place")
        if isinstance(self._loader, DataLoader):
            self._loader.worker_init_fn = ShieldedStart(self._start, wrapped=False)
        with self._aside, shielding():
            if place:
                self._loader.load_state_dict(place)
            self._iterator = iter(self._loader)
        if done and not place:
            return _replay(self, epoch, done, f"the state_dict of {_named(self._loader)} was empty")
        return None

    def following(self) -> Any:
        """See `Feed`."""
        with self._aside:
            return next(self._iterator)

    def kept(self, done: int) -> Kept:  # noqa: ARG002 - it counts for itself
        """See `Feed`."""
        with self._aside:
            return {"place": self._loader.state_dict()}

    def rewinds(self, done: int) -> bool:  # noqa: ARG002 - never
        """See `Feed`."""
        return False

    def close(self) -> None:
        """See `Feed`."""
        end_workers(self._loader, self._iterator)
        if isinstance(self._loader, DataLoader):
            self._loader.worker_init_fn = self._start
        self._iterator = None


class ReplayedFeed:
    """What has no place to go to: batches that are done are loaded again, under the same randomness, and left."""

    def __init__(self, source: Any, key: tuple[KeyPart, ...]) -> None:
        self._source, self._key = source, key
        self._stream: KeyedStream | None = None
        self._workers = 0
        if isinstance(source, DataLoader):
            self._workers = source.num_workers
            if isinstance(source.dataset, (IterDataPipe, MapDataPipe)):
                # These are seeded from the loader's own seed, at its start only.
                self._source = copied(source, persistent_workers=False)
            else:
                self._stream = KeyedStream(source.dataset, (*key, rank()))
                self._source = copied(source, dataset=self._stream)
        self._aside = Aside(*key)
        self._iterator: Any = None

    def begin(self, epoch: int, done: int, kept: Kept | None) -> str | None:
        """See `Feed`."""
        self._aside = Aside(*self._key, "loader", epoch)
        if self._stream is not None:
            self._stream.epoch = epoch
        tell_epoch(self._source, epoch)
        with self._aside, shielding():
            self._iterator = _iterator_of(self._source)
        problem = None
        if done:
            why = f"{_named(self._source)} can't tell or take its place (it has no state_dict)"
            problem = _replay(self, epoch, done, why)
        if kept and kept["workers"] != self._workers:
            return (
                f"it has {self._workers} workers and had {kept['workers']}, which divide its samples another way"
            )
        return problem

    def following(self) -> Any:
        """See `Feed`."""
        with self._aside:
            return next(self._iterator)

    def kept(self, done: int) -> Kept:  # noqa: ARG002 - they are counted by the run
        """See `Feed`."""
        return {"workers": self._workers}

    def rewinds(self, done: int) -> bool:  # noqa: ARG002 - always
        """See `Feed`."""
        return True

    def close(self) -> None:
        """See `Feed`."""
        end_workers(self._source, self._iterator)
        if callable(close := getattr(self._iterator, "close", None)):
            close()
        self._iterator = None


class SequenceFeed:
    """A list of batches, or another sequence: gone on with where it was."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self._next = 0

    def begin(self, epoch: int, done: int, kept: Kept | None) -> str | None:
        """See `Feed`."""
        self._next = done
        if done > len(self._batches):
            return f"it has only {len(self._batches)} batches, and {done} of epoch {epoch} had been trained on"
        if kept and kept["length"] != len(self._batches):
            return f"it has {len(self._batches)} batches, and had {kept['length']}"
        return None

    def following(self) -> Any:
        """See `Feed`."""
        if self._next >= len(self._batches):
            raise StopIteration
        self._next += 1
        return self._batches[self._next - 1]

    def kept(self, done: int) -> Kept:  # noqa: ARG002 - they are counted by the run
        """See `Feed`."""
        return {"length": len(self._batches)}

    def rewinds(self, done: int) -> bool:  # noqa: ARG002 - always
        """See `Feed`."""
        return True

    def close(self) -> None:
        """See `Feed`."""


def _streams(loader: DataLoader[Any]) -> bool:
    return isinstance(loader.dataset, (IterableDataset, MapDataPipe))


def _replay(feed: StatefulFeed | ReplayedFeed, epoch: int, done: int, why: str) -> str | None:
    """Load what is done again. Returns what is wrong, as `Feed.begin` does."""
    warn(f"{why}: {done} batches of epoch {epoch} are loaded again to get there", TorchkeepWarning, stacklevel=2)
    for number in range(done):
        try:
            feed.following()
        except StopIteration:
            return f"it has only {number} batches, and {done} of epoch {epoch} had been trained on"
    return None


def _iterator_of(source: Any) -> Iterator[Any]:
    if isinstance(source, Iterable) or hasattr(source, "__getitem__"):
        return iter(source)
    assert isinstance(source, Callable)  # type: ignore[arg-type]  # check_source saw to it
    return iter(source())


def _named(source: object) -> str:
    if isinstance(source, DataLoader):
        dataset = source.dataset.dataset if isinstance(source.dataset, KeyedStream) else source.dataset
        return f"the loader of {type(dataset).__name__}, an iterable dataset,"
    return f"the {type(source).__name__}" if not callable(source) else getattr(source, "__name__", "the function")
