"""Gradients between two steps of an optimizer: what the next backward adds to is kept, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import TorchkeepWarning

BATCHES = [torch.linspace(number, number + 1, 6).reshape(2, 3) for number in range(5)]


def made(folder, state, **how):
    """A run that saves each step, and begins with random states that are always the same."""
    torch.manual_seed(0)
    return tk.Run(tk.CheckpointStore(folder), state, every=1, **how)


def begun_over(folder, train, stops):
    """Train in one life, and in several, each of which ends within a step; return the last states of both."""
    states = []
    for name, lives in (("one", [None]), ("two", [*stops, None])):
        for stop in lives:
            state = train.state()
            run = made(folder / name, state)
            for batch in run.batches(BATCHES, steps=9):
                train(state, run.step, batch)
                if run.step == stop:
                    break
            run.store.close()
        states.append(state)
    return states


def bits(state, *parts):
    return [parameter.tolist() for part in parts for parameter in getattr(state, part).parameters()]


def test_what_another_loss_leaves_after_a_step_is_kept(tmp_path):
    """A generator's loss goes through its critic, whose gradients it leaves for the critic's next step."""

    def train(state, _step, batch):
        state.critic(batch).square().mean().backward()
        state.second.step()
        state.second.zero_grad()
        state.critic(state.model(batch)).sin().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    def state():
        torch.manual_seed(0)
        net, critic = nn.Linear(3, 3), nn.Linear(3, 1)
        first, second = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (net, critic))
        return tk.TrainingState(model=net, optimizer=first, critic=critic, second=second)

    train.state = state
    undisturbed, resumed = begun_over(tmp_path, train, (2, 3, 6))
    assert bits(resumed, "model", "critic") == bits(undisturbed, "model", "critic")


@pytest.mark.parametrize("to_none", [True, False])
def test_what_a_step_used_up_costs_nothing(tmp_path, to_none):
    """Gradients that are zeroed, before or after the save, are not written; that there are some is."""
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = made(tmp_path / "store", tk.TrainingState(model=net, optimizer=optimizer))
    for batch in run.batches(BATCHES, steps=4):
        if run.step % 2:
            optimizer.zero_grad(set_to_none=to_none)
        net(batch).square().mean().backward()
        optimizer.step()
        if run.step % 2 == 0:
            optimizer.zero_grad(set_to_none=to_none)
        else:
            run.request_save()
    run.store.close()
    for checkpoint in run.store.checkpoints():
        assert not [name for name in checkpoint if name.startswith("sampler")]


def test_gradients_go_by_name(tmp_path):
    """Between two steps a model may be put into another order; what does not fit is left, and told."""

    def state(order, **shapes):
        net = nn.ModuleDict({name: nn.Linear(*shapes.get(name, (3, 3))) for name in order})
        return tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))

    first = state("ab")
    run = made(tmp_path / "store", first)
    for batch in run.batches(BATCHES, steps=2):
        first.model["b"](first.model["a"](batch)).sum().backward()
    run.store.close()
    again = state("ba")
    made(tmp_path / "store", again).resume()
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter.grad, first.model.get_parameter(name).grad)

    fewer = state("ba")
    fewer.optimizer = torch.optim.SGD(fewer.model["b"].parameters(), lr=0.1)
    with pytest.warns(TorchkeepWarning) as told:
        made(tmp_path / "store", fewer).resume()
    assert "no parameter here fits are left: a.weight, a.bias" in " ".join(str(one.message) for one in told)
    assert torch.equal(fewer.model["b"].weight.grad, first.model["b"].weight.grad)
    assert fewer.model["a"].weight.grad is None
