"""How long `tk.check` takes, with every check that is not opt-in: from a small MLP to 10 million parameters.

Beside it stands the machine's limit: one training step (forward and backward) of the same layer, and how many such
steps the checks are worth. Each of these numbers is the least of some runs, since others only add to it. The last
line is every configuration of PyTorch's own modules (`module_db`), shared out to two processes; it takes a
minute, and `--short` leaves it out. Below stand the slowest checks of the largest model, and the machine's load.

    python benchmarks/bench_checks.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import torch
from torch import nn

import torchkeep as tk
from torchkeep.rows.text import table

if TYPE_CHECKING:
    from collections.abc import Callable


def transformer() -> nn.Module:
    """Make an encoder of about ten million parameters."""
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


def cases() -> dict[str, tuple[Callable[[], nn.Module], torch.Tensor, int, str]]:
    """Return what is checked: factory, input, runs, and what is promised."""
    return {
        "MLP 20-64-64-3": (
            lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
            torch.randn(2, 20),
            5,
            "under 1 s",
        ),
        "convolutions, batch norm, dropout": (
            lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout()),
            torch.randn(4, 3, 16, 16),
            3,
            "",
        ),
        "LSTM, 2 layers": (lambda: nn.LSTM(32, 64, 2, batch_first=True), torch.randn(2, 10, 32), 3, ""),
        "MLP of 10 million": (
            lambda: nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1400)),
            torch.randn(2, 1024),
            1,
            "under 30 s",
        ),
        "transformer of 10 million": (transformer, torch.randn(2, 16, 384), 1, "under 30 s"),
    }


def step_seconds(make: Callable[[], nn.Module], inputs: torch.Tensor) -> float:
    """Return the least time of a forward and a backward."""
    layer = make()
    seconds = []
    for _ in range(5):
        start = perf_counter()
        output = layer(inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.sum().backward()
        seconds.append(perf_counter() - start)
    return min(seconds)


TESTS = Path(__file__).parents[1] / "tests"
PROCESSES = 2


def check_share(part: int) -> None:
    """Check one process's share of PyTorch's modules; print how many there are, and seconds of CPU."""
    sys.path.insert(0, str(TESTS))
    from checks.module_db import share  # noqa: PLC0415 - importing PyTorch's list takes seconds

    torch.set_num_threads(1)
    found = share(part, PROCESSES)
    for one in found:
        tk.check(one.make, *one.args, kwargs=one.kwargs)
    print(len(found), process_time())


def module_db() -> tuple[str, str, str, str, str, str]:
    """Return the line of the table for PyTorch's modules: how long two processes take side by side."""
    start = perf_counter()
    command = [sys.executable, "-W", "ignore", __file__, "--share"]
    children = [
        subprocess.Popen([*command, str(part)], stdout=subprocess.PIPE, text=True) for part in range(PROCESSES)
    ]
    told = [child.communicate()[0].split() for child in children]
    seconds = perf_counter() - start
    assert all(child.returncode == 0 for child in children)
    count = sum(int(line[-2]) for line in told)
    cpu = sum(float(line[-1]) for line in told)
    name = f"module_db, {count:,} configurations, {PROCESSES} processes"
    return name, "", f"{seconds:.2f}", "", "", f"under 60 s; {cpu:.0f} s of CPU"


def main() -> None:
    """Measure, and print the table."""
    if "--share" in sys.argv:
        check_share(int(sys.argv[-1]))
        return
    lines, slowest = [], []
    tk.check(lambda: nn.Linear(2, 2), torch.randn(2, 2))  # the first imports parts of torch.compile, for a second
    for name, (make, inputs, rounds, promise) in cases().items():
        count = tk.params(make()).numel
        step = step_seconds(make, inputs)
        seconds = []
        for _ in range(rounds):
            start = perf_counter()
            report = tk.check(make, inputs)
            seconds.append(perf_counter() - start)
            assert report.ok, str(report)
        best = min(seconds)
        lines.append((name, f"{count:,}", f"{best:.2f}", f"{step * 1e3:.2f}", f"{best / step:,.0f}", promise))
        slowest = sorted(report.results, key=lambda one: -one.seconds)[:6]
    if "--short" not in sys.argv:
        lines.append(module_db())
    print(table(("layer", "parameters", "check s", "step ms", "steps", ""), lines, "<>>>><"))
    print()
    print(table(("slowest of the last", "s"), [(one.name, f"{one.seconds:.2f}") for one in slowest], "<>"))
    print(f"\nload of the machine over the last minute: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
