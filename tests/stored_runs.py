"""Runs that are saved into stores, for the tests of `CheckpointStore`."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event

import torch
from torch import nn

import torchkeep as tk
from torchkeep.training.state.capturing import capture

WAIT = 60.0
"""Seconds after which a test that waits for something gives up."""


class Average:
    """A moving average that is updated in place outside of any step, as EMA classes do."""

    def __init__(self, net):
        self.shadow = {name: value.detach().clone() for name, value in net.named_parameters()}

    def update(self, net):
        with torch.no_grad():
            for name, value in net.named_parameters():
                self.shadow[name].lerp_(value, 0.5)

    def state_dict(self):
        return dict(self.shadow)

    def load_state_dict(self, state):
        for name, value in state.items():
            self.shadow[name].copy_(value)


def a_run(seed=0, width=16, make=torch.optim.AdamW, **parts):
    """Return a state with a net, its optimizer, which has taken a step, and an average."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width))
    state = tk.TrainingState(model=net, optimizer=make(net.parameters(), lr=0.01), ema=Average(net), **parts)
    train(state)
    return state


def train(state, steps=1):
    """Take steps."""
    width = state.model[0].in_features
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.randn(4, width)).square().mean().backward()
        state.optimizer.step()
        state.ema.update(state.model)


def bits(state):
    """Return copies of all tensors of a state, as bytes, by name."""
    return {name: bytes_of(tensor) for name, tensor in capture(state).tensors.items()}


def bits_of(checkpoint):
    """Return all tensors of a checkpoint, as bytes, by name."""
    found = checkpoint.read(list(checkpoint.manifest.tensors))
    return {name: bytes_of(tensor) for name, tensor in found.items()}


def bytes_of(tensor):
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


class Pause:
    """Stops the background copy of a store before the pieces that are chosen, until it is let go.

    Args:
        store: the store.
        at: number of the piece, from 0 on.
        piece: bytes that are copied at once.
    """

    def __init__(self, store, at=0, piece=64):
        self.reached, self.go = Event(), Event()
        self._left = at
        store._flights.piece, store._flights.before_copy = piece, self._stop

    def _stop(self):
        self._left -= 1
        if self._left < 0 and not self.go.is_set():
            self.reached.set()
            assert self.go.wait(WAIT), "nobody let the copy go on"

    def wait(self):
        """Wait until the copy has stopped."""
        assert self.reached.wait(WAIT), "the copy never came there"


@contextmanager
def paused(store, at=0, piece=64):
    """Hold the copy of the next save; it goes on at the end of the block at the latest."""
    pause = Pause(store, at, piece)
    try:
        yield pause
    finally:
        pause.go.set()
