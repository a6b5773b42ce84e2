"""How long each form of selector takes on 100,000 names.

Beside each form stand what a peer takes for the nearest thing it can say (`fnmatch.filter` over the same names)
and what the machine allows at best: one pass of a trivial compiled regular expression over the names. Times are of
the processor, so that other work on the machine changes little; nothing here runs on two threads.

    python benchmarks/bench_selectors.py
"""

from __future__ import annotations

import fnmatch
import re
from statistics import median
from time import process_time

from msgspec.structs import replace

from torchkeep.errors import NoMatchError
from torchkeep.rows import Listing, Row, TypeInfo
from torchkeep.selectors import select

ROUNDS = 7
MODULE = ("torch.nn.modules.module", "Module")
FORMS = {
    "everything": "**",
    "plain name": "model.layers.7.mlp.experts.3.w1.weight",
    "plain globs": "model.layers.*.self_attn.*.weight",
    "part of a segment": "model.layers.*.self_attn.*_proj.weight",
    "any depth": "**.weight",
    "any depth, twice": "**.experts.**.weight",
    "slice": "model.layers[10:20].**",
    "slice from the end": "model.layers[-10:].mlp.**",
    "every level's last": "**[-1].**.weight",
    "braces": "**.{q,k,v}_proj.{weight,bias}",
    "nested braces": "**.{{q,k,v}_proj,w*}.weight",
    "regular expression": r"re:'model\.layers\.\d+\.mlp\..*weight'",
    "class": "@Linear",
    "class, exactly": "@=Linear",
    "inside a class": "@Expert > w1.weight",
    "inside, any depth": "@Layer > **.weight",
    "inside every module": "@Module > weight",
    "inside, from the end": "@ModuleList > [-1].**",
    "inside, inside": "@Layer > @Expert > w2.*",
    "state": ":trainable",
    "field": "[numel>1e6]",
    "dtype": "[dtype=bf16]",
    "not": "~**.bias",
    "algebra": "(**.weight & [ndim>=2]) - model.layers[0:50].** | :buffer",
    "no match": "model.layrs.*.weight",
    "no match, module": "model.layers.7.mlp",
}


def listing() -> Listing:
    """Make the names of a mixture of experts: 100 layers, each with 1,000 tensors."""
    rows: list[Row] = []
    modules: dict[str, TypeInfo] = {}

    def info(name: str) -> TypeInfo:
        return kinds.setdefault(name, TypeInfo((("bench", name), MODULE)))

    def add(path: str, kind: str, **shapes: tuple[int, ...]) -> None:
        modules[path] = info(kind)
        for name, shape in shapes.items():
            row_kind = "buffer" if name == "scale" else "parameter"
            dtype = "float32" if kind == "RMSNorm" else "bfloat16"
            trainable = row_kind == "parameter"
            rows.append(Row(f"{path}.{name}", shape, dtype, kind=row_kind, trainable=trainable, module_type=kind))

    kinds: dict[str, TypeInfo] = {}
    add("", "Net")
    add("model", "Model")
    add("model.layers", "ModuleList")
    for number in range(100):
        layer = f"model.layers.{number}"
        add(layer, "Layer")
        add(f"{layer}.self_attn", "Attention")
        for name in "qkvo":
            add(f"{layer}.self_attn.{name}_proj", "Linear", weight=(4096, 4096), bias=(4096,))
        add(f"{layer}.norm", "RMSNorm", weight=(4096,), scale=())
        add(f"{layer}.mlp", "Experts")
        add(f"{layer}.mlp.experts", "ModuleList")
        for expert in range(330):
            add(f"{layer}.mlp.experts.{expert}", "Expert")
            for name in ("w1", "w2", "w3"):
                add(f"{layer}.mlp.experts.{expert}.{name}", "Linear", weight=(1024, 4096))
    return Listing(rows, modules, "the model")


def milliseconds(action) -> float:
    """Return the median processor time of several runs."""
    times = []
    for _ in range(ROUNDS):
        start = process_time()
        action()
        times.append(process_time() - start)
    return 1000 * median(times)


def run(text: str, rows: Listing) -> str:
    """Compile and match; return how many rows were found, or what was suggested."""
    try:
        return f"{len(select(text).indices(rows)):,}"
    except NoMatchError as error:
        return f"({len(error.nearest)} near)"


def main() -> None:
    """Measure and print the table."""
    rows = listing()
    names = [row.name for row in rows.rows]
    peer = milliseconds(lambda: fnmatch.filter(names, "model.layers.*.weight"))
    matches = re.compile("model").match
    limit = milliseconds(lambda: [name for name in names if matches(name)])
    print(f"{len(names):,} names, median of {ROUNDS}; compile + match in ms, on a new listing and on a known one")
    print(f"{'form':<22}{'new':>7}{'known':>7}{'fnmatch':>9}{'limit':>7}  {'found':<10}selector")
    for form, text in FORMS.items():
        # A copy is a new listing, of which nothing has been worked out yet.
        new = milliseconds(lambda text=text: run(text, replace(rows)))
        known = milliseconds(lambda text=text: run(text, rows))
        print(f"{form:<22}{new:>7.1f}{known:>7.1f}{peer:>9.1f}{limit:>7.1f}  {run(text, rows):<10}{text}")


if __name__ == "__main__":
    main()
