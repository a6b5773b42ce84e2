"""A run whose loop writes to parameters outside of an optimizer's steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from stored_runs import paused
from torchkeep.errors import StoreError


def shift(net):
    """Write to a parameter as no step does, and return what it was before."""
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    return before


def make(folder, **how):
    """A run that saves after each step."""
    net = nn.Linear(4, 4)
    store = tk.CheckpointStore(folder, retention=tk.Retention(last=None))
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    return tk.Run(store, state, every=1, progress=False, **how)


def torn(run, pause):
    """Write to a parameter while the first save copies it."""
    for _ in run.batches([1, 2, 3], steps=3):
        if run.step == 1:
            pause.wait()
            shift(run.state.model)
            pause.go.set()


def test_a_write_outside_of_a_step_fails_the_save_and_tells_what_to_give_the_run(tmp_path):
    """By default the copy is made while the loop goes on, and the write tears it."""
    run = make(tmp_path / "store")
    with paused(run.store) as pause, pytest.raises(StoreError, match=r"step while .*Run\(\.\.\., overlap=False\)"):
        torn(run, pause)
    run.store.close()


def test_without_overlap_each_save_holds_what_was_there_at_the_steps_end(tmp_path):
    """All is copied before the next batch: nothing is left that the background could copy too late."""
    run, seen = make(tmp_path / "store", overlap=False), []
    with paused(run.store) as pause:
        seen += [shift(run.state.model) for _ in run.batches([1, 2, 3], steps=3)]
        assert not pause.reached.is_set()
    seen.append(run.state.model.weight.detach())
    for checkpoint in run.store.checkpoints():
        assert torch.equal(checkpoint["model.weight"], seen[checkpoint.step])
    assert [checkpoint.step for checkpoint in run.store.checkpoints()] == [1, 2, 3]
    run.store.close()
