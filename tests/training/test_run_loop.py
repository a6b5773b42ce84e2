"""What `tk.Run` does between two steps: count, save on time, go on, keep metrics, and tell what failed."""

from __future__ import annotations

import io
import random
import sys
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

import torchkeep as tk
from fed_batches import CountsYielded, Items, OwnPlace, Stream, make_rows
from torchkeep.archive import Writer
from torchkeep.errors import (
    LoadError,
    RunError,
    SourceError,
    StorageError,
    StoreLockedError,
    TorchkeepWarning,
    UnsavableError,
)
from torchkeep.storage.local_folders import LocalFolders
from torchkeep.training.run import progress


def make(folder, *, every=3, **how):
    """A run over a small model, made as a script makes it."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002 - the global one
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    state = tk.TrainingState(model=net, optimizer=optimizer, loader=how.pop("loader", None))
    storage = how.pop("storage", LocalFolders())
    store = tk.CheckpointStore(folder, storage=storage, retention=how.pop("retention", tk.Retention(last=None)))
    return tk.Run(store, state, every=every, **how)


def train(run, batch):
    """One step, with randomness of the main process in it."""
    noise = torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002, S311 - the global ones, on purpose
    loss = run.state.model(torch.sin(batch.float()) + noise).square().mean()
    run.state.optimizer.zero_grad()
    loss.backward()
    run.state.optimizer.step()
    return loss


def go(run, loader, steps):
    """Train to a step; return what each step saw."""
    return [
        (run.step, run.epoch, run.batch, train(run, batch).item()) for batch in run.batches(loader, steps=steps)
    ]


def loader(**how):
    return DataLoader(Items(), 4, shuffle=True, **how)


def steps_of(run):
    return [checkpoint.step for checkpoint in run.store.checkpoints()]


def test_steps_epochs_and_batches_are_counted(tmp_path):
    """Six batches an epoch: step counts on, batch begins anew."""
    run = make(tmp_path / "store")
    seen = [(run.step, run.epoch, run.batch) for _ in run.batches(loader(), steps=14)]
    assert seen == [(step, step // 6, step % 6) for step in range(14)]
    assert (run.step, run.resumed_from, run.durable) == (14, None, 14)
    assert (run.state.epoch, run.state.batch) == (2, 2)
    run.store.close()


def test_saves_come_on_time_and_at_the_end(tmp_path):
    """Every third step and the last, durable when the loop is over; none of step 0."""
    run = make(tmp_path / "store")
    go(run, loader(), 10)
    assert steps_of(run) == [3, 6, 9, 10]
    assert run.store.verify().ok
    run.store.close()


@pytest.mark.parametrize("every", [timedelta(minutes=1.5), "1min 30s", "90 s", "1.5m"], ids=str)
def test_saves_come_by_the_clock(every, tmp_path):
    """A duration is counted from the last save, by the clock given."""
    now = [1000.0]
    run = make(tmp_path / "store", every=every, clock=lambda: now[0])
    for number, batch in enumerate(run.batches(loader(), steps=8)):
        train(run, batch)
        now[0] += 100 if number == 6 else 31
    assert steps_of(run) == [3, 6, 7, 8]
    run.store.close()


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "soon", "10", "", timedelta(0), None], ids=repr)
def test_what_is_no_time_to_save_is_refused(every, tmp_path):
    """At once, not after hours without a checkpoint."""
    with pytest.raises(RunError, match="takes a number of steps"):
        make(tmp_path / "store", every=every)


LOADERS = {
    "loader": loader,
    "own generator": lambda: loader(generator=torch.Generator().manual_seed(1)),
    "in the state": lambda: loader(generator=torch.Generator().manual_seed(1)),
    "own place": lambda: DataLoader(Items(), 4, sampler=OwnPlace()),
    "counts yielded": lambda: DataLoader(Items(), 4, sampler=CountsYielded()),
    "stream": lambda: DataLoader(Stream(), 4),
    "function": lambda: make_rows,
    "list": lambda: list(torch.arange(35).view(7, 1, 5)),
}


@pytest.mark.parametrize("kind", list(LOADERS))
@pytest.mark.filterwarnings("ignore:.*loaded again:torchkeep.errors.TorchkeepWarning")
def test_a_run_goes_on_as_if_nothing_had_been(kind, tmp_path):
    """Interrupted again and again, each step sees and does what it does undisturbed."""
    undisturbed = make(tmp_path / "one", every=2)
    expected = go(undisturbed, LOADERS[kind](), 20)
    undisturbed.store.close()
    for stop in (1, 5, 9, 12, 13, 18, None):
        source, seen = LOADERS[kind](), []
        run = make(tmp_path / "two", every=2, **({"loader": source} if kind == "in the state" else {}))
        batches = run.batches(source, steps=20)
        for batch in batches:
            seen.append((run.step, run.epoch, run.batch, train(run, batch).item()))
            if run.step == stop:
                break
        batches.close()
        assert seen == expected[seen[0][0] : seen[-1][0] + 1]
        run.store.close()
    assert run.resumed_from == 18
    assert all(map(torch.equal, run.state.model.parameters(), undisturbed.state.model.parameters()))
    assert torch.equal(
        *(one.store.latest()["optimizer.state.0.weight.momentum_buffer"] for one in (run, undisturbed))
    )


def test_an_exception_saves_nothing_of_its_step(tmp_path):
    """What it interrupted is half done."""
    run = make(tmp_path / "store", every=1)

    def fail():
        for batch in run.batches(loader(), steps=9):
            train(run, batch)
            _ = 1 // (4 - run.step)

    with pytest.raises(ZeroDivisionError):
        fail()
    run.store.close()
    assert steps_of(run) == [1, 2, 3, 4]


def test_the_same_seed_gives_the_same_batches_and_another_others(tmp_path):
    """It is the script's own, by torch.manual_seed or as given; where it can't be followed, the run says so."""
    runs = {
        name: make(tmp_path / name, seed=seed) for name, seed in {"a": None, "b": None, "c": 7, "d": 7}.items()
    }
    seen = {name: [batch.tolist() for batch in run.batches(loader(), steps=4)] for name, run in runs.items()}
    for run in runs.values():
        run.store.close()
    assert seen["a"] == seen["b"] != seen["c"] == seen["d"]
    assert make(tmp_path / "c").resume() == make(tmp_path / "c", seed=7).resume() == 4
    with pytest.raises(RunError, match="begun with seed 7"):
        make(tmp_path / "c", seed=8).resume()


def two_loops(run, first, second, stop=None):
    """Train, change what is trained, and train on over other data; stop at a step by leaving."""
    seen = []
    for source, steps in ((first, 8), (second, 17), (first, 24)):
        for batch in run.batches(source, steps=steps):
            seen.append((run.step, train(run, batch).item()))
            if run.step == stop:
                return seen
        run.state.optimizer.param_groups[0]["lr"] *= 0.5
        torch.rand(3)
    return seen


def test_several_loops_go_on_in_the_loop_that_was_interrupted(tmp_path):
    """Loops that are done give nothing, code between them does not act twice, and each loader keeps its place."""
    undisturbed = make(tmp_path / "one")
    expected = two_loops(undisturbed, loader(), loader())
    undisturbed.store.close()
    for stop in (5, 10, 11, 20, None):
        run = make(tmp_path / "two")
        seen = two_loops(run, loader(), loader(), stop)
        assert seen == expected[seen[0][0] : seen[-1][0] + 1]
        run.store.close()
    assert run.state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**3)
    assert all(map(torch.equal, run.state.model.parameters(), undisturbed.state.model.parameters()))


def test_a_loop_for_each_epoch_is_one_run(tmp_path):
    """Loops over the same loader, a part of its epochs each, give what one long loop does."""
    whole = make(tmp_path / "one")
    expected = go(whole, loader(), 15)
    parts, source, seen = make(tmp_path / "two"), loader(), []
    for steps in (6, 12, 13, 15):
        seen += go(parts, source, steps)
    assert seen == expected
    whole.store.close(), parts.store.close()


@pytest.mark.parametrize("stop", [3, 5, 6, 7, 8, 13], ids=str)
def test_what_follows_a_loop_is_done_once(stop, tmp_path):
    """After an epoch the rate is halved, with a draw: not lost if the epoch's end was the last that was saved."""

    def epochs(folder, stop=None):
        run = make(tmp_path / folder, every=5)
        source, group, seen = loader(), run.state.optimizer.param_groups[0], []
        with run.store:  # what is in flight lands
            for epoch in range(3):
                for batch in run.batches(source, steps=6 * epoch + 6):
                    if run.step == stop:
                        raise KeyboardInterrupt
                    seen.append((run.step, group["lr"], train(run, batch).item()))
                group["lr"] *= 0.5 + 0.1 * random.random()  # noqa: S311 - the global one, on purpose
        return seen

    expected = epochs("one")
    with pytest.raises(KeyboardInterrupt):
        epochs("two", stop)
    seen = epochs("two")
    assert seen == expected[seen[0][0] :]
    assert seen[0][0] == max([0, *(step for step in (5, 6, 10, 12) if step <= stop)])


def test_loaders_made_anew_for_each_epoch_leave_nothing_behind(tmp_path):
    """Each begins its own first epoch; a restart reads the checkpoint twice, not once for each loop."""

    def epochs(run, count):
        return [one for epoch in range(count) for one in go(run, loader(), 6 * epoch + 6)]

    undisturbed = make(tmp_path / "one")
    expected = epochs(undisturbed, 5)
    assert len(undisturbed.state.sampler["places"]) == 1
    undisturbed.store.close()
    run = make(tmp_path / "two")
    epochs(run, 4)
    run.store.close()
    again = make(tmp_path / "two")
    reads, restore = [], again.store.restore
    again.store.restore = lambda *given: reads.append(restore(*given)) or reads[-1]
    assert epochs(again, 5) == expected[24:]
    assert reads == [24, 24]
    again.store.close()


def test_a_finished_run_gives_nothing_and_has_its_end(tmp_path):
    """Started once more, the script has the trained model, and trains no more."""
    run = make(tmp_path / "store")
    go(run, loader(), 7)
    run.store.close()
    again = make(tmp_path / "store")
    assert go(again, loader(), 7) == []
    assert (again.step, again.resumed_from, again.durable) == (7, 7, 7)
    assert all(map(torch.equal, run.state.model.parameters(), again.state.model.parameters()))
    assert steps_of(again) == [3, 6, 7]


def test_resuming_early_shifts_nothing(tmp_path):
    """What is drawn between resume() and the loop has no say in it; what is set stays set."""
    run = make(tmp_path / "store")
    expected = go(run, loader(), 9)
    run.store.close()
    (tmp_path / "other").mkdir()
    first = make(tmp_path / "other" / "store")
    go(first, loader(), 4)
    first.store.close()
    again = make(tmp_path / "other" / "store")
    assert again.resume() == again.step == 4
    torch.rand(5)
    assert go(again, loader(), 9) == expected[4:]
    with pytest.raises(RunError, match="is at step 9"):
        again.resume()
    again.store.close()


def test_an_older_step_can_be_gone_on_from(tmp_path):
    """What follows is a new line of history, and the same again; a loop that has nothing to do changes nothing."""
    first = make(tmp_path / "store")
    seen = go(first, loader(), 9)
    first.store.close()
    again = make(tmp_path / "store")
    assert (again.resume(3), again.step) == (3, 3)
    assert go(again, batches := loader(), 2) == []
    assert go(again, batches, 9) == seen[3:]
    assert steps_of(again) == [3, 6, 9, 6, 9]
    again.store.close()


def test_a_model_that_was_extended_goes_on(tmp_path):
    """The run's step and data go on, as do the old layers; from the next checkpoint on nothing is new any more."""
    first = make(tmp_path / "store")
    go(first, loader(), 6)
    first.store.close()

    def extended():
        run = make(tmp_path / "store")
        run.state.model.append(nn.Linear(1, 1))
        run.state.optimizer = torch.optim.SGD(run.state.model.parameters(), 1e-3, momentum=0.9)
        return run

    again = extended()
    with pytest.raises(LoadError, match=r"3\.weight"):
        go(again, loader(), 9)
    with pytest.warns(TorchkeepWarning, match=r"the checkpoint has no 3\.weight, 3\.bias"):
        assert again.resume(missing="ignore") == 6
    assert [one[0] for one in go(again, loader(), 9)] == [6, 7, 8]
    again.store.close()
    assert extended().resume() == 9


def test_a_second_run_of_the_store_is_refused_before_its_first_step(tmp_path):
    """Started twice by mistake, or before the old process has ended, from whose last step it then goes on."""
    first = make(tmp_path / "store")
    go(first, loader(), 6)
    store = tk.CheckpointStore(tmp_path / "store", make_writer=partial(Writer, wait=0.0))
    refused = tk.Run(store, make(tmp_path / "other").state, every=100)
    with pytest.raises(StoreLockedError, match="this one, by another store"):
        go(refused, loader(), 9)
    go(first, loader(), 8)
    first.store.close()
    assert [one[0] for one in go(refused, loader(), 9)] == [8]
    refused.store.close()


def test_a_restore_that_a_run_does_not_go_on_from_is_told(tmp_path):
    """Whoever restores step 3 and makes a run wants to go on from there, or should know that it does not."""
    first = make(tmp_path / "store")
    go(first, loader(), 6)
    assert first.store.restore(first.state, 3) == first.store.restored == 3
    second = tk.Run(first.store, first.state, every=3)
    with pytest.warns(TorchkeepWarning, match=r"step 3 was restored .* from the newest, 6; .* run\.resume\(3\)"):
        go(second, loader(), 7)
    assert (second.resumed_from, first.store.restored) == (6, None)
    first.store.close()


def test_another_loop_within_a_loop_is_refused_and_a_loader_is_not(tmp_path):
    """Validation goes over its DataLoader itself."""
    run = make(tmp_path / "store")
    for batch in run.batches(loader(), steps=2):
        train(run, batch)
        assert len(list(loader())) == 6
        with pytest.raises(RunError, match="a loop of this run is running"):
            next(run.batches(loader(), steps=9))
    assert run.step == 2
    run.store.close()


@pytest.mark.parametrize(("exact", "outcome"), [(True, "raises"), (False, "goes on")])
def test_another_batch_size_within_an_epoch_is_told(exact, outcome, tmp_path):
    """Some samples would be seen twice and others not at all: an error, or a warning for who wants it so."""
    run = make(tmp_path / "store")
    go(run, loader(), 4)
    run.store.close()
    again = make(tmp_path / "store")
    batches = again.batches(DataLoader(Items(), 5, shuffle=True), steps=6, exact=exact)
    if outcome == "raises":
        with pytest.raises(RunError, match=r"can't be gone on from exactly.*are not those.*exact=False"):
            next(batches)
    else:
        with pytest.warns(TorchkeepWarning, match=r"can't be gone on from exactly"):
            assert len(list(batches)) == 2
    again.store.close()


@pytest.mark.parametrize("source", [[], DataLoader([]), lambda: iter(())], ids=["list", "loader", "function"])
def test_a_loader_without_batches_is_refused(source, tmp_path):
    """Not an endless loop over empty epochs."""
    run = make(tmp_path / "store")
    with pytest.raises(RunError, match="gave no batch in epoch 0"):
        list(run.batches(source, steps=3))


def test_arguments_that_can_not_be_are_refused_when_given(tmp_path):
    """Not when the loop begins."""
    run = make(tmp_path / "store")
    with pytest.raises(RunError, match="takes the number of the step"):
        run.batches([1], steps=2.5)
    with pytest.raises(SourceError, match="goes through its loader"):
        run.batches(iter([1]), steps=2)
    with pytest.raises(SourceError, match="not an int"):
        run.batches(1, steps=2)
    with pytest.raises(RunError, match="'raise' or 'warn'"):
        make(tmp_path / "store", on_failure="ignore")
    with pytest.raises(RunError, match="whole number"):
        make(tmp_path / "store", seed="today")
    with pytest.raises(RunError, match="takes a TrainingState"):
        tk.Run(run.store, {"model": run.state.model}, every=1)
    with pytest.raises(RunError, match="takes a CheckpointStore"):
        tk.Run(tmp_path / "store", run.state, every=1)


def test_a_checkpoint_that_no_run_saved_is_gone_on_with(tmp_path):
    """Moving from a loop of one's own to a Run: the epoch it says, from its begin, and a warning."""
    run = make(tmp_path / "store")
    run.state.epoch = 3
    run.store.save(40, run.state, wait=True)
    run.store.close()
    again = make(tmp_path / "store")
    with pytest.warns(TorchkeepWarning, match="not saved by a Run"):
        seen = go(again, loader(), 42)
    assert [one[:3] for one in seen] == [(40, 3, 0), (41, 3, 1)]
    again.store.close()


def accumulate(run, stop=None):
    """Step every third batch only, with zeroed gradients that stay, of a model that is not always used whole."""
    used, unused = run.state.model[0], run.state.model[2]
    seen = []
    for batch in run.batches(loader(), steps=20):
        loss = used(torch.sin(batch.float())).square().mean()
        if run.step < 3:
            loss = loss + unused.weight.square().sum()
        loss.backward()
        if run.step % 3 == 2:
            run.state.optimizer.step()
            run.state.optimizer.zero_grad(set_to_none=False)
        seen.append((run.step, loss.item()))
        if run.step == stop:
            break
    return seen


def test_gradients_are_kept_between_two_steps_of_the_optimizer(tmp_path):
    """A checkpoint within an accumulation holds what is accumulated; momentum of unused parameters goes on too."""
    undisturbed = make(tmp_path / "one", every=1)
    expected = accumulate(undisturbed)
    undisturbed.store.close()
    for stop in (2, 4, 5, 9, 13, None):
        run = make(tmp_path / "two", every=1)
        seen = accumulate(run, stop)
        assert seen == expected[seen[0][0] : seen[-1][0] + 1]
        run.store.close()
    assert all(map(torch.equal, run.state.model.parameters(), undisturbed.state.model.parameters()))
    gradients = [[str(parameter.grad) for parameter in one.state.model.parameters()] for one in (run, undisturbed)]
    assert gradients[0] == gradients[1]
    assert run.state.model[0].weight.grad.any()


# Metrics


def test_metrics_go_with_the_next_checkpoint_only(tmp_path):
    """Tensors and numbers, the last value of each; what is recorded later is the next checkpoint's."""
    run = make(tmp_path / "store", retention=tk.Retention(last=1, best=("accuracy", "max")))
    for batch in run.batches(loader(), steps=12):
        run.record(loss=train(run, batch))
        if run.step == 4:
            run.record(accuracy=0.9, loss=7)
            run.request_save()
        if run.step == 8:
            run.record(accuracy=torch.tensor(0.5))
    run.store.close()
    best = run.store.best()
    assert (best.step, best.metrics) == (5, {"loss": 7.0, "accuracy": 0.9})
    assert run.store.latest().metrics.keys() == {"loss"}


@pytest.mark.parametrize("value", ["low", None, torch.ones(2), [1.0]], ids=["text", "none", "tensor", "list"])
def test_metrics_that_are_no_numbers_are_refused(value, tmp_path):
    """Where they are given, by name."""
    with pytest.raises(UnsavableError, match="'loss' can't be saved"):
        make(tmp_path / "store").record(loss=value)


# Saves that fail


class Full(LocalFolders):
    """A disk that is full for a while."""

    full = False

    def create(self, path, *how):
        if self.full:
            raise StorageError(f"no space left for {path!r}")
        return super().create(path, *how)


def test_a_failed_save_stops_the_run_at_the_next_step(tmp_path):
    """By default nobody trains on for days with nothing being saved."""
    disk = Full()
    run = make(tmp_path / "store", every=2, storage=disk)

    def fill():
        for batch in run.batches(loader(), steps=50):
            train(run, batch)
            disk.full = run.durable is not None

    with pytest.raises(StorageError, match="no space left"):
        fill()
    assert run.durable in steps_of(run)
    assert run.step <= steps_of(run)[-1] + 4


def test_a_failed_save_is_a_warning_for_who_wants_it(tmp_path):
    """Training goes on, the next save goes well, and the metrics of the failed one are with it."""
    disk = Full()
    run = make(tmp_path / "store", every=2, storage=disk, on_failure="warn")

    def fill():
        for batch in run.batches(loader(), steps=9):
            train(run, batch)
            disk.full = run.step in range(3, 7)
            if run.step == 3:
                run.record(note=1)

    with pytest.warns(TorchkeepWarning, match="a save failed, and training goes on: no space left"):
        fill()
    assert steps_of(run)[-1] == run.durable == 9
    assert 4 not in steps_of(run)
    noted = [one.step for one in run.store.checkpoints() if one.metrics and "note" in one.metrics]
    assert noted == [min(step for step in steps_of(run) if step > 4)]
    run.store.close()


def test_what_can_not_be_saved_at_the_end_raises_anyway(tmp_path):
    """There is no later save that could make up for it."""
    disk = Full()
    run = make(tmp_path / "store", every=50, storage=disk, on_failure="warn")
    disk.full = True
    with pytest.warns(TorchkeepWarning, match="no space left"), pytest.raises(StorageError, match="no space left"):
        go(run, loader(), 3)
    assert run.durable is None


# What is shown


def shown(run, monkeypatch, *, terminal):
    """Train with the error stream replaced; return what was written there."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=out, force_terminal=terminal, width=100))
    go(run, loader(), 7)
    run.store.close()
    return out.getvalue()


def test_progress_shows_the_step_and_the_last_durable_one(tmp_path, monkeypatch):
    """On a terminal by itself."""
    text = shown(make(tmp_path / "store"), monkeypatch, terminal=True)
    assert "7/7" in text
    assert "saved at 7" in text


@pytest.mark.parametrize(("wanted", "terminal"), [(None, False), (False, True)])
def test_progress_is_quiet_elsewhere(wanted, terminal, tmp_path, monkeypatch):
    """A log file gets no line a step."""
    assert shown(make(tmp_path / "store", progress=wanted), monkeypatch, terminal=terminal) == ""
    assert sys.stderr is sys.__stderr__ or sys.stderr is not None
