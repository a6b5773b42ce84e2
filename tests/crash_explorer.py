"""Run a store, cut the power at every point in every way, and see what a restore then gives."""

from __future__ import annotations

import os
from contextlib import suppress
from ctypes import memmove
from random import Random
from threading import Thread
from typing import NamedTuple

from archive_states import CHUNK, ROOT, content, state, writer
from power_cuts import Disk
from torchkeep.archive import Archive, Retention, TensorBytes, Writer, verify
from torchkeep.errors import StorageError
from torchkeep.formats.opening import refused
from torchkeep.storage.memory import MemoryStorage

STATES_PER_POINT = int(os.environ.get("TORCHKEEP_CRASH_STATES", "40"))
QUIET = f"{ROOT}/staging"


class KilledError(BaseException):
    """The process is dead: nothing that it still tries is done."""


class Saved(NamedTuple):
    """A checkpoint as it should come back."""

    step: int
    number: int


class Expected(NamedTuple):
    """What must hold after a power cut.

    Attributes:
        position: from which length of the journal on.
        allowed: what a restore may give.
        kept: names (sequence, step) of checkpoints that must be there.
    """

    position: int
    allowed: frozenset
    kept: frozenset


def tensors_of(number):
    """Return the state with a number: one tensor never changes, one always, of a long one some piece does."""
    long = bytearray(b"-" * (4 * CHUNK))
    long[number * 37 % len(long)] = number % 251
    return {"frozen": b"f" * (2 * CHUNK), "w": bytes([number % 251]) * 40, "long": bytes(long), "none": b""}


class Life:
    """A storage, the writer on it, and what is promised at each moment.

    Args:
        kind: the writer's class.
        name: what ids begin with.
        image: what the disk holds at first.
        expected: what must hold of that.
    """

    def __init__(self, kind=Writer, name="id", image=None, expected=None):
        self.storage = MemoryStorage({"/runs": None} if image is None else image, self._called)
        self.disk = Disk(self.storage, QUIET)
        self.expected = []
        self.calls = []
        self.store = None
        self.name = name
        self._kind, self._sessions = kind, 0
        self._fault = None
        self._struck = False
        self._dead = False
        self.allowed = expected.allowed if expected else frozenset({None})
        self.kept = expected.kept if expected else frozenset()
        self._promise()

    def _called(self, call, path):
        if self._dead:
            raise KilledError
        self.calls.append((call, path))
        if self._fault is None:
            return
        at, error, until = self._fault
        if len(self.calls) - 1 >= at:
            self._fault = (at, error, until) if len(self.calls) < until else None
            self._struck = True
            if error is KilledError:
                self._dead = True
                raise KilledError
            cause = OSError(error, os.strerror(error), path)
            raise refused(cause, call, path) from cause

    def _promise(self):
        self.expected.append(Expected(len(self.storage.journal), self.allowed, self.kept))

    def fail(self, after, error=KilledError, times=1):
        """Let the process die, or some calls fail, ``after`` more calls."""
        at = len(self.calls) + after
        self._fault, self._struck = (at, error, at + times), False

    def unused_fault(self):
        """Tell whether a fault has not come yet, and forget it."""
        self._fault = None
        return not self._struck

    @property
    def is_dead(self):
        """Whether the process was killed."""
        return self._dead

    @staticmethod
    def saved(manifest):
        """Return what a checkpoint is a save of."""
        return Saved(manifest.step, manifest.tree["number"])

    def open(self):
        """Open the store, after a death as a new process does."""
        self._dead = False
        self.storage.revive()
        self._sessions += 1
        self.store = writer(self.storage, kind=self._kind, prefix=f"{self.name}{self._sessions}-")
        return self

    def restore(self, step=None):
        """Restore; what it gives is what the run goes on from, and may not vanish any more."""
        found = restored_by(self.store, step)
        if step is None:
            assert found in self.allowed, f"lost: {found} came back, not one of {set(self.allowed)}"
            self.allowed = frozenset({found})
            self._promise()
        return found

    def save(self, step, number, meanwhile=None, **options):
        """Save a state; until it is acknowledged, it may be there or not.

        With ``meanwhile``, a prune by these rules is asked for as soon as the first byte is copied.
        """
        saved, before = Saved(step, number), self.allowed
        self.allowed = before | {saved}
        self._promise()
        tensors, pruning = state(**tensors_of(number)), None
        if meanwhile is not None:
            pruning = Thread(target=self.store.prune, args=(meanwhile,))
            tensors["slow"] = TensorBytes.whole("uint8", (4,), self._starting(pruning, number))
        manifest = self.store.commit(step, tensors, tree={"number": number}, **options)
        if pruning is not None:
            pruning.join()
        self.allowed, self.kept = frozenset({saved}), self.kept | {(manifest.sequence, step)}
        self._promise()
        return manifest

    def _starting(self, thread, number):
        def copy(start, nbytes, address):
            if not thread.ident:
                self.kept = frozenset()  # what is in flight may push any other out
                self._promise()
                thread.start()
            memmove(address, bytes([number] * 4)[start:], nbytes)

        return copy

    def prune(self, retention):
        """Prune; what goes may be there or not from now on."""
        kept = retention.kept(self.store.summaries())
        self.kept = frozenset(name for name in self.kept if name[0] in kept)
        self._promise()
        report = self.store.prune(retention)
        self._promise()
        return report


def restored_by(store, step=None):
    """Restore, compare every byte, and return what it was; None where there is no checkpoint."""
    got = []

    def load(manifest):
        number = manifest.tree["number"]
        slow = {"slow": bytes([number] * 4)} if "slow" in manifest.tensors else {}
        assert content(store, manifest) == {**tensors_of(number), **slow}, "a mixture"
        got.append(Saved(manifest.step, number))

    restored = store.restore(load, step)
    assert restored is None or not restored.skipped, f"damaged: {restored.skipped}"
    return got[-1] if got else None


class Explorer:
    """Cuts the power of lives.

    Attributes:
        seen: the states that were tried.
    """

    def __init__(self, kind=Writer, seed=0):
        self.seen = set()
        self._kind, self._rng = kind, Random(seed)  # noqa: S311 - the same states each time

    def explore(self, life, start=0, limit=STATES_PER_POINT):
        """Cut the power at every point of a life from ``start`` of its journal on."""
        marks = list(life.expected)
        current = marks.pop(0)
        for position in range(len(life.storage.journal) + 1):
            if position:
                life.disk.follow(life.storage.journal[position - 1])
            while marks and marks[0].position <= position:
                current = marks.pop(0)
            if position < start:
                continue
            for image in life.disk.cuts(self._rng, limit):
                key = hash((frozenset(image.items()), current.allowed, current.kept))
                if key not in self.seen:
                    self.seen.add(key)
                    self.survive(image, current)

    def survive(self, image, expected):
        """Open, restore, verify, save again, prune, and cut the power once more."""
        life = Life(self._kind, "r", image, expected).open()
        found = life.restore()
        self._check(life, expected.kept)
        life.save(found.step + 1 if found else 0, 1000)
        life.prune(Retention(last=1))
        self._check(life, life.kept)
        self._once_more(life)

    def _check(self, life, kept):
        names = life.store.names()
        assert {name[:2] for name in names} >= kept, f"lost: of {set(kept)} only {names} are there"
        report = verify(life.store, names)
        assert report.ok, f"damaged: {report.damage}"

    def _once_more(self, life):
        position = self._rng.randint(0, len(life.storage.journal))
        for step in life.storage.journal[:position]:
            life.disk.follow(step)
        expected = [mark for mark in life.expected if mark.position <= position][-1]
        image = life.disk.cut(self._rng)
        again = Life(self._kind, "s", image, expected).open()
        again.restore()
        self._check(again, expected.kept)


def reader(life):
    """Open a life's store for reading."""
    return Archive(life.storage, ROOT)


def quietly(call, *args, **options):
    """Do something that a fault may end."""
    with suppress(KilledError, StorageError):
        call(*args, **options)
