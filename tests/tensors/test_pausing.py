"""The garbage collector is as it was after a save, a load or a plan, however they end."""

from __future__ import annotations

import gc
import os
from threading import Event, Thread

import pytest
import torch

import torchkeep as tk
from forks import child_ends_well, in_own_process
from torchkeep.tensors.pausing import without_collections


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was(tmp_path, on):
    """On stays on and off stays off, after success and after an error."""

    def unclaimed():
        tk.init.plan(torch.nn.Linear(1, 1), {"weight": tk.init.zeros()})

    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() is on
        tk.save([torch.ones(1)], tmp_path / "file")
        tk.load(tmp_path / "file")
        tk.init.plan(torch.nn.Linear(1, 1), {"**": tk.init.zeros()})
        for failing in (lambda: tk.save(len, tmp_path / "file"), lambda: tk.load(tmp_path / "none"), unclaimed):
            with pytest.raises(tk.TorchkeepError):
                failing()
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()


def fork_while_a_thread_holds_it():
    held, go = Event(), Event()

    def hold():
        with without_collections():
            held.set()
            assert go.wait(60)

    def see_it_on():
        assert gc.isenabled()
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled()

    thread = Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert child_ends_well(see_it_on)
        assert not gc.isenabled()
    finally:
        go.set()
        thread.join()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_collects_garbage():
    """Although it was forked while another thread, one that saves say, held that, and is not there to end it."""
    in_own_process(fork_while_a_thread_holds_it)
