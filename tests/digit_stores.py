"""A store of a small run, and the command line on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kept_states import commit
from torchkeep.archive import Archive, Retention, Writer
from torchkeep.archive.locating import locate
from torchkeep.cli import main
from torchkeep.storage.local_folders import LOCAL_FOLDERS

LOSSES = {1000: 0.5, 1500: 0.25, 2000: 0.75, 2500: float("nan")}


def net(step):
    """Return a model that tells the step in each parameter; the buffers are the same in all."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(step)
    return model


def make(root, losses, *, rule=("loss", "min"), clock=lambda: 1.5e9):
    """Make a store with a checkpoint for each loss, by step."""
    with Writer(LOCAL_FOLDERS, str(root), retention=Retention(best=rule), clock=clock) as writer:
        for step, loss in losses.items():
            state = {"model": net(step), "optimizer": {"state": {"0.bias": {"exp_avg": torch.full((3,), step)}}}}
            commit(writer, step, state, metrics={"loss": loss, "note": "x" * (step == 1000)})
    return str(root)


def answer(capsys, *arguments):
    """Run a command; return its exit code, what it wrote, and what it complained of."""
    code = main(list(map(str, arguments)))
    written = capsys.readouterr()
    return code, written.out, written.err


def flip(path, at):
    """Flip a bit in a byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage(root, step, tensor):
    """Flip a bit in a tensor of a checkpoint; return the file and the first byte of its piece."""
    located = locate(f"{root}@{step}")
    piece = located.manifest.tensors[tensor].pieces[0]
    path = Path(located.archive.pack_path(located.manifest.body.packs[piece.pack].id))
    flip(path, piece.start)
    return path, piece.start


def steps(root):
    """Return the steps of all checkpoints in a store."""
    return [name.step for name in Archive.open(LOCAL_FOLDERS, str(root)).names()]
