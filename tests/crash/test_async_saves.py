"""The power is cut while a save is in flight that a thread of its own copies, commits and prunes after.

Meanwhile training goes on and writes over the tensors, as soon as the gate for steps lets it: what comes back is
the state at the save, never a mixture. The states are explored as in test_power_cuts.
"""

from __future__ import annotations

import pytest
import torch

from crash_explorer import STATES_PER_POINT, Explorer, KilledError, Life, Saved, tensors_of
from torchkeep.archive import Retention
from torchkeep.errors import StorageError
from torchkeep.training.state.capturing import Captured
from torchkeep.training.state.holding import hold
from torchkeep.training.store.flights import Flights
from torchkeep.training.store.gates import closed_gates

LAST = 2


class Training(Life):
    """A life that saves in the background and prunes after each save."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.flights = None
        self._tensors = {name: torch.zeros(len(data), dtype=torch.uint8) for name, data in tensors_of(0).items()}
        self._begun = None

    def open(self):
        """Open the store; what was in flight died with the process before."""
        super().open()
        self.flights, self._begun = Flights(Retention(last=LAST)), None
        self.flights.piece = 48
        return self

    def begin(self, step, number):
        """Begin a save, and train on while it is in flight."""
        self.end()
        for name, data in tensors_of(number).items():
            self._tensors[name].copy_(
                torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0)
            )
        names = frozenset(self._tensors)
        held = {name: hold(tensor) for name, tensor in self._tensors.items()}
        captured = Captured(self._tensors, held, {}, {"number": number}, None, names - {"frozen"}, (), (), {})
        self.allowed |= {Saved(step, number)}
        self.kept = frozenset(sorted(self.kept)[-(LAST - 1) :])  # the save in flight may prune the others
        self._promise()
        pending = self.flights.save(self.store, step, captured, None, wait=False, overlap=True)
        self._begun = pending, number
        for gate in closed_gates():
            gate.wait()
        self._tensors["w"].fill_(77)
        self._tensors["long"].fill_(78)

    def end(self):
        """Wait until the save in flight is acknowledged."""
        if self._begun is None:
            return
        (pending, number), self._begun = self._begun, None
        self.flights.land()
        checkpoint = pending.result()
        self.allowed = frozenset({Saved(checkpoint.step, number)})
        self.kept = frozenset(sorted({*self.kept, (checkpoint.sequence, checkpoint.step)})[-LAST:])
        self._promise()


def flights(life):
    """Each save begins while the last one is copied, committed or pruned after."""
    life.open()
    for number in range(7):
        life.begin(number, number)
    life.end()
    yield


def deaths_in_flight(life):
    """The process dies at calls that the background thread makes; the next one restores and trains on."""
    for after in range(0, 120, 1 if STATES_PER_POINT > 40 else 13):
        again = Training(name=life.name, image={"/runs": None}).open()
        for number in range(3):
            again.begin(number, number)
        again.end()
        start = len(again.storage.journal)
        again.fail(after)
        try:
            again.begin(3, 3)
            again.begin(4, 4)
            again.end()
        except (KilledError, StorageError):
            pass
        again.flights.land()
        if again.unused_fault():
            break
        again.open()
        found = again.restore()
        again.begin(found.step, found.number)
        again.begin(5, 5)
        again.end()
        yield again, start
    else:
        raise AssertionError("there are more calls than were tried")


SCENARIOS = {flights: 1200, deaths_in_flight: 3000}
"""How many distinct states each is known to leave at least, with the usual number of states a point."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_power_cut_while_a_save_is_in_flight_leaves_a_whole_checkpoint(scenario):
    """The last acknowledged one or the one in flight, whole, whatever training wrote meanwhile."""
    explorer = Explorer()
    life = Training(name=scenario.__name__)
    for found in scenario(life):
        explorer.explore(*(found or (life,)))
    assert len(explorer.seen) >= SCENARIOS[scenario] * min(STATES_PER_POINT, 40) // 40


def test_training_that_writes_before_its_gate_lets_it_is_found_out(monkeypatch):
    """The explorer sees a torn snapshot: without the gates and the counts of changes, a mixture comes back."""
    from torchkeep.training.store import snapshots

    monkeypatch.setattr(snapshots.Snapshot, "let_pass", lambda _: None)
    monkeypatch.setattr(snapshots.Snapshot, "_changed", lambda _: [])
    monkeypatch.setattr(snapshots.Snapshot, "_compare_samples", lambda _: None)
    life = Training(name="torn").open()
    life.flights.before_copy = lambda: life._tensors["long"].fill_(78)
    life.begin(0, 0)
    life.end()
    with pytest.raises(AssertionError, match="a mixture"):
        life.restore()
