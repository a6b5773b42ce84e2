"""After a power cut at any instant, a restore gives the last acknowledged checkpoint or the one in flight, whole.

Each scenario is run once in memory; then the power is cut at every point of its journal, in every way or in many
(`power_cuts`), and a new process takes over (`crash_explorer`). TORCHKEEP_CRASH_STATES sets how many ways a point.
"""

from __future__ import annotations

import errno

import pytest

from crash_explorer import STATES_PER_POINT, Explorer, Life, quietly
from torchkeep.archive import Retention

LAST = Retention(last=2)


def saves(life):
    """A store is made and written to; pieces are reused, and packs that are half dead given up."""
    life.open()
    for number in range(5):
        life.save(number, number)
    life.save(5, 4)
    yield


def prunes(life):
    """Saves and prunes take turns, under each rule of retention."""
    life.open()
    for number in range(8):
        life.save(number, number, metrics={"loss": (number * 5) % 7})
        if number % 2:
            life.prune(Retention(last=1 + number % 3, every=3, best=("loss", "min")))
    yield


def reopenings(life):
    """Each save is made by a new process, some without a restore; some save what is there already."""
    for number in range(5):
        life.open()
        if number % 2:
            life.restore()
        life.save(number, number)
        life.save(number, number)
        if number == 3:
            life.prune(LAST)
        life.store.close()
    yield


def second_lines(life):
    """After a restore of an older step its successors are written again, and pruned around."""
    life.open()
    for number in range(4):
        life.save(number, number)
    assert life.restore(1).number == 1
    life.prune(LAST)
    life.save(1, 1)
    for number in range(2, 5):
        life.save(number, 10 + number)
    life.prune(LAST)
    assert life.restore(3).number == 13
    life.save(3, 14)
    life.prune(Retention(last=1))
    yield


def metrics(life):
    """A state is saved again at its step, with metrics, with others, and changed."""
    life.open()
    life.save(1, 1)
    life.save(1, 1, metrics={"loss": 1.0})
    life.save(1, 1, metrics={"loss": 0.5})
    life.save(1, 2)
    life.prune(Retention(last=1, best=("loss", "min")))
    yield


def automatic_prunes(life):
    """Each save is followed by a prune, as a store with a retention does it; one state is saved twice."""
    rules = Retention(last=2, every=4, best=("loss", "min"))
    life.open()
    for number in range(7):
        life.save(number, number, metrics={"loss": (number * 3) % 5})
        life.prune(rules)
    life.save(6, 6, metrics={"loss": -1})
    life.prune(rules)
    yield


def prunes_in_flight(life):
    """A prune is asked for while a save copies its bytes, each time; it waits, and then removes what it may."""
    life.open()
    for number in range(6):
        life.save(number, number, meanwhile=Retention(last=1 + number % 2))
    yield


def deaths_while_made(life):
    """The process dies at each call of making the store and of the first save; another one takes over."""
    yield from _deaths(life, lambda again: quietly(lambda: again.open().save(1, 1)), lambda _: None, 60)


def deaths_while_saving(life):
    """The process dies at each call of a save, and the next one saves the same bits again."""

    def first(again):
        again.open()
        again.save(1, 1)
        again.save(2, 2)

    yield from _deaths(life, lambda again: quietly(again.save, 3, 3), first, 30)


def deaths_while_pruning(life):
    """The process dies at each call of a prune, and the next one goes on and prunes again."""

    def first(again):
        again.open()
        for number in range(4):
            again.save(number, number)

    yield from _deaths(life, lambda again: quietly(again.prune, Retention(last=1)), first, 30)


def failures_while_saving(life):
    """Each call of a save fails in turn, of a broken or a full disk; the process restores, saves and prunes on."""
    for error in (errno.EIO, errno.ENOSPC):
        for after in range(30):
            again = Life(name=life.name, image={"/runs": None})
            again.open()
            again.save(1, 1)
            start = len(again.storage.journal)
            again.fail(after, error)
            quietly(again.save, 2, 2)
            if not again.unused_fault():
                again.restore()
                again.save(2, 3)
                again.prune(Retention(last=1))
                yield again, start


def _deaths(life, doomed, first, most):
    """Let a process die after 0, 1, 2... calls; the next restores, saves the same again and prunes."""
    for after in range(most):
        again = Life(name=life.name, image={"/runs": None})
        first(again)
        start = len(again.storage.journal)
        again.fail(after)
        doomed(again)
        if again.unused_fault():
            break
        again.open()
        found = again.restore()
        again.save(found.step if found else 1, found.number if found else 1)
        again.save(3, 3)
        again.prune(LAST)
        yield again, start
    else:
        raise AssertionError("there are more calls than were tried")


SCENARIOS = {
    saves: 1000,
    prunes: 2000,
    reopenings: 1500,
    second_lines: 2000,
    metrics: 300,
    automatic_prunes: 1800,
    prunes_in_flight: 700,
    deaths_while_made: 2500,
    deaths_while_saving: 5000,
    deaths_while_pruning: 4000,
    failures_while_saving: 2000,
}
"""How many distinct states each is known to leave at least, with the usual number of states a point."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_power_cut_leaves_a_whole_checkpoint(scenario):
    """The last acknowledged one or the one in flight, whole; what was kept is there; and the run goes on."""
    explorer = Explorer()
    life = Life(name=scenario.__name__)
    for found in scenario(life):
        explorer.explore(*(found or (life,)))
    assert len(explorer.seen) >= SCENARIOS[scenario] * min(STATES_PER_POINT, 40) // 40


def test_the_scenarios_leave_twenty_thousand_states():
    """The numbers above promise it; each scenario names its files differently, so no state counts twice."""
    assert sum(SCENARIOS.values()) >= 20_000
