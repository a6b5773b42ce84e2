"""How fast one file is saved and loaded, beside safetensors and torch: `python benchmarks/bench_files.py`.

Every save is durable (ours always is; the peers' files are synced after they are written); ours digests every
byte and, when loading, verifies every byte. The runs of all lines are interleaved, each line is the median, and
the page cache is dropped file by file for what is called cold. The limits of the machine are measured in the same
rounds: O_DIRECT write and sync with two threads, over a file that is there and into a new one (for which blocks
must be found, as for every durable save), O_DIRECT read with two threads and with four, and copying memory.

    python benchmarks/bench_files.py [--rounds 9] [--gib 1] [--small 20000] [--folder DIR]
    python benchmarks/bench_files.py --growth [--rounds 9]      how time grows with bytes and with tensors
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from machine import GIB, Flat, at_limit, drop, nothing, peak_memory, read_at_limit, sync, timed, warm
from safetensors.torch import load_file, save_file

import torchkeep as tk


def compare(title, folder, net, rounds, *, limits):
    """Print one table."""
    state = net.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    ours, theirs, pickled, raw, new = (folder / name for name in ("ours", "theirs", "pickled", "raw", "new"))

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
        "save   limit, new file": (
            lambda: new.unlink(missing_ok=True),
            lambda: at_limit(new, size, write, os.pwrite),
        ),
        "save   torchkeep": (nothing, lambda: tk.save(net, ours)),
        "save   torchkeep, dict": (nothing, lambda: tk.save(state, folder / "dict")),
        "save   safetensors": (nothing, their_save_of_a_model),
        "save   safetensors, dict": (nothing, their_save),
        "save   torch.save": (nothing, torch_save),
        "cold   limit (O_DIRECT)": (lambda: drop(raw), lambda: read_at_limit(raw, size)),
        "cold   limit, 4 x 1 MiB": (lambda: drop(raw), lambda: read_at_limit(raw, size, threads=4, block=2**20)),
        "cold   torchkeep": (lambda: drop(ours), our_load),
        "cold   safetensors": (lambda: drop(theirs), their_load),
        "cold   torch.load": (lambda: drop(pickled), torch_load),
        "warm   memcpy": (nothing, lambda: copy.copy_(memory)),
        "warm   torchkeep": (lambda: warm(ours), our_load),
        "warm   safetensors": (lambda: warm(theirs), their_load),
        "warm   torch.load": (lambda: warm(pickled), torch_load),
    }
    ours_alone = {"save": lambda: tk.save(net, ours), "load_into": our_load}
    if not limits:
        cases = {name: case for name, case in cases.items() if "limit" not in name and "memcpy" not in name}
    found = timed(cases, rounds)
    memory = [f"{name} {peak_memory(run) / 2**20:.0f} MiB" for name, run in ours_alone.items()]
    print(f"\n{title}, {len(state):,} tensors, {size / GIB:.3f} GiB, median of {rounds} rounds")
    print(f"{'':26}{'seconds':>10}{'GiB/s':>8}{'torchkeep is':>16}")
    for name, seconds in found.items():
        mine = found[f"{name[:4]}   torchkeep{', dict' if name.endswith('dict') else ''}"]
        ratio = "" if "torchkeep" in name else f"{seconds / mine:>13.2f}x"
        print(f"{name:26}{seconds:>10.3f}{size / GIB / seconds:>8.2f}{ratio:>16}")
    print(f"peak extra memory: {', '.join(memory)}")


GROWTH = ((16, GIB // 4), (16, GIB), (16, 4 * GIB), (1_000, 256_000), (10_000, 2_560_000), (100_000, 25_600_000))
"""Tensors and their bytes together."""


def grow(folder, rounds):
    """Print how long a save and a warm load_into take, per byte and per tensor, as either grows."""
    print(f"growth, median of {rounds} rounds; loads are warm")
    print(f"{'':18}{'save':>10}{'':20}{'load_into':>10}")
    titles = ("tensors", "GiB", *("seconds", "ns/byte", "us/tensor") * 2)
    print(f"{titles[0]:>9}{titles[1]:>9}" + "".join(f"{title:>10}" for title in titles[2:]))
    for tensors, size in GROWTH:
        net, path = Flat(tensors, size // tensors // 4), folder / "ours"
        cases = {
            "save": (nothing, lambda net=net, path=path: tk.save(net, path)),
            "load": (lambda path=path: warm(path), lambda net=net, path=path: tk.load_into(net, path)),
        }
        found = timed(cases, rounds)
        texts = [f"{tensors:>9,}{size / GIB:>9.3f}"]
        for name in cases:
            seconds = found[name]
            texts.append(f"{seconds:>10.3f}{seconds / size * 1e9:>10.2f}{seconds / tensors * 1e6:>10.1f}")
        print("".join(texts), flush=True)


def main():
    """Print a table for large tensors and one for small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gib", type=float, default=1.0, help="bytes of the large tensors")
    parser.add_argument("--small", type=int, default=20_000, help="number of the small tensors")
    parser.add_argument("--growth", action="store_true", help="print the table of growth instead")
    parser.add_argument("--folder", help="where the files go; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.growth:
            grow(folder, options.rounds)
            return
        if options.gib:
            elements = int(options.gib * GIB) // 16 // 4
            compare("large", folder, Flat(16, elements), options.rounds, limits=True)
        if options.small:
            compare("small (64 floats each)", folder, Flat(options.small, 64), options.rounds, limits=False)


if __name__ == "__main__":
    main()
