"""Sweep `tk.check` over real modules from PyPI packages, and print every alarm, to be looked at by hand.

It makes an environment of its own (torch as in constraints.txt, the packages without their dependencies, then the
few they need), so that the packages stay out of the project's. Each package's modules (`sweep_cases.py`) are
checked in a child process with a time limit. All are small, random configurations: nothing is downloaded from a
hub. A package that can't be installed or imported is a row that says why. What was seen: docs/checks-sweep.md.

    python benchmarks/sweep_check.py [package ...]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "x-transformers": "x_transformers",
    "torch-geometric": "torch_geometric",
    "e3nn": "e3nn",
    "diffusers": "diffusers",
    "monai": "monai",
    "kornia": "kornia",
    "timm": "timm",
}
"""Names on PyPI, and what is imported."""

BESIDE = ("kornia-rs", "opt-einsum-fx", "torch-einops-utils", "torchvision==0.15.2")
"""What they need that would itself ask for another torch: without dependencies too.

torchvision's wheels hold operators for one build of torch. This release imports without them, which is enough for
timm; the newest raises beside another build (``operator torchvision::nms does not exist``).
"""

NEEDS = (
    *("aiohttp", "einops", "einx", "huggingface_hub", "importlib_metadata", "loguru", "numpy", "opt_einsum"),
    *("packaging", "pillow", "psutil", "pyparsing", "pyyaml", "regex", "requests", "safetensors", "scipy"),
    *("tokenizers", "tqdm", "typer", "xxhash"),
)


def environment(folder: Path) -> Path:
    """Make the environment if it is not there yet, and return its Python.

    Args:
        folder: where it is, or goes.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    steps = [[*pinned, "--editable", str(ROOT)], [*pinned, *NEEDS]]
    steps += [["--no-deps", name] for name in (*PACKAGES, *BESIDE) if name != "torch"]
    for step in steps:
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *step], check=False, capture_output=True)
        if done.returncode:
            sys.stderr.write(f"pip install {' '.join(step)}: {done.stderr.decode()[-300:]}\n")
    vision = subprocess.run([python, "-c", "import torchvision"], check=False, capture_output=True, text=True)
    if vision.returncode:  # other packages use it where they find it, so a broken one breaks them too
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=False)
        reason = (vision.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.stdout.write(f"torchvision does not import beside this torch, and is taken out again: {reason}\n")
        sys.stdout.flush()
    return python


def sweep(package: str) -> None:
    """Check the modules of one package; one line of JSON for each, as soon as it is done."""
    import torch  # noqa: PLC0415 - the parent runs without it

    import torchkeep as tk  # noqa: PLC0415 - likewise

    torch.manual_seed(0)
    try:
        importlib.import_module(PACKAGES[package])
        cases = importlib.import_module("sweep_cases").CASES[package]()
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running is the row
        told(skipped=f"{type(error).__name__}: {error}"[:200])
        return
    told(version=importlib.metadata.version(package))
    for name, factory, args, kwargs in cases:
        try:
            report = tk.check(factory, *args, kwargs=kwargs)
        except Exception as error:  # noqa: BLE001 - likewise
            told(module=name, error=f"{type(error).__name__}: {error}"[:300])
            continue
        alarms = [
            {
                "status": one.status,
                "check": one.name,
                "tensor": one.tensor,
                "message": one.message,
                "where": one.where,
            }
            for one in (*report.failed, *report.warned)
        ]
        passed = sum(one.status == "passed" for one in report.results)
        told(module=name, passed=passed, seconds=sum(one.seconds for one in report.results), alarms=alarms)


def told(**what: object) -> None:
    """Write one line for the parent to read."""
    sys.stdout.write(f"@@{json.dumps(what)}\n")
    sys.stdout.flush()


def run(python: Path, package: str, limit: float) -> list[dict]:
    """Check one package in a child process.

    Args:
        python: the environment's Python.
        package: its name.
        limit: seconds after which it is ended; what it told until then counts.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--child", package]
    more: list[dict] = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = subprocess.run(
                command, check=False, stdout=out, stderr=err, timeout=limit, env=os.environ | quiet
            ).returncode
            if code:
                err.seek(0)
                more = [{"skipped": f"exit code {code}: {err.read().decode(errors='replace').strip()[-200:]}"}]
        except subprocess.TimeoutExpired:
            more = [{"skipped": f"not done after {limit:.0f} s; the modules above are what it managed"}]
        out.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
    return [json.loads(line[2:]) for line in lines if line.startswith("@@")] + more


def main() -> None:
    """Make the environment, check the packages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="package", help=f"of {', '.join(PACKAGES)}; default: all")
    default = Path(tempfile.gettempdir()) / "torchkeep-sweep"
    parser.add_argument("--env", type=Path, default=default, help=f"folder of the environment; default: {default}")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one package; default: 600")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sweep(options.child)
        return
    python = environment(options.env)
    alarms: list[str] = []
    for package in options.packages or PACKAGES:
        rows = run(python, package, options.limit)
        version = next((row["version"] for row in rows if "version" in row), "")
        done = [row for row in rows if "alarms" in row]
        all_of = [alarm["status"] for row in done for alarm in row["alarms"]]
        failed = all_of.count("failed") + all_of.count("unexpectedly passed")
        passed = sum(row["passed"] for row in done)
        sys.stdout.write(
            f"{package:16} {version:12} {len(done):4} modules {passed:5} checks passed {failed:3} failed "
            f"{all_of.count('warned'):4} warned {sum(row['seconds'] for row in done):6.1f} s\n"
        )
        for row in rows:
            if "skipped" in row or "error" in row:
                sys.stdout.write(f"    {row.get('module', 'not checked')}: {row.get('skipped') or row['error']}\n")
        sys.stdout.flush()
        alarms += [
            f"{alarm['status']:7} {package}: {row['module']}: {alarm['check']}: {alarm['tensor'] or '-'}: "
            f"{alarm['message']} {alarm['where']}\n"
            for row in done
            for alarm in row["alarms"]
        ]
    sys.stdout.write(f"\n{len(alarms)} alarms\n{''.join(sorted(alarms))}")


if __name__ == "__main__":
    main()
