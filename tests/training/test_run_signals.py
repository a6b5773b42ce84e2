"""A run that is told to stop finishes its step, saves and leaves; its workers neither die of it nor stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import torchkeep as tk
from torchkeep.training.run.signals import WATCHED, Watch

SCRIPT = Path(__file__).parents[1] / "run_script.py"


def script(store, workers, die, steps=1000):
    """Start the training script as the leader of a process group of its own."""
    command = [sys.executable, str(SCRIPT), str(store), *workers.split(), str(steps)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DIE": die},
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("workers", "name", "code"),
    [("0 ended", "SIGTERM", 143), ("2 ended", "SIGTERM", 143), ("2 persistent", "SIGINT", 130)],
    ids=["alone", "workers", "persistent workers, Ctrl-C"],
)
def test_a_signal_to_the_whole_group_ends_the_step_and_the_run(workers, name, code, tmp_path):
    """The group is signalled in the middle of a step: it is saved, the code tells, and no worker is heard."""
    child = script(tmp_path / "store", workers, "wait:7")
    while child.stdout.readline() != "waiting 7\n":
        assert child.poll() is None
    os.killpg(child.pid, getattr(signal, name))
    out, err = child.communicate("go on\n", timeout=120)
    assert (child.returncode, out) == (code, "died 0\n"), err
    assert err.strip() == (
        f"torchkeep: {name}: step 8 is saved; start the same script again to go on (exit code {code})"
    )
    store = tk.CheckpointStore(tmp_path / "store")
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [4, 8]
    assert store.verify().ok


def test_no_worker_outlives_a_killed_run(tmp_path):
    """Workers notice that their parent is gone, though they don't end of signals."""
    child = script(tmp_path / "store", "2 persistent", "never")
    child.stdout.readline()
    workers = psutil.Process(child.pid).children(recursive=True)
    assert len(workers) == 2
    child.kill()
    child.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def small_run(folder, **how):
    net = nn.Linear(1, 1)
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    return tk.Run(tk.CheckpointStore(folder), state, every=100, **how)


@pytest.mark.parametrize("number", WATCHED, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("where", ["in a step", "while a batch is loaded", "while an epoch ends"])
def test_a_signal_at_any_moment_is_acted_on(number, where, tmp_path):
    """Wherever it falls, the run leaves with everything saved that was done."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if (where, run.step) in {("while a batch is loaded", 2), ("while an epoch ends", 3)} and not sent:
                sent.append(True)
                signal.raise_signal(number)
            return torch.ones(1)

    def train():
        for _ in run.batches(DataLoader(Rows()), steps=50):
            done.append(run.step)
            if where == "in a step" and run.step == 2:
                signal.raise_signal(number)

    run, done, sent = small_run(tmp_path / "store"), [], []
    before = [signal.getsignal(one) for one in WATCHED]
    with pytest.raises(tk.Preempted) as left:
        train()
    expected = {"in a step": 3, "while a batch is loaded": 2, "while an epoch ends": 3}[where]
    assert (left.value.code, left.value.step, left.value.signal) == (128 + number, expected, number)
    assert done == list(range(expected))
    assert run.durable == run.store.latest().step == expected
    assert [signal.getsignal(one) for one in WATCHED] == before
    run.store.close()
    again = small_run(tmp_path / "store")
    assert len(list(again.batches(DataLoader(Rows()), steps=6))) == 6 - expected
    again.store.close()


def test_a_signal_before_the_first_step_saves_nothing(tmp_path, capsys):
    """There is nothing to save that the script would not make again."""
    run = small_run(tmp_path / "store")

    class Sending:
        def __iter__(self):
            signal.raise_signal(signal.SIGTERM)
            return iter([1, 2])

    with pytest.raises(tk.Preempted):
        list(run.batches(Sending(), steps=5))
    assert run.store.latest() is None
    assert "no step was done, so nothing is saved" in capsys.readouterr().err
    run.store.close()


def test_a_signal_during_a_save_is_acted_on_after_it(tmp_path):
    """A save is not torn, and the signal is not lost in it."""
    run = small_run(tmp_path / "store")
    run.request_save()

    class Part:
        def state_dict(self):
            signal.raise_signal(signal.SIGTERM)
            return {}

        def load_state_dict(self, state):
            """Nothing is in it."""

    run.state = tk.TrainingState(model=run.state.model, part=Part())
    with pytest.raises(tk.Preempted):
        list(run.batches([1], steps=100))
    assert run.store.latest().step == 1
    run.store.close()


def test_a_second_interrupt_is_one_as_ever(tmp_path):
    """Whoever presses Ctrl-C twice doesn't want to wait."""
    run = small_run(tmp_path / "store")

    def train():
        for _ in run.batches([1, 2], steps=5):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert run.store.latest() is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_nobody_acted_on_is_sent_again():
    """A loop that is left in the step of the signal gives it back to who handles it otherwise."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        with Watch():
            signal.raise_signal(signal.SIGTERM)
            assert not came.is_set()
        assert came.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_more_of_a_signal_that_was_acted_on_changes_nothing(tmp_path):
    """Schedulers send SIGTERM again while a run leaves; it leaves all the same, with its own code."""
    run = small_run(tmp_path / "store")

    class Leaving:
        def __iter__(self):
            try:
                yield from [1, 2, 3]
            finally:
                signal.raise_signal(signal.SIGTERM)

    def train():
        for _ in run.batches(Leaving(), steps=50):
            signal.raise_signal(signal.SIGTERM)

    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        with pytest.raises(tk.Preempted, match="143"):
            train()
        assert not came.wait(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    run.store.close()


def test_ignored_signals_stay_ignored():
    """What nohup or a shell's background job has turned off is not turned on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Watch() as watch:
            signal.raise_signal(signal.SIGINT)
            assert watch.noted == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    """Only the main thread may set handlers; the run works without."""
    run, steps = small_run(tmp_path / "store"), []
    before = [signal.getsignal(one) for one in WATCHED]

    def train():
        steps.extend([signal.getsignal(one) for one in WATCHED] for _ in run.batches([1, 2], steps=3))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert steps == [before] * 3
    assert run.durable == 3
    run.store.close()
