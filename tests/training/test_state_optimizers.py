"""Optimizer state goes by parameters' names: into models that were reordered, extended, grouped otherwise."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import LoadError, UnsavableError
from torchkeep.training.state.capturing import capture
from training_runs import Store, mlp, steps


def named(**layers):
    """Return a model of named layers."""
    return nn.Sequential(OrderedDict(layers))


def trained(net, optimizer, count=2):
    """Give every parameter a state of its own."""
    for _ in range(count):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def moments(net, optimizer):
    """Return a copy of each parameter's first moment by name."""
    return {
        name: optimizer.state[parameter]["exp_avg"].clone()
        for name, parameter in net.named_parameters()
        if parameter in optimizer.state
    }


def state_of(net, optimizer=None, **parts):
    """Return the state of a model and its optimizer."""
    return tk.TrainingState(model=net, optimizer=optimizer or torch.optim.Adam(net.parameters()), **parts)


def equal(one, other):
    """Tell whether two results of `moments` are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_names_are_those_of_the_model():
    """State stands under the part, the parameter's name in the model, and its key; a tie under its owner."""
    net = mlp()
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    found = capture(state_of(net, optimizer))
    assert "optimizer.state.0.weight.exp_avg" in found.tensors
    assert not any("optimizer.state.4.weight" in name for name in found.tensors)
    assert found.tensors["optimizer.state.1.bias.exp_avg"] is optimizer.state[net[1].bias]["exp_avg"]


def test_a_reordered_model_gets_each_parameters_own_state():
    """All parameters have one shape, so only names tell which state is whose."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3))
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    store.save(state_of(net, optimizer))
    other = named(c=nn.Linear(3, 3), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    restored = state_of(other)
    assert store.restore(restored) == ()
    assert equal(moments(other, restored.optimizer), moments(net, optimizer))


def test_an_extended_model_begins_only_what_is_new():
    """Parameters in a new part of the state begin without state, which is said; the old ones go on."""
    store = Store()
    net = named(a=nn.Linear(3, 3))
    optimizer = trained(net, torch.optim.Adam(net.parameters(), lr=0.3))
    store.save(tk.TrainingState(model=net, optimizer=optimizer, head=named(x=nn.Linear(2, 2))))
    body, head = named(a=nn.Linear(3, 3)), named(x=nn.Linear(2, 2))
    made = torch.optim.Adam([*head.parameters(), *body.parameters()], lr=0.1)
    trained(head, made, 1)
    left = store.restore(tk.TrainingState(model=body, optimizer=made, head=head))
    assert left == ("optimizer: parameters that are new here begin without state: head.x.weight, head.x.bias",)
    assert equal(moments(body, made), moments(net, optimizer))
    assert head.x.weight not in made.state
    assert made.param_groups[0]["lr"] == 0.3


def test_a_model_that_lost_parameters_says_so():
    """State that nothing asks for is left, and named."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    store.save(state_of(net, trained(net, torch.optim.Adam(net.parameters()))))
    left = store.restore(state_of(net, torch.optim.Adam(net.a.parameters())))
    assert left == ("optimizer: the state of parameters that no group here has: b.weight, b.bias",)


def test_parameters_that_were_frozen_or_trained_before_are_told():
    """A script that thaws a layer at some step has to do so again after a restart: nobody does it for it."""
    store, net = Store(), named(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3))
    net.a.requires_grad_(requires_grad=False)
    store.save(state_of(net, torch.optim.Adam(net.parameters())))
    assert store.restore(state_of(net, torch.optim.Adam(net.parameters()))) == ()
    net.a.requires_grad_()
    net.c.weight.requires_grad_(requires_grad=False)
    assert store.restore(state_of(net, torch.optim.Adam(net.parameters()))) == (
        "optimizer: requires_grad: frozen in the checkpoint, and not here: a.weight, a.bias",
        "optimizer: requires_grad: trained in the checkpoint, and not here: c.weight",
    )
    assert store.restore(tk.TrainingState(model=net)) == ("the part 'optimizer'",)


def test_groups_are_found_by_name():
    """Groups that rules made carry names, so that they may come in another order."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3))

    def made(rules, lr):
        return torch.optim.AdamW(tk.optimizer_groups(net, rules), lr=lr)

    rules = {"**": {"weight_decay": 0.5}, "**.bias": {"weight_decay": 0.0}}
    saved = trained(net, made(rules, 0.1))
    saved.param_groups[0]["lr"] = 0.01
    expected = moments(net, saved)
    store.save(state_of(net, saved))
    other = made({"**.bias": {"weight_decay": 7.0}, "**.weight": {"weight_decay": 7.0}}, 0.2)
    other.param_groups[1]["name"] = "**"
    assert store.restore(state_of(net, other)) == ()
    assert [group["weight_decay"] for group in other.param_groups] == [0.0, 0.5]
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.01]
    assert equal(moments(net, other), expected)
    assert other.param_groups[0]["param_names"] == ["a.bias", "b.bias"]


def test_a_groups_name_counts_for_more_than_its_parameters():
    """Parameters that moved to the other group get its hyperparameters, and keep their own state."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3))

    def made(slow, fast, rates):
        groups = [{"params": slow.parameters(), "name": "slow"}, {"params": fast.parameters(), "name": "fast"}]
        return torch.optim.Adam([group | {"lr": rate} for group, rate in zip(groups, rates, strict=True)])

    saved = trained(net, made(net.a, net.b, (0.1, 0.9)))
    store.save(state_of(net, saved))
    other = made(net.b, net.a, (5.0, 6.0))
    assert store.restore(state_of(net, other)) == ()
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.9]
    assert equal(moments(net, other), moments(net, saved))


def test_groups_without_names_are_found_by_their_parameters():
    """The group that has most of a group's parameters is it; what is left over keeps its own, and that is said."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3))
    several = [*net.b.parameters(), *net.c.parameters()]
    groups = [{"params": net.a.parameters(), "lr": 0.1}, {"params": several, "lr": 0.2, "name": "old"}]
    store.save(state_of(net, torch.optim.SGD(groups)))
    groups = [
        {"params": several[:3], "lr": 1.0, "name": "new"},
        {"params": several[3:], "lr": 2.0},
        {"params": net.a.parameters(), "lr": 3.0},
    ]
    other = torch.optim.SGD(groups)
    left = store.restore(state_of(net, other))
    assert [group["lr"] for group in other.param_groups] == [0.2, 2.0, 0.1]
    assert [group.get("name") for group in other.param_groups] == ["new", None, None]
    assert left == (
        "optimizer: group 1 keeps its own hyperparameters: no group of the checkpoint has its parameters",
    )


def test_two_optimizers_keep_apart():
    """Each of several optimizers has its own parameters' state; those of a second module begin with its part."""
    store = Store()

    def made():
        generator, critic = named(a=nn.Linear(2, 2)), named(a=nn.Linear(2, 2))
        return tk.TrainingState(
            model=generator,
            critic=critic,
            optimizer=torch.optim.Adam(generator.parameters(), lr=0.1),
            critic_optimizer=torch.optim.Adam(critic.parameters(), lr=0.2),
        )

    one, other = made(), made()
    trained(one.model, one.optimizer)
    trained(one.critic, one.critic_optimizer)
    names = capture(one).tensors
    assert "critic_optimizer.state.critic.a.weight.exp_avg" in names
    assert "optimizer.state.a.weight.exp_avg" in names
    store.save(one)
    assert store.restore(other) == ()
    assert equal(moments(other.model, other.optimizer), moments(one.model, one.optimizer))
    assert equal(moments(other.critic, other.critic_optimizer), moments(one.critic, one.critic_optimizer))


def test_one_parameter_in_two_optimizers_is_refused():
    """Whose step would change it is not known, so the first save says so."""
    net = mlp()
    state = state_of(net, other=torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(
        UnsavableError, match=r"other can't be saved: 0.weight, .*, 4.bias are also in 'optimizer'"
    ):
        capture(state)


def test_state_is_found_again_when_other_modules_are_kept():
    """With one module, names have no prefix; with two, they have one. That must not lose anything."""
    store = Store()
    net = named(a=nn.Linear(3, 3))
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    store.save(tk.TrainingState(net=net, optimizer=optimizer, ema=named(a=nn.Linear(3, 3))))
    other = torch.optim.Adam(net.parameters())
    assert store.restore(tk.TrainingState(net=net, optimizer=other)) == ("the part 'ema'",)
    assert equal(moments(net, other), moments(net, optimizer))


def test_state_is_found_again_when_a_tie_has_another_owner():
    """The owner of a tied parameter may be declared otherwise; its state is the same."""
    store = Store()
    net, other = mlp(0), mlp(1)
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    store.save(state_of(net, optimizer))
    tk.tie(other, "4.weight", "0.weight")
    restored = state_of(other)
    assert (
        "optimizer.state.4.weight.exp_avg"
        in capture(state_of(other, trained(other, torch.optim.Adam(other.parameters())))).tensors
    )
    assert store.restore(restored) == ()
    assert torch.equal(
        restored.optimizer.state[other[4].weight]["exp_avg"], optimizer.state[net[0].weight]["exp_avg"]
    )


def test_parameters_outside_of_modules_are_kept_by_place():
    """What is in no module has a name that says so, and shapes must fit."""
    store = Store()

    def made(*shapes):
        return tk.TrainingState(optimizer=torch.optim.Adam([nn.Parameter(torch.zeros(shape)) for shape in shapes]))

    one, other = made(2, 3), made(2, 3)
    for parameter in one.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn_like(parameter)
    one.optimizer.step()
    assert "optimizer.state.group-0.position-1.exp_avg" in capture(one).tensors
    store.save(one)
    assert store.restore(other) == ()
    found = [
        optimizer.state[optimizer.param_groups[0]["params"][1]]["exp_avg"]
        for optimizer in (one.optimizer, other.optimizer)
    ]
    assert torch.equal(*found)
    wrong = made(2, 4)
    with pytest.raises(
        LoadError, match=r"'group-0.position-1' was float32 \[3\] in the checkpoint, and is float32 \[4\]"
    ):
        store.restore(wrong)
    assert not wrong.optimizer.state


def test_another_shape_is_an_error_and_nothing_is_touched():
    """All problems are told at once, and the model, the optimizer and the generators are as they were."""
    store = Store()
    net = named(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    store.save(state_of(net, trained(net, torch.optim.Adam(net.parameters()))))
    other = named(a=nn.Linear(3, 4), b=nn.Linear(3, 3, dtype=torch.float64))
    restored = state_of(other, trained(other, torch.optim.Adam(other.parameters(), lr=0.7)))
    before = {name: tensor.clone() for name, tensor in capture(restored).tensors.items()}
    with pytest.raises(LoadError) as caught:
        store.restore(restored)
    text = str(caught.value)
    assert "nothing was changed" in text
    assert (
        "model: 'a.weight' does not fit: the model has the shape [4, 3], the source [3, 3]"
        in caught.value.problems
    )
    assert (
        "optimizer: its parameter 'a.weight' was float32 [3, 3] in the checkpoint, and is float32 [4, 3] here"
        in text
    )
    assert "'b.weight'" in text
    after = capture(restored).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert restored.optimizer.param_groups[0]["lr"] == 0.7


def test_state_of_another_dtype_is_never_cast():
    """The optimizer's own load_state_dict would cast the moments to the parameter's dtype, silently."""
    store = Store()
    net = named(a=nn.Linear(3, 3))
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    optimizer.state[net.a.weight]["exp_avg"] = optimizer.state[net.a.weight]["exp_avg"].double()
    store.save(state_of(net, optimizer))
    fresh = state_of(net)
    assert store.restore(fresh) == ()
    assert fresh.optimizer.state[net.a.weight]["exp_avg"].dtype == torch.float64
    with pytest.raises(
        LoadError, match=r"the state 'exp_avg' of its parameter 'a.weight' does not fit: .* float64"
    ):
        store.restore(state_of(net, trained(net, torch.optim.Adam(net.parameters()))))


def test_state_that_is_there_is_filled_in_place():
    """Tensors stay the objects that they are, so that graphs and references stay good; stale keys go."""
    store = Store()
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.1))
    trained(net, optimizer)
    store.save(state_of(net, optimizer))
    expected = moments(net, optimizer)
    trained(net, optimizer)
    held = optimizer.state[net[0].weight]
    before = [held["exp_avg"], held["step"], optimizer.param_groups[0]["lr"]]
    held["stale"] = torch.ones(2)
    before[2].fill_(9.0)
    store.restore(state_of(net, optimizer))
    assert optimizer.state[net[0].weight] is held
    after = [held["exp_avg"], held["step"], optimizer.param_groups[0]["lr"]]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert "stale" not in held
    assert torch.equal(after[0], expected["0.weight"])
    assert float(after[1]) == 2
    assert float(after[2]) == pytest.approx(0.1)


def test_parameters_without_state_in_the_checkpoint_have_none_afterwards():
    """One that had not stepped when it was saved begins anew, as it would have."""
    store = Store()
    net = named(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net.a.weight.grad = torch.ones_like(net.a.weight)
    optimizer.step()
    store.save(state_of(net, optimizer))
    trained(net, optimizer)
    assert store.restore(state_of(net, optimizer)) == ()
    assert list(optimizer.state) == [net.a.weight]


def test_lbfgs_of_other_parameters_is_refused():
    """Its state is that of all parameters in their order, so a reordered model can't have it."""
    store = Store()
    net = mlp()
    optimizer = torch.optim.LBFGS(net.parameters())
    steps(net, optimizer, 1)
    store.save(state_of(net, optimizer))
    with pytest.raises(LoadError, match="LBFGS keeps one state for all its parameters in their order"):
        store.restore(state_of(net, torch.optim.LBFGS(list(net.parameters())[::-1])))


def test_another_kind_of_optimizer_is_refused():
    """The state of one kind means nothing to another."""
    store = Store()
    net = mlp()
    store.save(state_of(net))
    with pytest.raises(
        LoadError,
        match="has the state of Adam, and this is SGD; make that of the checkpoint, or, to begin without",
    ):
        store.restore(state_of(net, torch.optim.SGD(net.parameters(), 0.1)))


def test_a_parameter_without_a_shape_is_told(tmp_path):
    """Nothing can be put into an optimizer's state for a lazy layer before its first forward."""
    net = nn.Sequential(nn.LazyLinear(3))
    net(torch.ones(2, 4))
    with tk.CheckpointStore(tmp_path / "run") as store:
        store.save(1, state_of(net, trained(net, torch.optim.Adam(net.parameters()))), wait=True)
        with pytest.raises(
            LoadError, match=r"optimizer: its parameter '0\.weight' has no shape yet; run a forward"
        ):
            store.restore(state_of(nn.Sequential(nn.LazyLinear(3))))


def test_an_optimizer_that_writes_its_state_itself_is_left_to_it():
    """What its class or hooks add to its state_dict is kept, by its own means."""

    class Counting(torch.optim.SGD):
        extra = 0

        def state_dict(self):
            return {**super().state_dict(), "extra": self.extra}

        def load_state_dict(self, state_dict):
            self.extra = state_dict.pop("extra")
            super().load_state_dict(state_dict)

    store = Store()
    net = mlp()
    one, other = Counting(net.parameters(), 0.1, momentum=0.9), Counting(net.parameters(), 0.2, momentum=0.9)
    steps(net, one, 2)
    one.extra = 5
    found = capture(state_of(net, one))
    assert not found.optimizers
    assert not found.stepped
    store.save(state_of(net, one))
    assert store.restore(state_of(net, other)) == ()
    assert other.extra == 5
    assert other.param_groups[0]["lr"] == 0.1
    key = net[0].weight
    assert torch.equal(one.state[key]["momentum_buffer"], other.state[key]["momentum_buffer"])


def test_an_optimizer_whose_state_dict_is_hooked_is_left_to_it():
    """A hook may add what the state alone does not hold."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.register_state_dict_post_hook(lambda _, state: state | {"hooked": 5})
    assert capture(state_of(net, optimizer)).tree["value"]["dict"]["optimizer"]["dict"]["hooked"] == 5


def test_state_under_no_parameter_is_kept():
    """Some optimizers keep numbers for all parameters together, under a text."""
    store = Store()
    net = mlp()
    one, other = torch.optim.SGD(net.parameters(), 0.1), torch.optim.SGD(net.parameters(), 0.1)
    one.state["count"], one.state["mean"] = 3, torch.ones(2)
    other.state["old"] = 1
    store.save(state_of(net, one))
    assert store.restore(state_of(net, other)) == ()
    assert other.state["count"] == 3
    assert torch.equal(other.state["mean"], torch.ones(2))
    assert "old" not in other.state


def test_tied_state_comes_back_tied():
    """Parameters that share one step count share it again."""
    store = Store()
    net = mlp()
    optimizer = trained(net, torch.optim.Adam(net.parameters()))
    shared = torch.tensor(7.0)
    for held in optimizer.state.values():
        held["step"] = shared
    assert sum(name.endswith(".step") for name in capture(state_of(net, optimizer)).tensors) == 1
    store.save(state_of(net, optimizer))
    other = state_of(net)
    assert store.restore(other) == ()
    counts = {id(held["step"]) for held in other.optimizer.state.values()}
    assert len(counts) == 1
    assert counts != {id(shared)}


def test_hyperparameters_that_need_pickle_are_refused_by_path():
    """The first save tells where they are."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.param_groups[0]["hook"] = print
    optimizer.state[net[0].weight]["what"] = object()
    with pytest.raises(UnsavableError) as caught:
        capture(state_of(net, optimizer))
    text = str(caught.value)
    assert "optimizer['groups'][0]['hook']: it is a builtin_function_or_method; code is never saved" in text
    assert "optimizer['state']['0.weight']['what']: it is an object" in text


def test_state_that_was_on_the_cpu_beside_a_parameter_elsewhere_is_there_again():
    """A step count is read on the CPU, whatever device the parameter is on (here one without memory)."""
    store = Store()

    def made():
        return torch.optim.SGD([nn.Parameter(torch.zeros(2, device="meta"))], torch.tensor(0.1))

    one, other = made(), made()
    one.state[one.param_groups[0]["params"][0]] = {"count": torch.tensor(3.0)}
    store.save(tk.TrainingState(optimizer=one))
    other.param_groups[0]["lr"] = 5.0
    assert store.restore(tk.TrainingState(optimizer=other)) == ()
    (held,) = other.state.values()
    assert held["count"].item() == 3.0
    assert other.param_groups[0]["lr"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("capturable", [False, True])
def test_step_counts_of_a_model_that_moved_are_where_torch_wants_them(capturable):
    """On the CPU, unless the group is capturable: then beside the parameter (here on a device without memory)."""
    store = Store()

    def made(device):
        return torch.optim.Adam([nn.Parameter(torch.zeros(2, device=device))], capturable=capturable)

    one, other = made("cpu"), made("meta")
    one.state[one.param_groups[0]["params"][0]] = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}
    store.save(tk.TrainingState(optimizer=one))
    assert store.restore(tk.TrainingState(optimizer=other)) == ()
    (held,) = other.state.values()
    assert held["step"].device.type == ("meta" if capturable else "cpu")
    assert held["exp_avg"].device.type == "meta"
