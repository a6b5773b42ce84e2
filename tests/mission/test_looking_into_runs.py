"""Promised of a run's store: every checkpoint is one more source, in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk


def make():
    """Return the model of the run."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the store of a short run; the second checkpoint is its best."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    state = tk.TrainingState(model=net, optimizer=optimizer)
    with tk.CheckpointStore(folder / "runs" / "digits", retention=tk.Retention(best=("loss", "min"))) as store:
        for step, loss in ((1000, 0.5), (2000, 0.1), (3000, 0.3)):
            net(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
            store.save(step, state, metrics={"loss": loss}).result()
    return folder


def torchkeep(folder, *arguments):
    """Run the command as a shell does; return its exit code and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "torchkeep", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_a_checkpoint_is_listed_loaded_and_built_by_name(run, monkeypatch):
    """tk.params, tk.load, tk.load_into and tk.load_model take STORE@STEP as they take a file."""
    monkeypatch.chdir(run)
    table = tk.params("runs/digits@latest")
    assert {"model.0.weight", "optimizer.state.0.weight.exp_avg"} <= set(table.names())
    assert table.select("model.** & @BatchNorm1d & :param").names() == ["model.1.weight", "model.1.bias"]
    built, filled = tk.load_model("runs/digits@best"), make()
    tk.load_into(filled, "runs/digits@2000")
    best = tk.params("runs/digits@best")
    for net in (built, filled):
        assert all(torch.equal(tensor, best[f"model.{name}"]) for name, tensor in net.state_dict().items())
    assert tk.load("runs/digits@2000")["optimizer"]["state"]["0.weight"]["exp_avg"].shape == (16, 8)
    with tk.CheckpointStore("runs/digits") as store:
        assert torch.equal(store.best()["model.0.weight"], filled[0].weight)


def test_the_command_line_looks_into_a_run(run):
    """log, show with statistics, diff, verify: each with its exit code."""
    code, out = torchkeep(run, "log", "runs/digits", "--json")
    marks = [(one["step"], one["latest"], one["best"]) for one in json.loads(out)["checkpoints"]]
    assert (code, marks) == (0, [(1000, False, False), (2000, False, True), (3000, True, False)])
    code, out = torchkeep(run, "show", "runs/digits@1000", "**.bias", "--stats")
    assert (code, [line.split()[0] for line in out.splitlines()[1:4]]) == (
        0,
        [f"model.{at}.bias" for at in (0, 1, 3)],
    )
    code, out = torchkeep(run, "diff", "runs/digits@1000", "runs/digits@2000", "model.3.**")
    assert (code, "2 different" in out) == (1, True)
    assert torchkeep(run, "diff", "runs/digits@2000", "runs/digits@best")[0] == 0
    code, out = torchkeep(run, "verify", "runs/digits")
    assert (code, out.startswith("runs/digits: sound: 3 checkpoints, ")) == (0, True)


def test_the_command_line_takes_a_model_out_and_prunes(run, tmp_path):
    """The best model as a file that builds itself; then the store keeps what its rules say."""
    made = tmp_path / "best.safetensors"
    assert (
        torchkeep(run, "convert", "runs/digits@best", str(made), "--select", "model.**", "--rename", "model.=")[0]
        == 0
    )
    best = tk.params(f"{run}/runs/digits@best")
    assert all(torch.equal(one, best[f"model.{name}"]) for name, one in tk.load_model(made).state_dict().items())
    before = {path: path.read_bytes() for path in Path(run).rglob("checkpoints/*")}
    code, out = torchkeep(run, "prune", "runs/digits", "--last", "1", "--dry-run")
    assert (code, out.startswith("would remove 1 checkpoint (step 1000); ")) == (0, True)
    assert {path: path.read_bytes() for path in Path(run).rglob("checkpoints/*")} == before
