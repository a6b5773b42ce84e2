"""How fast a store saves, restores and lists, beside its peers: `python benchmarks/bench_store.py`.

What each one promises when it returns differs. torchkeep's saves are durable (files and directories are synced),
digested and incremental; its restores verify every byte. torch.save and safetensors are followed by a sync of file
and directory here. torch.distributed.checkpoint (DCP) syncs its files, not their directory. moonclip syncs both;
its compression is off, which is faster for random numbers. All lines of a table are interleaved, each is the
median, and the limits of the machine, O_DIRECT with two threads, are measured in the same rounds.

    python benchmarks/bench_store.py [--rounds 5] [--gib 1] [--small 20000] [--folder DIR] [--only TABLE]
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.distributed.checkpoint as dcp
from machine import GIB, Flat, at_limit, drop, nothing, timed
from store_peers import WRITE, Loop, Waits, clear, moonclip, save_cases, touch
from torch import nn

import torchkeep as tk

TABLES = {}


def table(function):
    """Register a table."""
    TABLES[function.__name__] = function
    return function


def show(title, rows, headers=("seconds",), ours="torchkeep"):
    """Print a table: a row's first value is compared with ours."""
    print(f"\n{title}\n{'':34}" + "".join(f"{header:>14}" for header in headers) + f"{ours + ' is':>18}")
    mine = next(values[0] for name, values in rows.items() if name.startswith(ours))
    for name, values in rows.items():
        ratio = "" if name.startswith(ours) else f"{values[0] / mine:.2f}x"
        cells = "".join(f"{value if isinstance(value, str) else f'{value:.4f}':>14}" for value in values)
        print(f"{name:34}{cells}{ratio:>18}")


@table
def saving(folder, options):
    """Durable synchronous saves: large tensors, and many small ones."""
    sizes = {"large": (16, int(options.gib * GIB) // 64, True), "small": (options.small, 64, False)}
    for title, (tensors, elements, limit) in sizes.items():
        place = folder / title
        place.mkdir()
        net = Flat(tensors, elements)
        size = tensors * elements * 4
        cases, stores = save_cases(place, net, size, limit=limit)
        found = timed(cases, options.rounds)
        for store in stores:
            store.close()
        rows = {name: (seconds, f"{size / GIB / seconds:.2f}") for name, seconds in found.items()}
        show(f"save, durable: {tensors:,} tensors, {size / GIB:.3f} GiB", rows, ("seconds", "GiB/s"))
        clear(place)


def stalling_cases(folder, loop, store):
    """Return what saves a loop's state, and what waits for all of them."""
    peer = moonclip(folder / "moonclip", async_save=True)
    numbers, futures = iter(range(10**9)), []

    def dcp_async():
        for future in futures:
            future.result()
        clear(folder / "dcp")
        futures[:] = [dcp.async_save(loop.plain(), checkpoint_id=folder / "dcp")]

    def dcp_sync():
        clear(folder / "dcp")
        dcp.save(loop.plain(), checkpoint_id=folder / "dcp")

    def end():
        for future in futures:
            future.result()
        futures.clear()
        store.prune()  # waits for what is in flight
        peer.flush()

    cases = {
        "no saves": nothing,
        "torchkeep": lambda: store.save(next(numbers), loop.state),
        "torchkeep, overlap=False": lambda: store.save(next(numbers), loop.state, overlap=False),
        "torchkeep, wait=True": lambda: store.save(next(numbers), loop.state, wait=True),
        "DCP async_save": dcp_async,
        "DCP save": dcp_sync,
        "moonclip, async": lambda: peer.save(next(numbers), loop.net, loop.optimizer),
    }
    return cases, end


@table
def stalling(folder, options):
    """How long a loop stands still for a save, and how much longer it takes in all."""
    waits = Waits()
    loop = Loop(int(options.gib * GIB))
    store = tk.CheckpointStore(folder / "store")
    waits.end()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    cases, end = stalling_cases(folder, loop, store)
    every, found = options.every, {name: [] for name in cases}
    for turn in range(options.rounds + 1):
        for name, save in cases.items():
            gc.collect()
            blocked, waits.seconds, start = 0.0, 0.0, perf_counter()
            for step in range(2 * every):
                begin = perf_counter()
                if step % every == 0:
                    save()
                blocked += perf_counter() - begin
                loop.step()
            seconds = perf_counter() - start
            end()
            if turn:  # the first round warms up
                found[name].append((blocked + waits.seconds, seconds))
    torch.distributed.destroy_process_group()
    store.close()
    alone = median(seconds for _, seconds in found.pop("no saves"))
    rows = {
        name: (median(one for one, _ in times) / 2, (median(all_ for _, all_ in times) - alone) / 2)
        for name, times in found.items()
    }
    show(
        f"training on {loop.size / GIB:.3f} GiB of parameters and moments, a save every {every} steps of "
        f"{alone / 2 / every:.3f} s: seconds for each save",
        rows,
        ("loop stands", "loop is longer"),
    )


@table
def changing(folder, options):
    """Saves in which little has changed."""
    count = max(20, int(options.gib * 1024))
    tensors = {f"t{index}": torch.randn(2**18) for index in range(count)}
    backbone = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(max(1, count // 8))]).requires_grad_(False)  # noqa: FBT003
    head = nn.Linear(1024, 10)
    tuned = tk.TrainingState(model=nn.Sequential(backbone, head), optimizer=torch.optim.Adam(head.parameters()))
    numbers = iter(range(10**9))
    stores = {name: tk.CheckpointStore(folder / name) for name in ("tensors", "tuned")}
    stores["tensors"].save(next(numbers), tensors, wait=True)
    stores["tuned"].save(next(numbers), tuned, wait=True)
    written = {}

    def change(names):
        for name in names:
            tensors[name] += 1

    def save(title, store, state):
        written[title] = stores[store].save(next(numbers), state, wait=True).result().summary

    def train_head():
        head(torch.randn(4, 1024)).sum().backward()
        tuned.optimizer.step()

    titles = [
        "torchkeep, all changed",
        "5 % of the tensors changed",
        "nothing changed",
        "frozen backbone, new head",
    ]
    cases = {
        titles[0]: (lambda: change(tensors), lambda: save(titles[0], "tensors", tensors)),
        titles[1]: (lambda: change(list(tensors)[::20]), lambda: save(titles[1], "tensors", tensors)),
        titles[2]: (nothing, lambda: save(titles[2], "tensors", tensors)),
        titles[3]: (train_head, lambda: save(titles[3], "tuned", tuned)),
    }
    found = timed(cases, options.rounds)
    for store in stores.values():
        store.close()
    rows = {
        title: (seconds, f"{written[title].written / written[title].nbytes:.2%}")
        for title, seconds in found.items()
    }
    show(f"saves of {count:,} tensors of 1 MiB, durable", rows, ("seconds", "bytes written"))


@table
def restoring(folder, options):
    """Cold restores into a live model and its optimizer."""
    loop = Loop(int(options.gib * GIB))
    size = loop.size
    store, peer = tk.CheckpointStore(folder / "store"), moonclip(folder / "moonclip", async_save=False)
    store.save(1, loop.state, wait=True)
    snapshot = peer.save(1, loop.net, loop.optimizer)
    dcp.save(loop.plain(), checkpoint_id=folder / "dcp")
    torch.save(loop.plain(), folder / "pickled")
    at_limit(folder / "raw", size, WRITE, os.pwrite)

    def cold(*places):
        for place in places:
            for path in [place] if place.is_file() else place.rglob("*"):
                if path.is_file():
                    drop(path)

    def from_dcp():
        state = loop.plain()
        dcp.load(state, checkpoint_id=folder / "dcp")
        loop.net.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])

    def from_torch():
        state = torch.load(folder / "pickled", weights_only=True)
        loop.net.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])

    def read(descriptor, buffer, at):
        os.preadv(descriptor, [buffer], at)

    cases = {
        "limit (O_DIRECT)": (
            lambda: cold(folder / "raw"),
            lambda: at_limit(folder / "raw", size, os.O_RDONLY, read),
        ),
        "torchkeep, all verified": (lambda: cold(folder / "store" / "packs"), lambda: store.restore(loop.state)),
        "DCP load": (lambda: cold(folder / "dcp"), from_dcp),
        "torch.load, load_state_dict": (lambda: cold(folder / "pickled"), from_torch),
        "moonclip": (
            lambda: cold(folder / "moonclip"),
            lambda: peer.load(snapshot, model=loop.net, optimizer=loop.optimizer),
        ),
    }
    found = timed(cases, options.rounds)
    store.close()
    rows = {name: (seconds, f"{size / GIB / seconds:.2f}") for name, seconds in found.items()}
    show(f"restore, cold, into a live model and optimizer: {size / GIB:.3f} GiB", rows, ("seconds", "GiB/s"))


@table
def listing(folder, options):
    """Opening a store and listing its checkpoints."""
    rows = {}
    for count in (options.checkpoints // 10, options.checkpoints):
        place, state = folder / f"store{count}", {f"t{index}": torch.zeros(8) for index in range(200)}
        with tk.CheckpointStore(place, retention=tk.Retention(last=None)) as store:
            for step in range(count):
                state["t0"] += 1
                store.save(step, state, metrics={"loss": float(step)}, wait=True)

        def look(place=place, count=count):
            assert len(tk.CheckpointStore(place).checkpoints()) == count

        title = f"{'torchkeep' if count == options.checkpoints else 'of'} {count:,} checkpoints of 200 tensors"
        rows[title] = (timed({"": (nothing, look)}, options.rounds)[""],)
    show("open a store and list it", rows)


def growth(place, net, kept, rounds):
    """Return the times of one state in one store."""
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters()))
    with tk.CheckpointStore(place, retention=tk.Retention(last=None)) as store:
        for step in range(kept - 1):
            store.save(step, state, wait=True)
    numbers = iter(range(1000, 10**9))

    def quiet():
        store.prune()  # waits for what is in flight
        touch(net)

    with tk.CheckpointStore(place, retention=tk.Retention(last=kept)) as store:
        cases = {
            "durable": (quiet, lambda: store.save(next(numbers), state, wait=True)),
            "stands": (quiet, lambda: store.save(next(numbers), state)),
            "restore": (quiet, lambda: store.restore(state)),
            "list": (nothing, store.checkpoints),
        }
        return timed(cases, rounds)


@table
def growing(folder, options):
    """How the times grow with size, tensors and checkpoints."""
    print(f"\n{'growth':34}{'durable, s':>14}{'stands, s':>14}{'restore, s':>14}{'list, s':>14}")
    gib, few = int(options.gib * GIB), options.small // 10
    for tensors, elements, kept in (
        (16, gib // 1024, 1),
        (16, gib // 256, 1),
        (16, gib // 64, 1),
        (few, 64, 1),
        (few, 64, 100),
        (options.small, 64, 1),
    ):
        place = folder / f"{tensors}-{elements}-{kept}"
        found = growth(place, Flat(tensors, elements), kept, options.rounds)
        title = f"{tensors:,} x {elements * 4:,} bytes, {kept} kept"
        print(f"{title:34}" + "".join(f"{seconds:>14.4f}" for seconds in found.values()))
        clear(place)


def main():
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0, help="bytes of large states")
    parser.add_argument("--small", type=int, default=20_000, help="number of the small tensors")
    parser.add_argument("--every", type=int, default=8, help="steps from one save to the next")
    parser.add_argument("--checkpoints", type=int, default=1000, help="how many are listed")
    parser.add_argument("--folder", help="where the files go; a temporary folder by default")
    parser.add_argument("--only", choices=TABLES, action="append", help="print this table only")
    options = parser.parse_args()
    for name in options.only or TABLES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            TABLES[name](Path(folder), options)


if __name__ == "__main__":
    main()
