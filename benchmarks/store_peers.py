"""What `bench_store` measures: states that are trained, and the peers that save them."""

from __future__ import annotations

import os
import shutil
from time import perf_counter

import torch
import torch.distributed.checkpoint as dcp
from machine import at_limit, nothing, sync
from moonclip import CheckpointManager
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import torchkeep as tk

WRITE = os.O_WRONLY | os.O_CREAT


def touch(net):
    """Change every element, so that nothing is reused."""
    with torch.no_grad():
        torch._foreach_add_(list(net.parameters()), 1.0)  # a loop over many small ones takes seconds


def moonclip(folder, **options):
    """Open the peer, keeping three."""
    return CheckpointManager(
        str(folder),
        compression_level=0,
        max_full_snapshots=3,
        full_every_steps=1,
        max_total_snapshots=3,
        **options,
    )


def clear(folder):
    """Remove what a peer wrote, outside of the clock: only some of them prune."""
    shutil.rmtree(folder, ignore_errors=True)


def save_cases(folder, net, size, *, limit):
    """Return what saves a module durably."""
    step = iter(range(10**9))
    store, peer = tk.CheckpointStore(folder / "store"), moonclip(folder / "moonclip", async_save=False)
    state, bare = tk.TrainingState(model=net), tk.CheckpointStore(folder / "bare")

    def torch_save():
        torch.save(net.state_dict(), folder / "pickled")
        sync(folder / "pickled")

    def safetensors():
        save_file(net.state_dict(), folder / "theirs")
        sync(folder / "theirs")

    cases = {
        "limit (O_DIRECT, sync)": (nothing, lambda: at_limit(folder / "raw", size, WRITE, os.pwrite)),
        "limit, into a new file": (
            lambda: (folder / "new").unlink(missing_ok=True),
            lambda: at_limit(folder / "new", size, WRITE, os.pwrite),
        ),
        "torchkeep, wait=True": (lambda: touch(net), lambda: store.save(next(step), state, wait=True)),
        "torchkeep, a bare module": (lambda: touch(net), lambda: bare.save(next(step), net, wait=True)),
        "torch.save, then sync": (nothing, torch_save),
        "safetensors, then sync": (nothing, safetensors),
        "DCP save (no directory sync)": (
            lambda: clear(folder / "dcp"),
            lambda: dcp.save(net.state_dict(), checkpoint_id=folder / "dcp"),
        ),
        "moonclip (syncs all)": (lambda: touch(net), lambda: peer.save(next(step), net)),
    }
    if not limit:
        cases = {name: case for name, case in cases.items() if not name.startswith("limit")}
    return cases, (store, bare)


class Loop:
    """A training loop in which parameters and Adam's moments take so many bytes.

    Attributes:
        size: these bytes.
    """

    width = 2048

    def __init__(self, nbytes):
        layers = max(1, nbytes // (3 * 4 * self.width**2))
        self.net = nn.Sequential(*[nn.Linear(self.width, self.width, bias=False) for _ in range(layers)])
        self.optimizer = torch.optim.Adam(self.net.parameters(), foreach=True)
        self.state = tk.TrainingState(model=self.net, optimizer=self.optimizer)
        self.size = 3 * sum(parameter.nbytes for parameter in self.net.parameters())
        self.batch = torch.randn(256, self.width)
        self.step()

    def step(self):
        """Take one step."""
        self.optimizer.zero_grad()
        self.net(self.batch).square().mean().backward()
        self.optimizer.step()

    def plain(self):
        """Return everything as the peers take it."""
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}


class Waits:
    """Seconds spent in the hooks that are registered between its two."""

    def __init__(self):
        self.seconds, self._begin = 0.0, 0.0
        register_optimizer_step_pre_hook(self._enter)

    def _enter(self, *_):
        self._begin = perf_counter()

    def end(self):
        """Register the second hook."""
        register_optimizer_step_pre_hook(self._leave)

    def _leave(self, *_):
        self.seconds += perf_counter() - self._begin
