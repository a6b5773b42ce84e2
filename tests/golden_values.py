"""The golden values of tk.init: computed here, kept in init/golden.json, compared by init/test_golden.py.

Run this file to record them anew, which is right only together with a new number of the scheme.
"""

import json
import sys
from pathlib import Path

import torch
from blake3 import blake3
from torch import nn

import torchkeep as tk

FILE = Path(__file__).parent / "init" / "golden.json"
PLACES = [0, 1, 7, 8, 15, 16, 1000, 16384, 65535, 65536, 89998, 89999]

INITIALIZERS = {
    "normal": lambda: tk.init.normal(0.5, 2.0),
    "uniform": lambda: tk.init.uniform(-1.0, 3.0),
    "uniform, small": lambda: tk.init.uniform(-1.0, 3.0),
    "trunc_normal": tk.init.trunc_normal,
    "trunc_normal, wide": lambda: tk.init.trunc_normal(0.0, 1.0, -4.0, 3.0),
    "trunc_normal, tail": lambda: tk.init.trunc_normal(0.0, 1.0, 6.0, 9.0),
    "trunc_normal, as good as none": lambda: tk.init.trunc_normal(0.0, 0.02),
    "xavier_uniform": tk.init.xavier_uniform,
    "xavier_normal": tk.init.xavier_normal,
    "kaiming_uniform": lambda: tk.init.kaiming_uniform(a=5**0.5),
    "kaiming_normal": lambda: tk.init.kaiming_normal(nonlinearity="relu"),
    "lecun_normal": tk.init.lecun_normal,
    "orthogonal": tk.init.orthogonal,
    "torch_default": tk.init.torch_default,
    "custom": lambda: tk.init.custom(lambda tensor, generator: tensor.normal_(generator=generator)),
    "constant": lambda: tk.init.constant(0.1),
    "eye": tk.init.eye,
}
DTYPES = ["float32", "float64", "bfloat16"]


def compute():
    """Draw a weight with each initializer in each dtype: digest of all bytes, and some elements.

    The weight is 300 by 300, of more than one chunk; a small one, of 30 by 30, is drawn from the uniform too.
    """
    found = {}
    for title, make in INITIALIZERS.items():
        for dtype in DTYPES:
            side = 30 if "small" in title else 300
            net = nn.Linear(side, side, bias=False, dtype=getattr(torch, dtype), device="meta")
            values = tk.init.plan(net, {"weight": make()}, seed=20_000_000_000).values("weight")
            raw = values.contiguous().view(torch.uint8).numpy().tobytes()
            elements = values.flatten().double()[[place for place in PLACES if place < side**2]].tolist()
            found[f"{title}, {dtype}"] = {"digest": blake3(raw).hexdigest(), "elements": elements}
    return found


def kernels():
    """Name what bits may depend on: the build of torch, its CPU kernels, and the maker of the CPU (for MKL)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    vendor = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "unknown")
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), vendor, sys.platform]


if __name__ == "__main__":
    FILE.write_text(json.dumps({"kernels": kernels(), "values": compute()}, indent=1) + "\n")
