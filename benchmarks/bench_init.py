"""How fast torchkeep draws initial values, beside torch.nn.init: `python benchmarks/bench_init.py`.

Both fill the same 64 Mi float32 elements in turn; the ratio is the median of 9 pairs taken one after the other, so
that what else the machine does falls on both. The last line of the first table is what this memory can take.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import torch
from torch import nn

import torchkeep as tk

SIDE = 8192
SMALL = 20_000
ELEMENTS = 64


def seconds(run):
    """Time one call."""
    start = perf_counter()
    run()
    return perf_counter() - start


def in_pairs(theirs, ours, pairs):
    """Time two calls in turn, after one of each to warm up; return the median times and the median ratio."""
    seconds(theirs)
    seconds(ours)
    timed = [(seconds(theirs), seconds(ours)) for _ in range(pairs)]
    return median(t for t, _ in timed), median(o for _, o in timed), median(t / o for t, o in timed)


def large(pairs):
    """Compare on one weight of 64 Mi elements."""
    net = nn.Linear(SIDE, SIDE, bias=False)
    weight = net.weight.data
    cases = [
        ("normal", 2, tk.init.normal(0, 0.02), lambda: nn.init.normal_(weight, 0, 0.02)),
        ("kaiming_uniform", 1.3, tk.init.kaiming_uniform(), lambda: nn.init.kaiming_uniform_(weight)),
        ("trunc_normal", 9, tk.init.trunc_normal(), lambda: nn.init.trunc_normal_(weight)),
        (
            "trunc_normal(0, 0.02)",
            None,
            tk.init.trunc_normal(0, 0.02),
            lambda: nn.init.trunc_normal_(weight, 0, 0.02),
        ),
    ]
    threads = torch.get_num_threads()
    print(f"{weight.numel():,} float32 elements, {threads} threads, {pairs} pairs, torch {torch.__version__}")
    print(f"{'':24}{'torch.nn.init':>16}{'torchkeep':>16}{'ratio':>8}{'target':>8}")
    for title, target, initializer, theirs in cases:
        plan = tk.init.plan(net, {"weight": initializer})
        slow, fast, ratio = in_pairs(theirs, plan.apply, pairs)
        rates = "".join(f"{weight.numel() / time / 1e6:>12,.0f} M/s" for time in (slow, fast))
        print(f"{title:24}{rates}{ratio:>7.2f}x{f'{target}x' if target else '':>8}")
    fill = median(seconds(lambda: weight.fill_(1.0)) for _ in range(pairs + 1))
    print(f"{'fill_ (the limit)':24}{weight.numel() / fill / 1e6:>12,.0f} M/s")


def small(pairs):
    """Compare on many small tensors."""
    net = nn.ParameterList([nn.Parameter(torch.empty(ELEMENTS)) for _ in range(SMALL)])
    rules = {"**": tk.init.normal(0, 0.02)}
    plan = tk.init.plan(net, rules)

    def theirs():
        for value in net.parameters():
            nn.init.normal_(value, 0, 0.02)

    print(
        f"\n{SMALL:,} float32 tensors of {ELEMENTS} elements, normal; target for applying: at most 3x torch's time"
    )
    print(f"{'':24}{'torch.nn.init':>16}{'torchkeep':>16}{'times as long':>16}")
    for title, ours in [("apply", plan.apply), ("plan and apply", lambda: tk.initialize(net, rules))]:
        slow, fast, ratio = in_pairs(theirs, ours, pairs)
        print(f"{title:24}{slow * 1e3:>13,.0f} ms{fast * 1e3:>13,.0f} ms{1 / ratio:>15.2f}x")


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs for each line")
    pairs = parser.parse_args().pairs
    large(pairs)
    small(pairs)


if __name__ == "__main__":
    main()
