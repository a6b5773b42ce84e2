"""How long it takes to list the tensors of a file, from the start of the interpreter to its end.

``torchkeep show`` on files of 20,000 tensors, one where nothing folds and one of equal blocks, beside what the
machine allows at best (starting Python, reading the header with the standard library) and beside the peer, the
reader of safetensors. Each line is the median of 9 runs; the runs of all lines are interleaved. Output goes to
/dev/null. The last lines fold rows in this process.

    python benchmarks/bench_listing.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import save_file

import torchkeep as tk
from torchkeep.rows import Row
from torchkeep.rows.folding import fold
from torchkeep.rows.text import table

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 9
TENSORS = 20_000
LEAVES = [
    f"{part}.{leaf}" for part in ("attn.q", "attn.k", "attn.v", "attn.out", "norm") for leaf in ("weight", "bias")
]

SAFETENSORS = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as file:
    for name in file.keys():
        print(name)
"""
SAFETENSORS_SHAPES = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as file:
    for name in file.keys():
        found = file.get_slice(name)
        print(name, found.get_dtype(), found.get_shape())
"""
HEADER = """
import json, sys
with open(sys.argv[1], "rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
print("\\n".join(f"{name} {entry['dtype']} {entry['shape']}" for name, entry in header.items()))
"""


def files(folder: Path) -> tuple[str, str, str]:
    """Write a file where nothing folds, one where everything does, and the first as `tk.save` writes it."""
    flat, blocks, ours = (str(folder / f"{name}.safetensors") for name in ("flat", "blocks", "ours"))
    tensors = {f"part_{i % 97}.thing_{i}.weight": np.zeros(1 + i % 61, np.float32) for i in range(TENSORS)}
    save_file(tensors, flat)
    tk.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, ours)
    numbers = range(TENSORS // len(LEAVES))
    save_file({f"layers.{i}.{leaf}": np.zeros(4, np.float32) for i in numbers for leaf in LEAVES}, blocks)
    return flat, blocks, ours


def child(*arguments: str) -> Callable[[], object]:
    """Return what runs Python in a process of its own and waits for its end."""
    command = [sys.executable, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)


def folding(names: list[str]) -> Callable[[], object]:
    """Return what folds rows of these names in this process."""
    rows = [Row(name, (64, 64), "float32") for name in names]
    return lambda: fold(rows)


def cases(flat: str, blocks: str, ours: str) -> dict[str, tuple[Callable[[], object], str]]:
    """Return what is measured, and in words what is promised of it."""
    show = ("-m", "torchkeep", "show")
    layers = [f"model.layers.{i}.{leaf}" for i in range(10_000) for leaf in LEAVES]
    return {
        "python -c pass": (child("-c", "pass"), "the machine's limit"),
        "import torchkeep": (child("-c", "import torchkeep"), "under 60 ms"),
        "import safetensors": (child("-c", "import safetensors"), "peer"),
        "import torch": (child("-c", "import torch"), "what listing does without"),
        "torchkeep show, nothing folds": (child(*show, flat), "under 350 ms"),
        "torchkeep show, saved by tk.save": (child(*show, ours), "under 350 ms"),
        "torchkeep show, all folds": (child(*show, blocks), "under 350 ms"),
        "torchkeep show --json": (child(*show, flat, "--json"), ""),
        "torchkeep show '**.weight'": (child(*show, flat, "**.weight"), ""),
        "safetensors: names only": (child("-c", SAFETENSORS, flat), "peer"),
        "safetensors: names, dtypes, shapes": (child("-c", SAFETENSORS_SHAPES, flat), "peer"),
        "json: names, dtypes, shapes": (child("-c", HEADER, flat), "the machine's limit, unchecked"),
        "fold 100,000 rows of blocks": (folding(layers), "under 500 ms"),
        "fold 100,000 rows, nothing folds": (
            folding([f"part.thing_{i}.w" for i in range(100_000)]),
            "under 500 ms",
        ),
    }


def main() -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        measured = cases(*files(Path(folder)))
        seconds: dict[str, list[float]] = {name: [] for name in measured}
        for run, _ in measured.values():  # once for the file system's cache and the bytecode
            run()
        for _ in range(ROUNDS):
            for name, (run, _) in measured.items():
                start = perf_counter()
                run()
                seconds[name].append(perf_counter() - start)
    lines = [
        (name, f"{median(found) * 1e3:.0f}", f"{min(found) * 1e3:.0f}", measured[name][1])
        for name, found in seconds.items()
    ]
    print(table(("20,000 tensors", "median ms", "least ms", ""), lines, "<>><"))


if __name__ == "__main__":
    main()
