"""How fast one file is saved and loaded, beside safetensors and torch: `python benchmarks/bench_files.py`.

Every save is durable (ours always is; the peers' files are synced after they are written); ours digests every
byte and, when loading, verifies every byte. The runs of all lines are interleaved, each line is the median, and
the page cache is dropped file by file for what is called cold. The limits of the machine are measured in the same
rounds: O_DIRECT write and sync, O_DIRECT read, two threads each, and copying memory.

    python benchmarks/bench_files.py [--rounds 9] [--gib 1] [--small 20000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import tempfile
from itertools import count
from pathlib import Path
from statistics import median
from threading import Lock, Thread
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchkeep as tk

GIB = 2**30
BLOCK = 8 * 2**20


def sync(path):
    """Make a file durable, as ours are."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop(path):
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def warm(path):
    """Bring a file into the page cache."""
    with path.open("rb") as file:
        while file.read(BLOCK):
            pass


def at_limit(path, size, flags, move):
    """Move whole blocks with O_DIRECT and two threads, and sync."""
    descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
    numbers, lock = count(), Lock()

    def work():
        buffer = mmap.mmap(-1, BLOCK)
        while True:
            with lock:
                number = next(numbers)
            if number * BLOCK >= size:
                return
            move(descriptor, buffer, number * BLOCK)

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if flags & os.O_WRONLY:
        os.fsync(descriptor)
    os.close(descriptor)


class Flat(nn.Module):
    """A model of so many parameters of so many elements, in modules of a hundred."""

    def __init__(self, tensors, elements):
        super().__init__()
        for start in range(0, tensors, 100):
            block = nn.Module()
            for index in range(start, min(start + 100, tensors)):
                block.register_parameter(f"p{index}", nn.Parameter(torch.randn(elements)))
            self.add_module(f"b{start}", block)


def timed(cases, rounds):
    """Run every case once a round, prepared outside of the clock; return the median seconds."""
    times = {title: [] for title in cases}
    for turn in range(rounds + 1):
        for title, (prepare, run) in cases.items():
            prepare()
            gc.collect()
            start = perf_counter()
            run()
            if turn:  # the first round warms up
                times[title].append(perf_counter() - start)
    return {title: median(found) for title, found in times.items()}


def nothing():
    """Prepare nothing."""


def compare(title, folder, net, rounds, *, limits):
    """Print one table."""
    state = net.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    ours, theirs, pickled, raw = (folder / name for name in ("ours", "theirs", "pickled", "raw"))

    def torch_save():
        torch.save(state, pickled)
        sync(pickled)

    def their_save():
        save_file(state, theirs)
        sync(theirs)

    def their_save_of_a_model():
        save_file(net.state_dict(), theirs)
        sync(theirs)

    def their_load():
        net.load_state_dict(load_file(theirs))

    def torch_load():
        net.load_state_dict(torch.load(pickled, weights_only=True))

    def our_load():
        tk.load_into(net, ours)

    memory = torch.randn(size // 4)
    copy = torch.empty_like(memory)
    write = os.O_WRONLY | os.O_CREAT
    cases = {
        "save   limit (O_DIRECT)": (
            nothing,
            lambda: at_limit(raw, size, write, os.pwrite),
        ),
        "save   torchkeep": (nothing, lambda: tk.save(net, ours)),
        "save   torchkeep, dict": (nothing, lambda: tk.save(state, folder / "dict")),
        "save   safetensors": (nothing, their_save_of_a_model),
        "save   safetensors, dict": (nothing, their_save),
        "save   torch.save": (nothing, torch_save),
        "cold   limit (O_DIRECT)": (
            lambda: drop(raw),
            lambda: at_limit(raw, size, os.O_RDONLY, lambda d, b, at: os.preadv(d, [b], at)),
        ),
        "cold   torchkeep": (lambda: drop(ours), our_load),
        "cold   safetensors": (lambda: drop(theirs), their_load),
        "cold   torch.load": (lambda: drop(pickled), torch_load),
        "warm   memcpy": (nothing, lambda: copy.copy_(memory)),
        "warm   torchkeep": (lambda: warm(ours), our_load),
        "warm   safetensors": (lambda: warm(theirs), their_load),
        "warm   torch.load": (lambda: warm(pickled), torch_load),
    }
    if not limits:
        cases = {name: case for name, case in cases.items() if "limit" not in name and "memcpy" not in name}
    found = timed(cases, rounds)
    print(f"\n{title}, {len(state):,} tensors, {size / GIB:.3f} GiB, median of {rounds} rounds")
    print(f"{'':26}{'seconds':>10}{'GiB/s':>8}{'torchkeep is':>16}")
    for name, seconds in found.items():
        mine = found[f"{name[:4]}   torchkeep{', dict' if name.endswith('dict') else ''}"]
        ratio = "" if "torchkeep" in name else f"{seconds / mine:>13.2f}x"
        print(f"{name:26}{seconds:>10.3f}{size / GIB / seconds:>8.2f}{ratio:>16}")


def main():
    """Print a table for large tensors and one for small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gib", type=float, default=1.0, help="bytes of the large tensors")
    parser.add_argument("--small", type=int, default=20_000, help="number of the small tensors")
    parser.add_argument("--folder", help="where the files go; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.gib:
            elements = int(options.gib * GIB) // 16 // 4
            compare("large", folder, Flat(16, elements), options.rounds, limits=True)
        if options.small:
            compare("small (64 floats each)", folder, Flat(options.small, 64), options.rounds, limits=False)


if __name__ == "__main__":
    main()
