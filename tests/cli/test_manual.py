"""docs/cli.md shows what the command prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import torchkeep as tk
from torchkeep import __version__
from torchkeep.cli import commands, endings

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
    return folder


@pytest.mark.parametrize(("command", "expected"), SESSIONS, ids=[command for command, _ in SESSIONS])
def test_the_manual_shows_what_is_printed(folder, command, expected):
    """Each session in the manual, typed into a shell, prints exactly what stands there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
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
