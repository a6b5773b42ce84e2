"""docs/cli.md shows what the command prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import torchkeep as tk
from archive_states import steady_ids
from kept_states import commit
from torchkeep import __version__
from torchkeep.archive import Retention, Writer
from torchkeep.cli import commands, endings
from torchkeep.storage.local_folders import LOCAL_FOLDERS

MANUAL = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
SESSIONS = re.findall(r"^```console\n\$ ([^\n]*)\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the manual's model."""
    folder = tmp_path_factory.mktemp("manual")
    sizes = {"attn.weight": (2304, 768), "attn.bias": (2304,), "mlp.weight": (3072, 768)}
    tensors = {f"layers.{i}.{leaf}": np.zeros(size, np.float16) for i in range(12) for leaf, size in sizes.items()}
    tensors |= {"embed.weight": np.zeros((50257, 768), np.float16), "head 1.bias": np.zeros(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    net = {"embed.weight": torch.ones(64, 4), "head.weight": torch.ones(3, 4), "head.bias": torch.zeros(3)}
    tk.save(net, folder / "net.safetensors")
    net["head.weight"][0, 0] = 3
    tk.save({**net, "head.bias": torch.zeros(3).half(), "scale": torch.ones(1)}, folder / "later.safetensors")
    data = bytearray((folder / "net.safetensors").read_bytes())
    data[4100] ^= 1
    (folder / "damaged.safetensors").write_bytes(data)
    make_run(folder / "runs" / "digits")
    make_run(folder / "runs" / "rotten")
    pack = folder / "runs" / "rotten" / "packs" / "id4.safetensors"
    data = bytearray(pack.read_bytes())
    data[-2000] ^= 1
    pack.write_bytes(data)
    return folder


def make_run(root):
    """Make the manual's store: a classifier of digits after 1000, 1500 and 2000 steps."""
    net, times = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10)), count(1_760_000_000, 300)
    settings = {"ids": steady_ids(), "clock": times.__next__, "retention": Retention(best=("loss", "min"))}
    with Writer(LOCAL_FOLDERS, str(root), **settings) as writer:
        for step, loss, accuracy in ((1000, 0.31, 0.904), (1500, 0.1875, 0.95), (2000, 0.25, 0.9375)):
            with torch.no_grad():
                for tensor in net.parameters():
                    tensor.fill_(0.25)
                net[0].weight.fill_(step / 1000)
                net[2].weight.fill_(-step / 1000).view(-1)[0] = 0.5
            moments = {name: {"exp_avg": torch.full_like(one, 1e-3)} for name, one in net[:1].named_parameters()}
            metrics = {"loss": loss, "accuracy": accuracy}
            commit(writer, step, {"model": net, "optimizer": {"state": moments, "lr": 0.001}}, metrics=metrics)


@pytest.mark.parametrize(("command", "expected"), SESSIONS, ids=[command for command, _ in SESSIONS])
def test_the_manual_shows_what_is_printed(folder, command, expected):
    """Each session in the manual, typed into a shell, prints exactly what stands there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "TZ": "UTC"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.stdout == re.sub(r'(?<="torchkeep":)"[^"]*"', f'"{__version__}"', expected)


def test_the_manual_lists_every_exit_code():
    """Each exit code that the command line knows stands in the manual and in its help."""
    codes = {value for value in vars(endings).values() if isinstance(value, int)}
    for text in (MANUAL.partition("## Exit codes")[2], commands.EXIT_CODES):
        assert {int(found) for found in re.findall(r"(?:^\| |^  |  )(\d+) ", text, re.MULTILINE)} == codes
