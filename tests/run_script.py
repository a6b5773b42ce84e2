"""A training script that tests start, kill and start again: ``run_script.py STORE WORKERS PERSISTENT STEPS``.

It prints a line for each step, ``STEP DIGEST`` of batch and loss, and at the end ``end DIGEST`` of all that a
run must bring back. Where the environment has DIE, it kills itself: ``batch:N`` when it has batch N in hand,
``call:N`` at the N-th change that saves make to the disk. With ``wait:N`` it waits in step N for a line, and
tells which workers died.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from hashlib import blake2b
from multiprocessing import connection

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import torchkeep as tk
from torchkeep.storage.local_folders import LocalFolders

DIE, *WHEN = os.environ.get("DIE", "never").split(":")


class Augmented(Dataset):
    """Samples with noise from every global generator."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        shift = random.random() + np.random.rand()  # noqa: NPY002, S311 - the global ones, on purpose
        return torch.full((4,), index / 50) + 0.1 * torch.randn(4) + shift, index % 3


class Doomed(LocalFolders):
    """The disk, until the end."""

    left = int(WHEN[0]) if DIE == "call" else -1

    def __getattribute__(self, name):
        if name in {"create", "rename", "remove", "sync_directory"}:
            Doomed.left -= 1
            if Doomed.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


def digest(*values):
    """Spell tensors and plain values in a few letters."""
    told = blake2b(digest_size=8)
    for value in values:
        told.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return told.hexdigest()


def flat(value):
    """Yield the leaves of nested dicts, lists and tuples."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    else:
        yield value


def tell(*words):
    """Print a line, whole or not at all."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def main():
    """Train, a step at a time."""
    where, workers, persistent, steps = (
        sys.argv[1],
        int(sys.argv[2]),
        sys.argv[3] == "persistent",
        int(sys.argv[4]),
    )
    torch.set_num_threads(1)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002 - the global one
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9)
    loader = DataLoader(Augmented(), 8, shuffle=True, num_workers=workers, persistent_workers=persistent)
    checking = DataLoader(Augmented(), 16, shuffle=True)
    store = tk.CheckpointStore(where, storage=Doomed())
    run = tk.Run(store, tk.TrainingState(model=net, optimizer=optimizer, scheduler=scheduler), every=4)
    with store:
        for values, labels in run.batches(loader, steps=steps):
            if DIE == "batch" and run.step == int(WHEN[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            loss = nn.functional.cross_entropy(net(values + 0.1 * torch.randn(4) + 0.1 * random.random()), labels)  # noqa: S311 - same
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.record(loss=loss)
            if run.step % 10 == 0:
                np.random.rand(len(next(iter(checking))))  # noqa: NPY002 - same
            tell(run.step, digest(values, labels, loss.detach()))
            if DIE == "wait" and run.step == int(WHEN[0]):
                tell("waiting", run.step)
                sys.stdin.readline()
                workers = [worker.sentinel for worker in multiprocessing.active_children()]
                tell("died", len(connection.wait(workers, timeout=1)) if workers else 0)
    everything = [net.state_dict(), optimizer.state_dict(), scheduler.state_dict()]
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()]  # noqa: NPY002 - same
    tell("end", digest(*flat(everything), *flat(states)))


if __name__ == "__main__":
    main()
