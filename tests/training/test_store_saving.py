"""What is saved comes back bit for bit, is listed, kept as retention says, and verified."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from stored_runs import a_run, bits, bits_of, train
from torchkeep.errors import (
    DamageError,
    MissingCheckpointError,
    NewerFormatError,
    StoreError,
    StoreLockedError,
    TorchkeepWarning,
    UnsavableError,
)

READER = """
import sys, torchkeep as tk
store = tk.CheckpointStore(sys.argv[1])
print([checkpoint.step for checkpoint in store.checkpoints()], store.latest()["w"].tolist())
print(store.restore({"w": __import__("torch").zeros(2)}))
"""

WRITER = """
import sys, torch, torchkeep as tk
from torchkeep.archive import Writer
store = tk.CheckpointStore(sys.argv[1], make_writer=lambda *a, **o: Writer(*a, wait=0.0, **o))
try:
    store.save(5, {"w": torch.ones(2)})
except tk.TorchkeepError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("how", [{"wait": True}, {}, {"overlap": False}], ids=["wait", "overlap", "copied first"])
def test_every_way_of_saving_keeps_every_bit(how, tmp_path):
    """Parameters, optimizer state, buffers and other parts, in several saves while training goes on."""
    state, wanted, saved = a_run(), [], []
    with tk.CheckpointStore(tmp_path / "deep" / "run", retention=tk.Retention(last=None)) as store:
        for step in range(5):
            wanted.append(bits(state))
            saved.append(store.save(step, state, metrics={"loss": step / 2}, **how))
            train(state)
    assert [bits_of(pending.result()) for pending in saved] == wanted
    assert [pending.result().metrics for pending in saved] == [{"loss": step / 2} for step in range(5)]


def test_another_process_sees_the_same_and_none_of_the_files_holds_a_pickle(tmp_path):
    """A new store on the folder gives what was saved; nothing in it would be unpickled by anyone."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store:
        want = bits(state)
        store.save(7, state)
    found = tk.CheckpointStore(tmp_path / "run")
    latest = found.latest()
    assert latest is not None
    assert bits_of(latest) == want == bits_of(found[7])
    assert latest.versions.keys() >= {"torch", "torchkeep", "python"}
    assert latest.versions["python"] == platform.python_version()
    assert {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()} == {
        ".safetensors",
        ".json",
        "",
    }


def test_a_bare_module_and_plain_containers_are_states(tmp_path):
    """What has no optimizer is copied before save returns."""
    net = nn.Linear(3, 2)
    with tk.CheckpointStore(tmp_path / "run") as store:
        want = net.weight.detach().clone()
        pending = store.save(1, net)
        with torch.no_grad():
            net.weight.zero_()
        assert torch.equal(pending.result()["weight"], want)
        pending = store.save(2, {"a": [want, 3, "text"]})
        assert torch.equal(pending.result()["a.0"], want)


def test_a_store_that_does_not_exist_yet_is_empty_until_the_first_save(tmp_path):
    """Looking makes nothing; the first save makes the folder and its parents."""
    store = tk.CheckpointStore(tmp_path / "a" / "b")
    assert (store.checkpoints(), store.latest(), store.best()) == ([], None, None)
    assert store.verify().ok
    assert store.restore({"w": torch.zeros(1)}) is None
    for ask in (
        lambda: store[3],
        lambda: store.verify(3),
        lambda: store.restore({}, 3),
        lambda: store.restore({}, "best"),
    ):
        with pytest.raises(MissingCheckpointError, match="no checkpoint"):
            ask()
    assert list(tmp_path.iterdir()) == []
    reader = tk.CheckpointStore(tmp_path / "a" / "b")
    store.save(1, {"w": torch.ones(1)}).result()
    assert [checkpoint.step for checkpoint in reader.checkpoints()] == [1]
    store.close()


def test_retention_is_applied_after_each_save_and_the_best_can_be_had(tmp_path):
    """The last two, each fourth step, and the one with the lowest loss."""
    rule = tk.Retention(last=2, every=4, best=("loss", "min"))
    losses = [5.0, 4.0, 9.0, 1.0, 7.0, 6.0, float("nan"), 8.0]
    with tk.CheckpointStore(tmp_path / "run", retention=rule) as store:
        for step, loss in enumerate(losses):
            store.save(step, {"w": torch.full((3,), float(step))}, metrics={"loss": loss})
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [0, 3, 4, 6, 7]
    best = store.best()
    assert best is not None
    assert best.step == 3
    state = {"w": torch.zeros(3)}
    assert store.restore(state, "best") == 3
    assert state["w"].tolist() == [3.0] * 3
    reader = tk.CheckpointStore(tmp_path / "run")
    assert reader.best() == best
    assert reader.verify().ok
    assert tk.CheckpointStore(tmp_path / "run").restore(state, "latest") == 7


def test_where_no_checkpoint_has_the_metric_that_is_told(tmp_path):
    """There are checkpoints, so that it would be wrong to say that there is none."""
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(best=("loss", "min"))) as store:
        for metrics in (None, {"loss": float("nan")}):
            store.save(1, {"x": 1}, metrics=metrics, wait=True)
            assert store.best() is None
            with pytest.raises(MissingCheckpointError, match=r"no checkpoint in .* has the metric"):
                store.restore({"x": 0}, "best")


def test_metrics_may_be_tensors_of_one_number(tmp_path):
    """What a loop has at hand: a loss that is a tensor, or a number of NumPy's."""
    given = {"loss": torch.tensor(0.5, requires_grad=True), "hits": np.int64(3), "fits": torch.tensor(data=True)}
    given["error"] = torch.tensor([[0.25]])
    with tk.CheckpointStore(tmp_path / "run") as store:
        saved = store.save(1, {"x": 1}, metrics=given).result()
        assert str(saved.metrics) == "{'loss': 0.5, 'hits': 3, 'fits': True, 'error': 0.25}"
        with pytest.raises(UnsavableError, match=r"'losses' can't be saved: it has the shape \[2\]"):
            store.save(2, {"x": 1}, metrics={"losses": torch.ones(2)})


def test_prune_removes_what_the_rule_of_this_store_does_not_keep(tmp_path):
    """A store opened later with another rule."""
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=None)) as store:
        for step in range(5):
            store.save(step, {"w": torch.full((3,), float(step))})
        store.save(5, {"w": torch.ones(3)})
        assert [summary.step for summary in store.prune().removed] == []
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=1)) as store:
        assert [summary.step for summary in store.prune().removed] == [0, 1, 2, 3, 4]
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [5]


def test_a_state_that_is_committed_already_is_not_saved_again(tmp_path):
    """At its step it is returned; with other metrics, at another step or changed it is saved."""
    state = {"w": torch.ones(5)}
    with tk.CheckpointStore(tmp_path / "run") as store:
        first = store.save(1, state, metrics={"loss": 1.0}).result()
        assert store.save(1, state).result() == first
        assert store.save(1, state, metrics={"loss": 1.0}, wait=True).result() == first
        assert store.save(1, state, metrics={"loss": 2.0}).result().sequence == first.sequence + 1
        state["w"][0] = 2
        assert store.save(1, state).result().sequence == first.sequence + 2


def test_a_step_that_goes_backwards_is_refused_at_once_and_allowed_after_a_restore(tmp_path):
    """The second line of history follows what was restored."""
    state = {"w": torch.ones(5)}
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2, 3):
            state["w"].fill_(step)
            store.save(step, state)
        with pytest.raises(StoreError, match="step 2 goes backwards"):
            store.save(2, state)
        with pytest.raises(StoreError, match="a step is a whole number"):
            store.save(2.0, state)
        assert store.restore(state, 1) == 1
        state["w"].fill_(20.0)
        second = store.save(2, state).result()
        assert second.sequence == 4
        assert store.latest() == store[2] == second
        assert second["w"].tolist() == [20.0] * 5


def test_what_a_run_restores_is_what_its_first_save_builds_on(tmp_path):
    """Restored before the store is opened for writing: what is unchanged costs no bytes, and steps go on there."""
    frozen, head = torch.randn(5000), torch.randn(10)
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2, 3):
            head += 1
            store.save(step, {"frozen": frozen, "head": head})
    again = {"frozen": torch.zeros(5000), "head": torch.zeros(10)}
    with tk.CheckpointStore(tmp_path / "run") as store:
        assert store.restore(again, 2) == 2
        again["head"] += 5
        checkpoint = store.save(2, again).result()
        assert checkpoint.summary.written < 5000
        assert torch.equal(checkpoint["frozen"], frozen)
        assert store.verify().ok


def test_a_checkpoint_that_others_pruned_is_not_built_on(tmp_path):
    """Restored here, then another process prunes it: the save says so, and a restore mends it."""
    state = {"w": torch.ones(5)}
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2, 3):
            state["w"].fill_(step)
            store.save(step, state)
    late = tk.CheckpointStore(tmp_path / "run")
    assert late.restore(state, 1) == 1
    with tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=1)) as store:
        store.prune()
    with pytest.raises(StoreError, match="was pruned by another process"):
        late.save(2, state)
    assert late.restore(state) == 3
    late.save(4, state)
    late.close()


def test_others_read_while_one_writes_and_a_second_writer_is_refused(tmp_path):
    """In real processes: no lock is needed to list and restore, and to save the lock must be free."""
    where = str(tmp_path / "run")
    with tk.CheckpointStore(where) as store:
        store.save(4, {"w": torch.tensor([1.0, 2.0])}).result()
        read = subprocess.run([sys.executable, "-c", READER, where], capture_output=True, check=True, text=True)
        assert read.stdout.splitlines() == ["[4] [1.0, 2.0]", "4"]
        wrote = subprocess.run([sys.executable, "-c", WRITER, where], capture_output=True, check=True, text=True)
        assert wrote.stdout.startswith("StoreLockedError")
        assert "process" in wrote.stdout
    with tk.CheckpointStore(where) as other:
        other.save(5, {"w": torch.ones(2)}, wait=True)
        with pytest.raises(StoreError, match="was closed"):
            store.save(6, {"w": torch.ones(2)})


def test_a_writer_that_is_refused_says_so_at_save(tmp_path):
    """Within one process as well."""
    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, {"w": torch.ones(2)})
        writer = store.writer
        second = tk.CheckpointStore(
            tmp_path / "run", make_writer=lambda *args, **options: type(writer)(*args, wait=0.0, **options)
        )
        with pytest.raises(StoreLockedError):
            second.save(2, {"w": torch.ones(2)})


def test_folders_that_are_no_store_are_told_at_once(tmp_path):
    """Other things in it, a store of a later version, a marker that was damaged."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("words")
    with pytest.raises(StoreError, match="is no store of checkpoints"):
        tk.CheckpointStore(tmp_path / "other")
    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, {"w": torch.ones(2)})
    marker = tmp_path / "run" / "torchkeep.json"
    content = marker.read_bytes()
    from torchkeep.archive.lines import sealed

    marker.write_bytes(sealed(b'{"format":"torchkeep-store","version":2,"id":"x"}'))
    with pytest.raises(NewerFormatError, match="version 2"):
        tk.CheckpointStore(tmp_path / "run")
    marker.write_bytes(content.replace(b"store", b"stone"))
    with pytest.raises(DamageError):
        tk.CheckpointStore(tmp_path / "run")


def test_what_cant_be_kept_is_refused_at_save_and_nothing_is_made(tmp_path):
    """A state with a function in it, and metrics with one, by path."""
    store = tk.CheckpointStore(tmp_path / "run")
    with pytest.raises(UnsavableError, match="hook"):
        store.save(1, {"w": torch.ones(2), "opts": {"hook": print}})
    with pytest.raises(UnsavableError, match="loss"):
        store.save(1, {"w": torch.ones(2)}, metrics={"loss": print})
    assert store.checkpoints() == []
    store.close()


def test_metrics_are_those_at_save(tmp_path):
    """A dictionary that is changed afterwards."""
    metrics = {"loss": 1.0, "at": [1, 2]}
    with tk.CheckpointStore(tmp_path / "run") as store:
        pending = store.save(1, {"w": torch.ones(2)}, metrics=metrics)
        metrics["at"].append(3)
        assert pending.result().metrics == {"loss": 1.0, "at": [1, 2]}


def test_a_checkpoint_of_which_the_summary_is_damaged_is_left_out_with_a_warning(tmp_path):
    """The listing shows the others."""
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2):
            store.save(step, {"w": torch.full((2,), float(step))})
    first = min((tmp_path / "run" / "checkpoints").iterdir())
    first.write_bytes(first.read_bytes().replace(b'"step":1', b'"step":7'))
    with pytest.warns(TorchkeepWarning, match="left out a checkpoint"):
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [2]


def test_what_is_left_out_of_a_state_is_told_by_the_save(tmp_path):
    """Buffers that are not persistent."""
    net = nn.Linear(2, 2)
    net.register_buffer("cache", torch.zeros(1), persistent=False)
    with tk.CheckpointStore(tmp_path / "run") as store:
        assert store.save(1, tk.TrainingState(model=net)).left_out == ("model.cache",)


def test_a_store_is_named_by_text_or_path_and_shown(tmp_path):
    """Symbolic links are resolved once."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with tk.CheckpointStore(str(link)) as store:
        pending = store.save(1, {"w": torch.ones(2)})
        pending.result()
        assert pending.done()
        assert repr(pending) == "<PendingSave of step 1: durable>"
    assert Path(store.root) == tmp_path / "run"
    assert repr(store) == f"<CheckpointStore {store.root!r}>"
