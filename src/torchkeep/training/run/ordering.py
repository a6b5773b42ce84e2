"""The order of an epoch: a sampler's batches, drawn under randomness of its own, and again after a restart."""

from __future__ import annotations

from array import array
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import torch
from blake3 import blake3
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from torchkeep.training.run.keyed import Aside, Ticket, tell_epoch
from torchkeep.training.state.contents import has_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.tensors.streams import KeyPart

_END: Final = object()
_DEEPEST: Final = 10
"""Samplers within samplers that are looked at."""
_QUIET: Final = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""Samplers that ask the global generators nothing after their first draw."""


class Order(Sampler[Ticket]):
    """A sampler's epochs, one after another, as tickets that say which batch of which epoch each is.

    After a restart the epoch's order is drawn again up to where the checkpoint was, and compared with a digest of
    what was drawn before. A sampler with ``state_dict`` and ``load_state_dict`` is put where it was instead.

    Args:
        sampler: the loader's batch sampler, or its sampler where it does no batching.
        generators: those that the loader and its samplers draw from.
        key: what the order depends on besides the epoch.
    """

    def __init__(self, sampler: Any, generators: dict[str, torch.Generator], key: tuple[KeyPart, ...]) -> None:
        self.inner = sampler
        self._generators = generators
        self._key = key
        drawing = sampler.sampler if type(sampler) is BatchSampler else sampler
        self._stateful: Any = next((part for part in (sampler, drawing) if has_state(part)), None)
        self._source, self._spied = sampler, None
        if self._stateful is not None and self._stateful is not sampler:
            self._spied = _Spied(drawing)
            self._source = BatchSampler(self._spied, sampler.batch_size, sampler.drop_last)
        self._quiet = type(drawing) in _QUIET and self._stateful is None
        self._told = samplers_in(sampler)
        self._epoch, self._drawn = 0, 0
        self._aside = Aside(*key)
        self._draws: Iterator[Any] = iter(())
        self._ahead: Any = _END
        self._begun: dict[str, torch.Tensor] = {}
        self._marks: dict[int, bytes] = {}
        self._places: dict[int, dict[str, Any]] = {}

    def begin(self, epoch: int, done: int, kept: dict[str, Any] | None) -> str | None:
        """Get ready for an epoch, or for the rest of one.

        Args:
            epoch: which.
            done: batches of it that are done.
            kept: what `kept` gave when they were done; None at an epoch's begin.

        Returns:
            None if all is well; else how the order is not that of before. Its rest can be drawn all the same.
        """
        self._epoch, self._drawn = epoch, 0
        self._marks, self._places = {0: b""}, {}
        self._aside = Aside(*self._key, "order", epoch)
        self._set_generators(kept)
        self._begun = {name: generator.get_state() for name, generator in self._generators.items()}
        for part in self._told:
            tell_epoch(part, epoch)
        if kept and self._stateful is not None and "place" in kept:
            self._drawn, self._marks = done, {done: bytes.fromhex(kept["mark"])}
            self._places[done] = {name: kept[name] for name in ("place", "over", "generators")}
            self._stateful.load_state_dict(deepcopy(kept["place"]))
        with self._aside:
            self._draws = iter(self._source)
        while self._drawn < done:
            if self._draw() is _END:
                self._ahead = _END
                return f"it has only {self._drawn} batches, and {done} of epoch {epoch} had been trained on"
            self.forget(self._drawn)
        self._ahead = self._draw(count=False)
        if kept and kept.get("over") and self.left and self._stateful is not None:
            # It had begun anew before the epoch's last batch was given; what it gives now is the next epoch's.
            self._ahead = _END
            self._stateful.load_state_dict(deepcopy(kept["place"]))
            self._set_generators(kept)
        if kept and self._marks[done] != bytes.fromhex(kept["mark"]):
            return f"the first {done} batches of epoch {epoch} are not those that had been trained on"
        return None

    @property
    def left(self) -> bool:
        """Whether the epoch that was begun has a batch left."""
        return self._ahead is not _END

    @property
    def drawn(self) -> int:
        """How many batches of the epoch were drawn."""
        return self._drawn

    def rewinds(self, done: int) -> bool:
        """Tell whether `kept` holds for ``done`` although more was drawn: not where a sampler alone knows how."""
        return self._stateful is None or done in self._places

    def kept(self, done: int) -> dict[str, Any]:
        """Tell what a checkpoint must hold to come back to where ``done`` batches of the epoch are done."""
        return {"generators": self._begun, "mark": self._marks[done].hex(), **self._places.get(done, {})}

    def forget(self, done: int) -> None:
        """Drop what is known of places before this one."""
        for known in (self._marks, self._places):
            for number in [number for number in known if number < done]:
                del known[number]

    def __iter__(self) -> Iterator[Ticket]:
        while self._ahead is not _END:
            wanted, self._ahead = self._ahead, _END
            ticket = Ticket(self._epoch, self._drawn, wanted)
            self._note(wanted)
            yield ticket
            self._ahead = self._draw(count=False)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        # Loaders ask their samplers for such things as the batch size.
        if "inner" not in vars(self):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _set_generators(self, kept: dict[str, Any] | None) -> None:
        for name, state in (kept or {}).get("generators", {}).items():
            if name in self._generators:
                self._generators[name].set_state(state)

    def _draw(self, *, count: bool = True) -> Any:
        """Draw what is in the next batch; the end of the epoch is `_END`."""
        if self._quiet and self._drawn:
            wanted = next(self._draws, _END)
        else:
            if self._stateful is not None:
                self._aside.restart(*self._key, "order", self._epoch, self._drawn)
            with self._aside:
                wanted = next(self._draws, _END)
        if count and wanted is not _END:
            self._note(wanted)
        return wanted

    def _note(self, wanted: Any) -> None:
        """Count a batch as drawn, and remember how to come back to this point."""
        before = self._marks[self._drawn]
        self._drawn += 1
        self._marks[self._drawn] = blake3(before + _spell(wanted)).digest(length=16)
        if self._stateful is not None:
            states = {name: generator.get_state() for name, generator in self._generators.items()}
            place = deepcopy(self._stateful.state_dict())
            over = self._spied is not None and self._spied.over
            self._places[self._drawn] = {"place": place, "over": over, "generators": states}


def samplers_in(outer: object) -> list[Any]:
    """List a loader or sampler and the samplers that it is made of, each once, the outer ones first."""
    found: list[Any] = []
    waiting = [outer]
    while waiting and len(found) < _DEEPEST:
        one = waiting.pop(0)
        if one is not None and not any(one is known for known in found):
            found.append(one)
            waiting += [getattr(one, name, None) for name in ("batch_sampler", "sampler")]
    return found


def generators_in(loader: object) -> dict[str, torch.Generator]:
    """Find the generators that a loader and its samplers draw from, each once, numbered."""
    found: list[torch.Generator] = []
    for part in samplers_in(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is known for known in found):
            found.append(generator)
    return {str(number): generator for number, generator in enumerate(found)}


class _Spied:
    """A sampler, and whether it was asked for more than it had: some begin anew then, as their state shows."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.over = False

    def __iter__(self) -> Iterator[Any]:
        self.over = False
        yield from self._sampler
        self.over = True


def _spell(wanted: Any) -> bytes:
    """Spell what is in a batch, the same in every process; of objects without such a spelling, only the class."""
    if isinstance(wanted, list):
        try:
            return b"q" + array("q", wanted).tobytes()
        except (TypeError, OverflowError):
            pass
    if isinstance(wanted, (list, tuple)):
        parts = [_spell(part) for part in wanted]
        return b"l%d:" % len(parts) + b"".join(b"%d:" % len(part) + part for part in parts)
    if isinstance(wanted, (bool, int, float, str, bytes, complex)) or wanted is None:
        return repr(wanted).encode("utf-8", "surrogatepass")
    if callable(listed := getattr(wanted, "tolist", None)):
        return _spell(listed())
    return type(wanted).__qualname__.encode("utf-8", "surrogatepass")
