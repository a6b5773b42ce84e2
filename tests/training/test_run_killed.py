"""A training script in a process of its own, killed at any moment and started again, ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "run_script.py"
STEPS = 60
WORKERS = {"none": ("0", "ended"), "two": ("2", "ended"), "two that persist": ("2", "persistent")}


def start(store, workers, die="never"):
    """Start the script in a process group of its own."""
    command = [sys.executable, str(SCRIPT), str(store), *WORKERS[workers], str(STEPS)]
    environment = {**os.environ, "DIE": die, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(child):
    """Return what a child printed, by step, when it has ended."""
    out, err = child.communicate(timeout=120)
    return dict(line.split() for line in out.splitlines()), child.returncode, err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the script prints when nothing happens to it."""
    lines, code, err = finish(start(tmp_path_factory.mktemp("undisturbed") / "store", "none"))
    assert (code, err) == (0, "")
    return lines


def check(lines, code, err, undisturbed, expected=-signal.SIGKILL):
    """What was printed is what the undisturbed script printed, and the process ended as it should."""
    assert code == expected, err
    if not code:  # workers whose parent is killed in the middle of a message to them may say so
        assert err == ""
    assert lines.items() <= undisturbed.items()


@pytest.mark.parametrize(
    ("workers", "deaths"),
    [
        ("none", ("batch:1", "call:3", "call:17", "batch:33")),
        ("two", ("batch:27",)),
        ("two that persist", ("call:20",)),
    ],
    ids=["no workers", "two workers", "persistent workers"],
)
def test_killed_at_chosen_moments_it_ends_with_the_same_bits(workers, deaths, undisturbed, tmp_path):
    """With the first batch in hand, after it, within saves in the background, and far into a later epoch."""
    begun = []
    for die in deaths:
        lines, code, err = finish(start(tmp_path / "store", workers, die))
        check(lines, code, err, undisturbed)
        begun += [int(step) for step in list(lines)[:1]]
    lines, code, err = finish(start(tmp_path / "store", workers))
    check(lines, code, err, undisturbed, expected=0)
    assert lines["end"] == undisturbed["end"]
    assert int(next(iter(lines))) > 1, "it began again instead of going on"


def kill_at_random(workers, undisturbed, store, kills, seed):
    """Kill the script again and again at random moments of its steps, then let it end."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    print(f"seed {seed}")  # noqa: T201 - a failure shows it
    done = 0
    while done < kills:
        child = start(store, workers)
        lines = {}
        wanted = chance.randrange(1, 12)
        for line in child.stdout:
            lines.update([line.split()])
            if len(lines) == wanted:
                time.sleep(chance.random() * 0.02)  # the moment itself
                child.kill()
        _, code, err = finish(child)
        assert lines.items() <= undisturbed.items()
        if code == 0:
            assert lines["end"] == undisturbed["end"]
            store = store.with_name(f"{store.name}.")
        else:
            check(lines, code, err, undisturbed)
            done += 1
    lines, code, err = finish(start(store, workers))
    check(lines, code, err, undisturbed, expected=0)
    assert lines["end"] == undisturbed["end"]


@pytest.mark.parametrize("workers", ["none", "two that persist"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(workers, undisturbed, tmp_path):
    """Wherever SIGKILL falls, with data and augmentations from the same or from other processes."""
    kill_at_random(workers, undisturbed, tmp_path / "store", 1, time.time_ns())


@pytest.mark.long
@pytest.mark.parametrize("workers", list(WORKERS))
def test_killed_a_hundred_times_it_ends_with_the_same_bits(workers, undisturbed, tmp_path):
    """Thirty-four times for each way to load."""
    kill_at_random(workers, undisturbed, tmp_path / "store", 34, time.time_ns())
