"""What a run that is killed was promised: it goes on, with the same bits, and nothing acknowledged is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import torchkeep as tk

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = dedent("""
    import os, random, signal, sys
    import numpy
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    import torchkeep as tk

    class Noisy(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return torch.full((3,), index / 40) + 0.1 * torch.randn(3)

    folder, steps, last, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    state = tk.TrainingState(model=net, optimizer=optimizer, scheduler=schedule)
    with tk.CheckpointStore(folder) as store:
        run = tk.Run(store, state, every=4)
        for x in run.batches(DataLoader(Noisy(), batch_size=6, shuffle=True), steps=steps):
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if run.step == last:
                os.kill(os.getpid(), getattr(signal, how))
""")


def train(folder: Path, *, last: int = -1, how: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """Run the script to step 30; it sends itself a signal within step ``last`` + 1."""
    command = [sys.executable, "-c", SCRIPT, str(folder), "30", str(last), how]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def assert_same(one: str, other: str) -> None:
    """Hold that two checkpoints have the same names and bits: model, optimizer, random states, all of it."""
    left, right = tk.load(one, select="**"), tk.load(other, select="**")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert tk.load(one)["scheduler"] == tk.load(other)["scheduler"]


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """A script killed with SIGKILL in the middle of an epoch and started again ends as one that was not."""
    assert train(tmp_path / "undisturbed").returncode == 0
    assert train(tmp_path / "killed", last=17).returncode == -signal.SIGKILL
    ended = train(tmp_path / "killed")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same(f"{tmp_path}/undisturbed@30", f"{tmp_path}/killed@30")


def test_a_run_that_is_told_to_stop_saves_its_step_and_says_so(tmp_path):
    """SIGTERM ends the script with 143 after the step, which is durable; then it goes on as if undisturbed."""
    assert train(tmp_path / "undisturbed").returncode == 0
    told = train(tmp_path / "told", last=9, how="SIGTERM")
    assert told.returncode == 128 + signal.SIGTERM
    assert "step 10 is saved" in told.stderr
    with tk.CheckpointStore(tmp_path / "told") as store:
        assert store.latest().step == 10
    assert train(tmp_path / "told").returncode == 0
    assert_same(f"{tmp_path}/undisturbed@30", f"{tmp_path}/told@30")


def test_a_save_that_was_acknowledged_is_there_and_the_best_is_found_by_name(tmp_path):
    """What ``result()`` returned can be restored into a fresh model, the best by its metric too, after a prune."""
    net = nn.Linear(4, 2)
    state = tk.TrainingState(model=net)
    kept = {}
    keep = tk.Retention(last=1, best=("loss", "min"))
    with tk.CheckpointStore(tmp_path / "run", retention=keep) as store:
        for step, loss in enumerate([0.9, 0.1, 0.5, 0.7], start=1):
            with torch.no_grad():
                net.weight.add_(step)
            kept[step] = net.weight.detach().clone()
            store.save(step, state, metrics={"loss": loss}).result()
        assert [one.step for one in store.checkpoints()] == [2, 4]
    for which, step in (("best", 2), ("latest", 4)):
        fresh = nn.Linear(4, 2)
        tk.load_into(fresh, f"{tmp_path}/run@{which}")
        assert torch.equal(fresh.weight, kept[step])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_restored(tmp_path):
    """A flipped bit in the newest: a warning names tensor, file and bytes, and the one before is restored."""
    net = nn.Linear(64, 64)
    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, tk.TrainingState(model=net), wait=True)
        old = net.weight.detach().clone()
        with torch.no_grad():
            net.weight.mul_(2)
        store.save(2, tk.TrainingState(model=net), wait=True)
    new = net.weight.detach().numpy().tobytes()
    (path,) = [pack for pack in (tmp_path / "run" / "packs").iterdir() if new in pack.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(new) + 100] ^= 1
    path.write_bytes(content)
    with (
        tk.CheckpointStore(tmp_path / "run") as store,
        pytest.warns(tk.errors.TorchkeepWarning, match=r"model\.weight.*bytes \d+ to \d+"),
    ):
        assert store.restore(tk.TrainingState(model=net)) == 1
    assert torch.equal(net.weight, old)


def test_an_extended_model_gets_each_parameters_own_moments(tmp_path):
    """Optimizer state goes by parameter name: layers in another order, and a new one, don't mix it up."""
    torch.manual_seed(0)
    old = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    optimizer = torch.optim.Adam(old.parameters())
    (old["b"](old["a"](torch.rand(5, 3)))).sum().backward()
    optimizer.step()
    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, tk.TrainingState(model=old, optimizer=optimizer), wait=True)
        new = nn.ModuleDict({"c": nn.Linear(3, 3), "b": nn.Linear(3, 3), "a": nn.Linear(3, 3)})
        other = torch.optim.Adam(new.parameters())
        with pytest.warns(tk.errors.TorchkeepWarning, match=r"the checkpoint has no c\.weight, c\.bias"):
            store.restore(tk.TrainingState(model=new, optimizer=other), missing="ignore")
    for name, parameter in old.named_parameters():
        mine, theirs = optimizer.state[parameter], other.state[new.get_parameter(name)]
        assert torch.equal(theirs["exp_avg"], mine["exp_avg"])
    assert new["c"].weight not in other.state
