"""What the benchmarks of files and stores share: the machine's own limits, the page cache, the clock."""

from __future__ import annotations

import gc
import mmap
import os
from itertools import count
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from time import perf_counter

import torch
from torch import nn

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


def at_limit(path, size, flags, move, *, threads=2, block=BLOCK):
    """Move whole blocks with O_DIRECT and a few threads, and sync."""
    descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
    numbers, lock = count(), Lock()

    def work():
        buffer = mmap.mmap(-1, block)
        while True:
            with lock:
                number = next(numbers)
            if number * block >= size:
                return
            move(descriptor, buffer, number * block)

    crew = [Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if flags & os.O_WRONLY:
        os.fsync(descriptor)
    os.close(descriptor)


def read_at_limit(path, size, **options):
    """Read with O_DIRECT; see `at_limit`."""
    at_limit(path, size, os.O_RDONLY, lambda file, buffer, at: os.preadv(file, [buffer], at), **options)


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


def peak_memory(run):
    """Run it and return by how many bytes this process grew at most meanwhile."""

    def resident():
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE

    def watch():
        while not done.wait(0.002):
            seen.append(resident())

    gc.collect()
    done, seen = Event(), [resident()]
    thread = Thread(target=watch)
    thread.start()
    run()
    done.set()
    thread.join()
    return max(seen) - seen[0]


def nothing():
    """Prepare nothing."""
