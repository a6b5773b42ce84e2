"""Lives drawn by chance: saves, restores, prunes, failures, deaths and new processes in any order, all explored.

A few with fixed seeds in each run of the tests; as many as fit into TORCHKEEP_CRASH_HOURS in the long ones. A life
that breaks a promise is known by its seed.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from itertools import count
from random import Random

import pytest

from crash_explorer import STATES_PER_POINT, Explorer, Life, quietly
from torchkeep.archive import Retention

HOURS = float(os.environ.get("TORCHKEEP_CRASH_HOURS", "0.02"))
FIRST = int(os.environ.get("TORCHKEEP_CRASH_SEED", "1000"))
LANES = 2


class Chance:
    """A life in which chance decides what comes next."""

    def __init__(self, seed):
        self._rng = Random(seed)  # noqa: S311 - the same lives each time
        self.life = Life(name=f"s{seed}-")
        self._next = count()
        self._last = None

    def live(self, acts):
        """Do some acts, each of which may fail or be the process's last."""
        self._begin()
        choices = [self.save, self.save, self.save_again, self.prune, self.restore, self.go_back, self.reopen]
        for _ in range(acts):
            act, fate = self._rng.choice(choices), self._rng.random()
            if fate < 0.3:
                error = self._rng.choice([errno.EIO, errno.ENOSPC])
                self.life.fail(self._rng.randrange(25), error, self._rng.choice([1, 1, 2, 3, 5]))
            elif fate < 0.6:
                self.life.fail(self._rng.randrange(25))
            quietly(act)
            self.life.unused_fault()
            if self.life.is_dead or not self.life.store._lock.held:
                self._begin()
        return self.life

    def _begin(self):
        """Start a new process, which finds out where it is."""
        self.life.open()
        self.restore()

    def save(self):
        number = next(self._next)
        step = 0 if self._last is None else self._last.step + self._rng.randint(0, 2)
        self._save(step, number)

    def save_again(self):
        if self._last is not None:
            self._save(*self._last)

    def _save(self, step, number):
        metrics = {"loss": self._rng.randrange(5)} if self._rng.random() < 0.5 else None
        self.life.save(step, number, metrics=metrics)
        self._last = self._last.__class__(step, number) if self._last else self.life.restore()

    def prune(self):
        best = ("loss", self._rng.choice(["min", "max"])) if self._rng.random() < 0.3 else None
        every = self._rng.choice([None, None, 2, 3])
        self.life.prune(Retention(last=self._rng.choice([1, 1, 2, 3, None]), every=every, best=best))

    def restore(self):
        self._last = self.life.restore()

    def go_back(self):
        names = self.life.store.names()
        if names:
            self._last = self.life.restore(self._rng.choice(names).step)

    def reopen(self):
        self.life.store.close()
        self.life.open()
        if self._rng.random() < 0.5:
            self.restore()
        else:
            self._last = self._where_it_is()

    def _where_it_is(self):
        """Return what the next save must not go behind, without reading any tensor."""
        manifest = self.life.store.latest()
        return None if manifest is None else self.life.saved(manifest)


def explored(seed, limit):
    """Explore one life drawn by chance; return how many distinct states it left."""
    explorer = Explorer(seed=seed)
    try:
        explorer.explore(Chance(seed).live(12), limit=limit)
    except BaseException as error:
        error.add_note(f"This was the life with the seed {seed}, {limit} states a point.")
        raise
    return len(explorer.seen)


def explore_for_hours(lane, capfd):
    """Explore every second life while there is time, and tell now and then how far it has come."""
    until, states = time.monotonic() + HOURS * 3600, 0
    for lives, seed in enumerate(count(FIRST + lane, LANES), 1):
        states += explored(seed, min(STATES_PER_POINT, 40))
        ended = time.monotonic() > until
        if ended or lives % 100 == 0:
            with capfd.disabled():  # of pytest-xdist's processes only stderr is seen
                print(f"\n{lives} lives up to the seed {seed}: {states} states", file=sys.stderr)  # noqa: T201
        if ended:
            break
    assert states > lives


# The two that take hours stand apart: a process of pytest-xdist leaves the test after its own to no other process.
@pytest.mark.long
def test_half_of_the_lives_drawn_by_chance_for_hours(capfd):
    """The promise of the next test, for as many lives as there is time for."""
    explore_for_hours(0, capfd)


@pytest.mark.parametrize("seed", range(6))
def test_lives_drawn_by_chance_keep_the_promise(seed):
    """Whatever happened in whatever order, a restore gives the last acknowledged or the one in flight."""
    assert explored(seed, limit=8) > 100


@pytest.mark.long
def test_the_other_half_of_the_lives_drawn_by_chance_for_hours(capfd):
    """The same, for the lives between."""
    explore_for_hours(1, capfd)
