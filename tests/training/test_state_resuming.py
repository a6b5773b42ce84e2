"""Training that goes on from a checkpoint gives the bits of training that went on without."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

import torchkeep as tk
from torchkeep.training.state.capturing import capture
from training_runs import Store, bits, mlp, same, seed_everything, steps

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "AdamW-amsgrad": lambda parameters: torch.optim.AdamW(parameters, 0.01, amsgrad=True),
    "Adam-fused": lambda parameters: torch.optim.Adam(parameters, 0.01, fused=True),
    "Adam-tensor-lr": lambda parameters: torch.optim.Adam(parameters, torch.tensor(0.01)),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, 0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5, centered=True),
    "Adafactor": torch.optim.Adafactor,
    "Rprop": torch.optim.Rprop,
    "Adagrad": torch.optim.Adagrad,
}
SCHEDULERS = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 10),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, total_iters=2), StepLR(optimizer, 2)], milestones=[3]
    ),
}


def check_resuming(make, *, before=3, after=3, warm=0):
    """Train, save, train on; restore into another state, which has trained for ``warm`` steps, and train on."""
    seed_everything(3)
    straight = make(1)
    steps(straight.model, straight.optimizer, before, straight.scheduler)
    store = Store()
    store.save(straight)
    expected = steps(straight.model, straight.optimizer, after, straight.scheduler)
    other = make(2)
    if warm:
        steps(other.model, other.optimizer, warm, other.scheduler)
    assert store.restore(other) == ()
    assert steps(other.model, other.optimizer, after, other.scheduler) == expected
    assert same(bits(other), bits(straight))


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_resume_with_the_same_bits(optimizer, warm):
    """Every kind of state is given back, to an optimizer that has not stepped yet and to one that has."""

    def make(seed):
        net = mlp(seed)
        made = OPTIMIZERS[optimizer](net.parameters())
        return tk.TrainingState(model=net, optimizer=made, scheduler=CosineAnnealingLR(made, 10))

    check_resuming(make, warm=warm)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_resume_with_the_same_bits(scheduler):
    """Schedulers are given their state_dict back, callables and nested ones included."""

    def make(seed):
        net = mlp(seed)
        made = torch.optim.AdamW(net.parameters(), 0.01)
        return tk.TrainingState(model=net, optimizer=made, scheduler=SCHEDULERS[scheduler](made))

    check_resuming(make)


def test_momentum_cycles_resume_with_the_same_bits():
    """OneCycleLR moves beta1, a part of a tuple among the hyperparameters."""

    def make(seed):
        net = mlp(seed)
        made = torch.optim.AdamW(net.parameters(), 0.01)
        return tk.TrainingState(model=net, optimizer=made, scheduler=OneCycleLR(made, 0.1, total_steps=20))

    check_resuming(make)


def test_plateaus_are_remembered():
    """ReduceLROnPlateau, whose best is infinite at first, counts on where it was."""

    def make():
        net = mlp(0)
        made = torch.optim.SGD(net.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(made, patience=1)
        return tk.TrainingState(model=net, optimizer=made, plateau=plateau)

    store, one, other = Store(), make(), make()
    store.save(one, 1)
    for _ in range(2):
        one.plateau.step(1.0)
    store.save(one, 2)
    store.restore(other)
    for state in (one, other):
        state.plateau.step(1.0)
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_sparse_gradients_resume_with_the_same_bits():
    """SparseAdam counts its steps in plain numbers, apart for each parameter."""

    def make(seed):
        torch.manual_seed(seed)
        net = nn.EmbeddingBag(10, 4, sparse=True)
        return tk.TrainingState(model=net, optimizer=torch.optim.SparseAdam(net.parameters(), 0.1))

    def train(state, count):
        for _ in range(count):
            state.optimizer.zero_grad()
            state.model(torch.randint(0, 10, (3, 2))).pow(2).sum().backward()
            state.optimizer.step()

    store, one, other = Store(), make(0), make(1)
    train(one, 2)
    store.save(one)
    train(one, 2)
    assert store.restore(other) == ()
    train(other, 2)
    assert same(bits(one), bits(other))


def test_compiled_and_parallel_models_are_the_model_inside():
    """Wrappers are no part of the names: what was saved with one is restored with another, or none."""
    store = Store()
    net = mlp(0)
    wrapped = tk.TrainingState(
        model=torch.compile(net, backend="eager"), optimizer=torch.optim.Adam(net.parameters())
    )
    steps(wrapped.model, wrapped.optimizer, 2)
    store.save(wrapped)
    plain_net = mlp(1)
    plain = tk.TrainingState(model=plain_net, optimizer=torch.optim.Adam(plain_net.parameters()))
    assert store.restore(plain) == ()
    parallel_net = mlp(2)
    parallel = tk.TrainingState(
        model=nn.DataParallel(parallel_net), optimizer=torch.optim.Adam(parallel_net.parameters())
    )
    assert store.restore(parallel) == ()
    expected = bits(wrapped)
    assert same(bits(plain), expected)
    assert same(bits(parallel), expected)
    store.restore(wrapped)
    again = steps(wrapped.model, wrapped.optimizer, 2)
    store.restore(plain)
    assert steps(plain.model, plain.optimizer, 2) == again


def test_averages_and_scalers_are_kept():
    """An AveragedModel is a module of its own, a GradScaler gives a state_dict."""

    def make(seed):
        net = mlp(seed)
        return tk.TrainingState(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
            ema=torch.optim.swa_utils.AveragedModel(
                net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
            ),
            scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
        )

    store, one, other = Store(), make(0), make(1)
    for _ in range(3):
        steps(one.model, one.optimizer, 1)
        one.ema.update_parameters(one.model)
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 4.0})
    store.save(one)
    assert store.restore(other) == ()
    assert same(bits(one), bits(other))
    assert int(other.ema.n_averaged) == 3
    assert other.scaler.get_scale() == 4.0
    assert "ema.module.0.weight" in capture(other).tensors


def test_frozen_mixed_and_strided_parameters_resume():
    """Dtypes, memory formats and what is frozen stay as they are, and each parameter's state lies as it would."""

    def make(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        net = net.to(memory_format=torch.channels_last)
        net[2].weight = nn.Parameter(net[2].weight.detach().t().contiguous().t())
        net[2].bias.requires_grad_(requires_grad=False)
        net.half_scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        return tk.TrainingState(model=net, optimizer=torch.optim.Adam(net.parameters(), 0.1))

    def train(state, count):
        for _ in range(count):
            state.optimizer.zero_grad()
            output = state.model(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)).sum()
            (output * state.model.half_scale.float().prod()).backward()
            state.optimizer.step()

    store, one, other = Store(), make(0), make(1)
    train(one, 2)
    store.save(one)
    train(one, 2)
    assert store.restore(other) == ()
    moment = other.optimizer.state[other.model[0].weight]["exp_avg"]
    assert moment.stride() == other.model[0].weight.stride()
    assert other.model[2].bias not in other.optimizer.state
    train(other, 2)
    assert same(bits(one), bits(other))
    assert not other.model[2].weight.is_contiguous()


def test_what_is_drawn_next_is_the_same():
    """torch, Python and numpy's global generator draw on as if nothing had been between."""
    import random

    import numpy as np

    store, state = Store(), tk.TrainingState(gen=torch.Generator().manual_seed(5))
    seed_everything(11)
    random.gauss(0, 1)  # keeps a second number for later
    np.random.standard_normal()  # noqa: NPY002 - the global one, which does so too
    store.save(state)

    def draw():
        return (
            torch.randn(3).tolist(),
            random.gauss(0, 1),
            random.random(),  # noqa: S311 - what is tested
            np.random.standard_normal(),  # noqa: NPY002 - the global one
            np.random.rand(3).tolist(),  # noqa: NPY002 - the global one
            torch.rand(2, generator=state.gen).tolist(),
        )

    expected = draw()
    draw()
    assert store.restore(state) == ()
    assert draw() == expected
