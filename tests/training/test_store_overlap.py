"""A snapshot that is taken while training goes on is whole, or the save fails."""

from __future__ import annotations

import threading
from threading import Thread

import pytest
import torch
from torch import nn

import torchkeep as tk
from stored_runs import WAIT, Average, a_run, bits, bits_of, paused, train
from torchkeep.errors import StoreError
from torchkeep.storage.memory import MemoryStorage
from torchkeep.training.state.capturing import capture
from torchkeep.training.store.gates import closed_gates

OPTIMIZERS = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "adamw one by one": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, foreach=False),
    "adamw fused": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, fused=True),
    "rprop": torch.optim.Rprop,
}


def backward(state):
    width = state.model[0].in_features
    state.optimizer.zero_grad()
    state.model(torch.randn(4, width)).square().mean().backward()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("at", [0, 3, 25])
def test_a_step_waits_until_its_tensors_are_copied(make, at, tmp_path):
    """The copy stands still; forward and backward run, the step waits, and what is kept is the state at save()."""
    state = a_run(make=make)
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store, at) as pause:
        want = bits(state)
        pending = store.save(1, state)
        backward(state)
        pause.wait()
        stepped = threading.Event()

        def step():
            state.optimizer.step()
            stepped.set()

        training = Thread(target=step)
        training.start()
        assert not stepped.wait(0.05), "the step did not wait"
        assert all(bits(state)[name] == want[name] for name in capture(state).stepped)
        pause.go.set()
        training.join(WAIT)
        assert stepped.is_set()
        assert bits_of(pending.result()) == want
        assert bits(state) != want
    assert not closed_gates()


def test_what_forward_and_other_code_change_is_copied_before_save_returns(tmp_path):
    """Buffers, an average by lerp_ and a plain tensor change in place while the parameters' copy stands still."""
    seen = torch.arange(6.0)
    state = a_run(extra={"seen": seen})
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        want = bits(state)
        pending = store.save(1, state)
        pause.wait()
        state.ema.update(state.model)
        seen.zero_()
        backward(state)  # BatchNorm's running statistics
        with torch.no_grad():
            state.model[1].running_var.fill_(7.0)
        pause.go.set()
        assert bits_of(pending.result()) == want


def test_a_loop_full_of_writes_never_tears_a_snapshot():
    """Each step is saved while an average, a clamp after the step and the next step run: each comes back whole."""
    state, saved, wanted = a_run(width=64), [], []
    disk = MemoryStorage({"/runs": None})
    with tk.CheckpointStore("/runs/run", retention=tk.Retention(last=None), storage=disk) as store:
        store._flights.piece = 256
        for step in range(30):
            wanted.append(bits(state))
            saved.append(store.save(step, state))
            train(state)
            with torch.no_grad():
                for parameter in state.model.parameters():
                    parameter.clamp_(-0.1, 0.1)
        store.close()
        for pending, want in zip(saved, wanted, strict=True):
            assert bits_of(pending.result()) == want


@pytest.mark.parametrize(
    "when",
    ["counted", "not counted by PyTorch", "before the copy, not counted", "during the copy, seen at the step"],
)
def test_a_write_outside_of_a_step_fails_the_save(when, tmp_path):
    """A clamp into a parameter while it is copied: the save says what was changed and what to do."""
    state = a_run()
    store = tk.CheckpointStore(tmp_path / "run")
    with paused(store, at=0 if when.startswith("before") else 2) as pause:
        pending = store.save(1, state)
        pause.wait()
        with torch.no_grad():
            weight = state.model[0].weight
            (weight.data if "not counted" in when else weight).clamp_(-0.01, 0.01)
        if when == "during the copy, seen at the step":
            training = Thread(target=train, args=(state,))
            training.start()
            pause.go.set()
            training.join(WAIT)
    with pytest.raises(StoreError, match=r"'model.0.weight' changed outside .* overlap=False"):
        pending.result()
    assert store.checkpoints() == []
    want = bits(state)
    pending = store.save(1, state, overlap=False)
    with torch.no_grad():
        state.model[0].weight.clamp_(-0.001, 0.001)
    assert bits_of(pending.result()) == want
    store.close()


def test_a_write_between_copy_and_step_fails_the_save_while_it_is_not_durable(tmp_path):
    """Whether it ran into the copy can't be told any more, so the step that finds it does not let it pass."""
    state = a_run()
    store = tk.CheckpointStore(tmp_path / "run")
    held, go = threading.Event(), threading.Event()
    prune, writer = store.writer.prune, store.writer

    def publish(*args, **options):
        check = options.pop("before_publishing")

        def late():
            held.set()
            assert go.wait(WAIT)
            check()

        return commit(*args, before_publishing=late, **options)

    commit, writer.commit = writer.commit, publish
    pending = store.save(1, state)
    assert held.wait(WAIT)
    with torch.no_grad():
        state.model[0].weight.mul_(2)
    train(state)
    go.set()
    with pytest.raises(StoreError, match="changed outside"):
        pending.result()
    writer.commit, writer.prune = commit, prune
    store.close()


def test_steps_that_come_before_the_checkpoint_is_durable_are_no_writes(tmp_path):
    """The first step finds all as it was; what it and later ones change is nothing to complain about."""
    state = a_run()
    store = tk.CheckpointStore(tmp_path / "run")
    go = threading.Event()
    commit = store.writer.commit

    def slow(*args, **options):
        assert go.wait(WAIT)
        return commit(*args, **options)

    store.writer.commit = slow
    want = bits(state)
    pending = store.save(1, state)
    train(state, steps=3)
    with torch.no_grad():
        state.model[0].weight.clamp_(-0.01, 0.01)
    go.set()
    assert bits_of(pending.result()) == want
    store.close()


def test_parameters_that_are_given_other_memory_are_saved_as_they_were(tmp_path):
    """`parameter.data = ...` frees the memory that is being copied, unless the save holds it."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        want = bits(state)
        pending = store.save(1, state)
        pause.wait()
        for parameter in state.model.parameters():
            parameter.data = torch.zeros(3)
        pause.go.set()
        assert bits_of(pending.result()) == want


def test_every_optimizer_waits_and_other_ones_do_not(tmp_path):
    """Of a state with a hundred optimizers each one's step waits; one that is not saved steps freely."""
    nets = {f"net{number}": nn.Linear(4, 4) for number in range(100)}
    optimizers = {f"opt{name[3:]}": torch.optim.SGD(net.parameters(), lr=1.0) for name, net in nets.items()}
    stranger = nn.Linear(4, 4)
    free = torch.optim.SGD(stranger.parameters(), lr=1.0)
    state = tk.TrainingState(**nets, **optimizers)
    for net in [*nets.values(), stranger]:
        net(torch.ones(1, 4)).sum().backward()
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store, piece=16) as pause:
        want = bits(state)
        pending = store.save(1, state)
        pause.wait()
        before = stranger.weight.detach().clone()
        free.step()
        assert not torch.equal(before, stranger.weight)
        steps = [Thread(target=optimizer.step) for optimizer in optimizers.values()]
        for step in steps:
            step.start()
        assert bits(state) == want
        pause.go.set()
        for step in steps:
            step.join(WAIT)
        assert bits_of(pending.result()) == want
        changed = bits(state)
        assert all(changed[name] != want[name] for name in want if name.endswith(".weight"))


def test_a_save_within_a_step_copies_all_before_the_step_goes_on(tmp_path):
    """From a hook of the optimizer itself, before and after its step; the gate has let this step pass already."""
    state = a_run()
    store = tk.CheckpointStore(tmp_path / "run", retention=tk.Retention(last=None))
    store._flights.piece = 64
    wanted, saved = [], []

    def save(*_):
        wanted.append(bits(state))
        saved.append(store.save(len(saved), state))

    state.optimizer.register_step_pre_hook(save)
    state.optimizer.register_step_post_hook(save)
    train(state, steps=3)
    store.close()
    assert len(saved) == 6
    assert [bits_of(pending.result()) for pending in saved] == wanted


def test_a_step_that_raised_does_not_lock_anything(tmp_path):
    """After a failed step saves and steps go on."""
    state = a_run()

    def fail(*_):
        raise RuntimeError("no step today")

    handle = state.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no step today"):
        train(state)
    handle.remove()
    with tk.CheckpointStore(tmp_path / "run") as store:
        want = bits(state)
        pending = store.save(1, state)
        train(state)
        assert bits_of(pending.result()) == want


def test_an_optimizer_that_is_dropped_meanwhile_hinders_nothing(tmp_path):
    """The state and its optimizer are deleted while they are copied."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        want = bits(state)
        pending = store.save(1, state)
        pause.wait()
        del state
        pause.go.set()
        assert bits_of(pending.result()) == want


def test_a_copy_that_fails_releases_the_step_that_waits_for_it(tmp_path):
    """The step goes on, and the failure is told by the save."""
    state = a_run()
    store = tk.CheckpointStore(tmp_path / "run")
    reached, go = threading.Event(), threading.Event()

    def fail():
        reached.set()
        assert go.wait(WAIT)
        raise RuntimeError("the copy broke")

    store._flights.before_copy = fail
    pending = store.save(1, state)
    assert reached.wait(WAIT)
    training = Thread(target=train, args=(state,))
    training.start()
    go.set()
    training.join(WAIT)
    assert not training.is_alive()
    with pytest.raises(RuntimeError, match="the copy broke"):
        pending.result()
    assert not closed_gates()
    store._flights.before_copy = None
    store.save(2, state, wait=True)
    store.close()


def test_a_step_in_another_thread_and_tensors_in_odd_orders(tmp_path):
    """Transposed, expanded, empty, conjugated and 0-d tensors come back as their elements."""
    odd = {
        "transposed": torch.arange(12.0).view(3, 4).t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "conjugated": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "bool": torch.tensor([True, False]),
        "strided": torch.arange(10)[::3],
    }
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step, wait in enumerate((True, False)):
            checkpoint = store.save(step, odd, wait=wait).result()
            odd["scalar"] += 0  # the next one is another state
            for name, tensor in odd.items():
                assert torch.equal(checkpoint[name], tensor), name
            odd["more"] = torch.zeros(step + 1)


def test_an_average_kept_as_a_module_is_copied_first(tmp_path):
    """A part that shares no parameter with the optimizer is no business of its steps."""
    state = a_run(swa=nn.Linear(3, 3), again=Average(nn.Linear(2, 2)))
    with tk.CheckpointStore(tmp_path / "run") as store, paused(store) as pause:
        want = bits(state)
        pending = store.save(1, state)
        pause.wait()
        with torch.no_grad():
            state.swa.weight.zero_()
        pause.go.set()
        assert bits_of(pending.result()) == want


def test_a_compiled_step_waits_as_well(tmp_path):
    """torch.compile must not trace through the hooks: it would keep what they found the first time."""
    state = a_run()
    step = torch.compile(state.optimizer.step, backend="aot_eager")
    with tk.CheckpointStore(tmp_path / "run") as store:
        for number in range(4):
            want = bits(state)
            with paused(store, at=3) as pause:
                pending = store.save(number, state)
                backward(state)
                pause.wait()
                training = Thread(target=step)
                training.start()
                training.join(0.05)
                pause.go.set()
                training.join(WAIT)
            assert bits_of(pending.result()) == want
            assert bits(state) != want
