"""Giving a state back: all or nothing, in place, and never in silence."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchkeep as tk
from torchkeep.archive import Archive
from torchkeep.errors import DamageError, LoadError
from torchkeep.storage.memory import MemoryStorage
from torchkeep.training.state import randomness
from torchkeep.training.state.capturing import capture
from torchkeep.training.state.randomness import rng_state, set_rng_state
from torchkeep.training.state.restoring import restore_into
from training_runs import Store, bits, mlp, same, steps


def flipped(content, at):
    """Return bytes with one bit flipped."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


class Picky:
    """Something with a state_dict of its own, which it may refuse."""

    def __init__(self, number=0):
        self.number, self.refusing = number, False

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state_dict):
        if self.refusing:
            raise KeyError("number")
        self.number = state_dict["number"]


def test_values_come_back_in_the_containers_that_are_there():
    """References to lists, dicts and tensors stay good; plain values are replaced."""
    store = Store()
    history, table, tensor = [1, 2], {"a": (1, {2}), "t": torch.ones(2)}, torch.arange(3)
    store.save(tk.TrainingState(history=history, table=table, tensor=tensor, best=float("inf"), none=None))
    live = {"history": [9], "table": {"t": torch.zeros(2), "old": 1}, "tensor": torch.zeros(3, dtype=torch.int64)}
    inner = live["table"]["t"]
    state = tk.TrainingState(**live, best=0, none=3)
    assert store.restore(state) == ()
    assert live["history"] == [1, 2]
    assert live["table"].keys() == {"a", "t"}
    assert live["table"]["a"] == (1, {2})
    assert live["table"]["t"] is inner
    assert inner.tolist() == [1.0, 1.0]
    assert live["tensor"].tolist() == [0, 1, 2]
    assert (state.best, state.none) == (float("inf"), None)


def test_counters_and_sampler_come_back():
    """They are every state's own."""
    store, one, other = Store(), tk.TrainingState(), tk.TrainingState()
    one.epoch, one.batch, one.sampler = 3, 17, {"order": torch.randperm(5), "seed": 2**70}
    store.save(one)
    assert store.restore(other) == ()
    assert (other.epoch, other.batch, other.sampler["seed"]) == (3, 17, 2**70)
    assert torch.equal(other.sampler["order"], one.sampler["order"])


def test_a_tensor_of_another_shape_takes_the_live_ones_place_and_says_so():
    """A value may have grown; whoever still holds the old tensor should know."""
    store = Store()
    store.save(tk.TrainingState(losses=torch.ones(4)))
    state = tk.TrainingState(losses=torch.zeros(0))
    left = store.restore(state)
    assert state.losses.tolist() == [1.0] * 4
    assert left == (
        "the tensor losses was not filled but replaced: the checkpoint has the shape [4], the state [0]",
    )


def test_values_that_share_memory_here_but_not_there_are_kept_apart():
    """One tensor can't have two values: the second gets memory of its own, as it had when it was saved."""
    store, net = Store(), nn.Linear(2, 2)
    store.save(tk.TrainingState(net=net, average={"w": torch.full((2, 2), 5.0)}))
    other = nn.Linear(2, 2)
    state = tk.TrainingState(average={"w": other.weight.detach()}, net=other)
    store.restore(state)
    assert torch.equal(other.weight, net.weight)
    assert state.average["w"].tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_modules_that_are_tied_here_but_not_there_are_refused():
    """No silent choice between two values for one parameter; equal ones are no conflict."""
    store = Store()
    store.save(tk.TrainingState(model=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    shared = nn.Linear(2, 2)
    before = shared.weight.detach().clone()
    with pytest.raises(LoadError, match=r"'head.weight' is one tensor with another of the state, and"):
        store.restore(tk.TrainingState(model=shared, head=shared))
    assert torch.equal(shared.weight, before)
    twin = nn.Linear(2, 2)
    twin.load_state_dict(shared.state_dict())
    store.save(tk.TrainingState(model=shared, head=twin), 2)
    assert store.restore(tk.TrainingState(model=shared, head=shared)) == ()


def test_missing_parts_are_an_error_and_further_ones_are_told():
    """A state gets all that it asks for, or nothing; what it did not ask for is left."""
    store, net = Store(), mlp()
    store.save(tk.TrainingState(model=net, best=1))
    with pytest.raises(LoadError) as caught:
        store.restore(tk.TrainingState(model=net, ema=mlp(), scale=2))
    has = "it has model, best, epoch, batch, sampler, rng; to keep what is there, give missing='ignore'"
    assert caught.value.problems == (
        f"the checkpoint has no part 'ema'; {has}",
        f"the checkpoint has no part 'scale'; {has}",
    )
    assert store.restore(tk.TrainingState(model=net)) == ("the part 'best'",)
    new = tk.TrainingState(model=net, scale=2)
    left = ("the part 'scale': the checkpoint has none", "the part 'best'")
    assert (store.restore(new, missing="ignore"), new.scale) == (left, 2)


def test_a_model_may_have_gained_and_lost_layers():
    """Where that is asked for, new layers keep what they have, old ones are left; another shape is an error."""

    def net(**sizes):
        return nn.ModuleDict({name: nn.Linear(size, size) for name, size in sizes.items()})

    store, old, new = Store(), net(a=2, b=3), net(c=4, a=2)
    store.save(tk.TrainingState(model=old))
    state, fresh = tk.TrainingState(model=new), new["c"].weight.clone()
    for policies in ({}, {"missing": "ignore"}, {"unexpected": "ignore"}):
        with pytest.raises(LoadError, match="give missing='ignore'; to leave what is gone, unexpected='ignore'"):
            store.restore(state, **policies)
    assert store.restore(state, missing="ignore", unexpected="ignore") == (
        "model: the checkpoint has no c.weight, c.bias",
        "model: there is no b.weight, b.bias here",
    )
    assert torch.equal(new["a"].weight, old["a"].weight)
    assert torch.equal(new["c"].weight, fresh)
    with pytest.raises(LoadError, match=r"the model has the shape \[9, 9\]"):
        store.restore(tk.TrainingState(model=net(a=9, b=3)), missing="ignore", unexpected="ignore")


def test_parts_of_another_kind_are_refused():
    """A module is no mapping, an optimizer no scheduler."""
    store, net = Store(), mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    store.save(tk.TrainingState(a=net, b=1, c=optimizer, d=Picky()))
    swapped = tk.TrainingState(
        a=1, b=nn.Linear(1, 1), c=torch.Generator(), d=torch.optim.SGD(net.parameters(), 0.1)
    )
    with pytest.raises(LoadError) as caught:
        store.restore(swapped)
    assert caught.value.problems == (
        "b: the checkpoint has no module there",
        "a: the checkpoint has a module there, and the state has none",
        "c: the checkpoint has no state of a generator on cpu",
        "d: the checkpoint has no state of an optimizer by name there",
    )


def test_what_others_refuse_is_told_with_what_was_replaced():
    """Their code runs last, when everything else is known to be right; an error there names the part."""
    store, net = Store(), mlp(0)
    store.save(tk.TrainingState(model=net, first=Picky(1), second=Picky(2)))
    state = tk.TrainingState(model=mlp(1), first=Picky(), second=Picky())
    state.second.refusing = True
    with pytest.raises(LoadError) as caught:
        store.restore(state)
    assert str(caught.value).startswith("the part 'second' refused what the checkpoint of step 1")
    assert "already replaced: model, first, epoch, batch, sampler; make the whole state anew" in str(caught.value)
    assert caught.value.replaced == ("model", "first", "epoch", "batch", "sampler")
    assert isinstance(caught.value.__cause__, KeyError)
    assert torch.equal(state.model[0].weight, net[0].weight)


def test_a_part_that_was_none_is_not_handed_over():
    """There is nothing to load then, which is known before anything changes."""
    store = Store()
    store.save(tk.TrainingState(picky=None))
    with pytest.raises(
        LoadError, match="picky: the checkpoint has None there; set the part to None, restore, and"
    ):
        store.restore(tk.TrainingState(picky=Picky(3)))


def test_others_code_does_not_run_when_something_does_not_fit():
    """All that can be seen is looked at before."""
    store = Store()
    store.save(tk.TrainingState(model=nn.Linear(2, 2), picky=Picky(1)))
    state = tk.TrainingState(model=nn.Linear(2, 3), picky=Picky(7))
    with pytest.raises(LoadError):
        store.restore(state)
    assert state.picky.number == 7


def test_the_models_report_is_in_the_error():
    """What the load plan knows (renames, nearest names) is told under the part's name."""
    store = Store()
    store.save(tk.TrainingState(model=nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(LoadError) as caught:
        store.restore(tk.TrainingState(model=nn.Sequential(nn.Sequential(nn.Linear(2, 2)))))
    assert "model: " in str(caught.value)
    assert "does not fit the model" in str(caught.value)
    assert any("'0.0.weight' of the model is missing" in problem for problem in caught.value.problems)
    assert "tk.load_into(net, '/runs/store@1', ...)" in str(caught.value)
    with pytest.raises(LoadError) as caught:
        store.restore(tk.TrainingState(model=nn.Sequential(nn.Linear(2, 2, dtype=torch.float64))))
    assert "the model has the dtype float64, the source float32" in str(caught.value)
    assert "cast" not in str(caught.value)


def test_damage_names_what_was_replaced_and_an_older_checkpoint_mends_it():
    """Bytes that are wrong are found when they are read; what came before may have been filled."""
    store, net = Store(), nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    steps(net, optimizer, 1, size=64)
    state = tk.TrainingState(model=net, optimizer=optimizer)
    good = store.save(state, 1)
    expected = bits(state)
    steps(net, optimizer, 1, size=64)
    bad = store.save(state, 2)
    piece = bad.tensors["optimizer.state.3.weight.momentum_buffer"].pieces[0]
    path = store.writer.pack_path(bad.body.packs[piece.pack].id)
    image = store.storage.image()
    image[path] = flipped(image[path], piece.start)
    damaged = Archive.open(MemoryStorage(image), store.writer.root)
    with pytest.raises(DamageError, match=r"optimizer.state.3.weight.momentum_buffer") as caught:
        restore_into(state, damaged, bad)
    assert "already replaced in the state: " in caught.value.__notes__[0]
    assert set(caught.value.replaced) <= capture(state).tensors.keys()
    assert store.restore(state, good) == ()
    assert same(bits(state)[:1], expected[:1])


def test_plain_containers_are_filled_in_place():
    """A dict of tensors and values is a state as well: all that is in it must be there and fit."""
    store = Store()
    store.save({"w": torch.arange(4.0), "n": {"step": 3}, "more": 1})
    live = {"w": torch.zeros(4), "n": {"step": 0}}
    tensor = live["w"]
    assert store.restore(live) == ("what is under 'more'",)
    assert live["w"] is tensor
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert live["n"] == {"step": 3}
    wrong = {"w": torch.zeros(5), "n": {"t": torch.zeros(1)}, "missing": 0}
    with pytest.raises(LoadError) as caught:
        store.restore(wrong)
    assert caught.value.problems == (
        "'w' does not fit: the checkpoint has the shape [4], the state [5]",
        "the checkpoint has no tensor 'n.t'",
        "the checkpoint has nothing under 'missing'",
    )
    store.save(OrderedDict(nn.Linear(2, 2).state_dict()), 2)
    ordered = OrderedDict(weight=torch.zeros(2, 2))
    assert store.restore(ordered) == ("what is under 'bias'",)
    assert list(ordered) == ["weight"]
    with pytest.raises(LoadError, match="the checkpoint has nothing under 'scale'"):
        store.restore(OrderedDict(weight=torch.zeros(2, 2), scale=1))
    with pytest.raises(LoadError, match="the checkpoint holds values alone, and not a TrainingState"):
        store.restore(tk.TrainingState())
    with pytest.raises(LoadError, match="holds a OrderedDict, and this is a tuple"):
        store.restore((torch.zeros(4),))


def test_tensors_in_a_tuple_are_filled():
    """What can't be replaced can be filled; what can't be filled is refused."""
    store, live = Store(), (torch.zeros(2), [torch.zeros(1)])
    store.save((torch.ones(2), [torch.ones(1)]))
    assert store.restore(live) == ()
    assert live[0].tolist() == [1.0, 1.0]
    assert live[1][0].tolist() == [1.0]
    with pytest.raises(LoadError, match="can't be put into a tuple"):
        store.restore((torch.zeros(2), 5))
    alone = torch.zeros(2)
    store.save(torch.full((2,), 3.0), 2)
    store.restore(alone)
    assert alone.tolist() == [3.0, 3.0]


def test_strided_and_overlapping_targets_keep_their_memory():
    """Elements go where the live tensor has them, whatever its strides; views stay views."""
    store = Store()
    base = torch.arange(12.0).reshape(3, 4)
    store.save({"t": base.t().clone(), "s": base[:, ::2].clone(), "base": base, "row": base[1]})
    live_base = torch.zeros(3, 4)
    wide = torch.full((3, 4), -1.0)
    live = {"t": torch.zeros(3, 4).t(), "s": wide[:, ::2], "base": live_base, "row": live_base[1]}
    assert store.restore(live) == ()
    assert torch.equal(live["t"], base.t())
    assert torch.equal(wide[:, ::2], base[:, ::2])
    assert (wide[:, 1::2] == -1).all()
    assert torch.equal(live_base, base)
    assert live["row"].data_ptr() == live_base[1].data_ptr()


def test_autograd_notices_that_parameters_were_replaced():
    """A backward through values that are gone is an error, as after any other change in place."""
    store, net = Store(), nn.Linear(2, 2)
    store.save(tk.TrainingState(model=net))
    loss = net(torch.ones(1, 2, requires_grad=True)).sum()
    store.restore(tk.TrainingState(model=net))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loaders_keep_their_generators_or_their_state():
    """A plain DataLoader has generators, others have a state_dict, and some have nothing."""
    data = TensorDataset(torch.arange(8))

    def loader(seed):
        return DataLoader(data, shuffle=True, generator=torch.Generator().manual_seed(seed))

    store, one, other = Store(), tk.TrainingState(loader=loader(1)), tk.TrainingState(loader=loader(2))
    list(one.loader)
    store.save(one)
    assert store.restore(other) == ()
    first, second = ([batch[0].tolist() for batch in state.loader] for state in (one, other))
    assert first == second
    store.save(tk.TrainingState(loader=Picky(4)), 2)
    resumed = tk.TrainingState(loader=Picky())
    assert store.restore(resumed) == ()
    assert resumed.loader.number == 4
    left = store.restore(tk.TrainingState(loader=[torch.zeros(1)]))
    assert left == ("loader: the state of loader: this loader has none",)
    left = store.restore(other)
    assert "loader: its generator goes on as it is: the checkpoint has no state of it" in left


def test_samplers_with_a_state_are_asked():
    """A sampler's own state_dict says more than its generator."""

    class Sampler(torch.utils.data.Sampler):
        position = 0

        def __iter__(self):
            return iter(range(4))

        def __len__(self):
            return 4

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state_dict):
            self.position = state_dict["position"]

    store = Store()
    one, other = (tk.TrainingState(loader=DataLoader(list(range(4)), sampler=Sampler())) for _ in range(2))
    one.loader.sampler.position = 3
    store.save(one)
    assert store.restore(other) == ()
    assert other.loader.sampler.position == 3


def test_generators_of_an_accelerator_are_kept(monkeypatch):
    """Every device's generator is saved and set; what is not here is told."""
    states = [torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)]

    class Device:
        @staticmethod
        def get_rng_state(index):
            return states[index].clone()

        @staticmethod
        def set_rng_state(state, index):
            states[index] = state

    monkeypatch.setattr(randomness, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(states))
    monkeypatch.setattr(torch, "get_device_module", lambda _: Device)
    kept = rng_state()
    states[:] = [torch.tensor([7], dtype=torch.uint8), torch.tensor([8], dtype=torch.uint8)]
    assert set_rng_state(kept) == ()
    assert [int(state) for state in states] == [1, 2]
    del states[1:]
    assert set_rng_state(kept) == ("random generators: the checkpoint has 2 of cuda, here: 1",)
    monkeypatch.setattr(randomness, "accelerator", lambda: None)
    assert set_rng_state(kept) == ("the state of the random generators of cuda: there is no such device here",)


def test_restoring_again_gives_the_same():
    """A checkpoint is not changed by going on from it: no tensor is shared with what was restored."""
    store = Store()
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    state = tk.TrainingState(model=net, optimizer=optimizer, picky=Picky(3), log=[{"x": torch.ones(2)}])
    steps(net, optimizer, 2)
    manifest = store.save(state)
    expected = bits(state)
    for _ in range(2):
        steps(net, optimizer, 1)
        state.log[0]["x"] += 1
        state.picky.number = 0
        assert store.restore(state, manifest) == ()
        assert same(bits(state), expected)


def test_a_saved_state_saved_again_is_the_same_checkpoint():
    """What is restored is what was saved, in every bit of tensors, values and order."""
    store = Store()
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    steps(net, optimizer, 2)
    first = store.save(tk.TrainingState(model=net, optimizer=optimizer))
    other = mlp(5)
    state = tk.TrainingState(model=other, optimizer=torch.optim.Adam(other.parameters()))
    store.restore(state)
    assert store.save(state) is first
