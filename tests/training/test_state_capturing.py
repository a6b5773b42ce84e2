"""Taking a state apart: names, ties, what a step alone changes, and what can't be kept."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import random
import weakref

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import torchkeep as tk
from torchkeep.archive.described import Described, decode_state
from torchkeep.archive.tensors import pieces_of
from torchkeep.errors import SourceError, StateError, UnsavableError
from torchkeep.training.state.capturing import capture
from torchkeep.training.state.states import BareModule
from training_runs import Store, bits, mlp, same, steps


class Average:
    """An average of a model's state with a state_dict of its own."""

    def __init__(self, net):
        self.shadow = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    def state_dict(self):
        return {"shadow": self.shadow}

    def load_state_dict(self, state_dict):
        self.shadow = state_dict["shadow"]


class Counting(nn.Module):
    """A layer with extra state: a number and a tensor."""

    def __init__(self):
        super().__init__()
        self.count, self.seen = 0, torch.zeros(2)
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def get_extra_state(self):
        return {"count": self.count, "seen": self.seen}

    def set_extra_state(self, state):
        self.count, self.seen = state["count"], state["seen"]


def test_a_checkpoint_describes_itself():
    """Names, kinds and classes of every part can be listed from the manifest, with ties under their owners."""
    store, net = Store(), mlp()
    optimizer = torch.optim.Adam(net.parameters())
    steps(net, optimizer, 1)
    manifest = store.save(tk.TrainingState(model=net, optimizer=optimizer, best=[1, {"at": torch.ones(2)}]))
    rows = {row.name: row for row in Described(manifest).listing.rows}
    assert rows["model.0.weight"].aliases == ("model.4.weight",)
    assert rows["model.0.weight"].module_type == "Linear"
    assert rows["model.1.running_mean"].kind == "buffer"
    assert rows["best.1.at"].shape == (2,)
    assert rows["optimizer.state.0.weight.exp_avg"].kind is None
    tree = decode_state(manifest.path, manifest.body.tree)
    assert list(tree.modules) == ["model"]
    assert len(tree.order) == len(set(tree.order)) == len(manifest.tensors) + len(manifest.aliases)
    assert manifest.recipe is not None
    assert set(manifest.body.versions) >= {"python", "torch", "torchkeep"}


def test_a_module_alone_has_its_own_names():
    """No prefix is added, buffers that are not persistent are told."""
    store, net = Store(), nn.Sequential(Counting(), nn.Linear(2, 2))
    net[0].count, net[0].seen = 4, torch.tensor([1.0, 2.0])
    found = capture(net)
    assert set(found.tensors) == {"0.weight", "0._extra_state.seen", "1.weight", "1.bias"}
    assert found.left_out == ("0.scratch",)
    assert not found.stepped
    store.save(net)
    other = nn.Sequential(Counting(), nn.Linear(2, 2))
    assert store.restore(other) == ()
    assert other[0].count == 4
    assert torch.equal(other[0].seen, net[0].seen)
    assert torch.equal(other[1].weight, net[1].weight)


def test_a_module_is_restored_from_a_whole_state():
    """The part ``model`` is it; what else the checkpoint has is told."""
    store, net, other = Store(), mlp(0), mlp(1)
    store.save(tk.TrainingState(model=net, ema=mlp(2)))
    left = store.restore(other)
    assert left == (
        "the part 'ema'",
        "the part 'epoch'",
        "the part 'batch'",
        "the part 'sampler'",
        "the part 'rng'",
    )
    assert same(bits(net), bits(other))


def test_extra_state_is_asked_for_at_every_save():
    """What is found of a module is remembered; its extra state is not."""
    store, state = Store(), tk.TrainingState(model=nn.Sequential(Counting()))
    for number in range(3):
        state.model[0].count = number
        state.model[0].seen = torch.full((2,), float(number))
        store.save(state, number)
    other = tk.TrainingState(model=nn.Sequential(Counting()))
    assert store.restore(other) == ()
    assert other.model[0].count == 2
    assert other.model[0].seen.tolist() == [2.0, 2.0]


def test_what_changes_between_saves_is_seen():
    """Nothing that is remembered may be saved when it is not so any more."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    state = tk.TrainingState(model=net, optimizer=optimizer, values={"a": torch.ones(1)})
    capture(state)
    optimizer.zero_grad()
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = capture(state)
    assert found.tensors["optimizer.state.0.bias.exp_avg"] is optimizer.state[net[0].bias]["exp_avg"]
    net[0].weight = nn.Parameter(torch.ones(2, 2))
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.state[net[0].bias]["exp_avg"] = torch.full((2,), 9.0)
    found = capture(state)
    assert found.tensors["model.0.weight"] is net[0].weight
    assert "model.0.weight" not in found.stepped
    assert found.tensors["optimizer.state.0.bias.exp_avg"].tolist() == [9.0, 9.0]
    assert found.tree["value"]["dict"]["optimizer"]["dict"]["groups"][0]["dict"]["lr"] == 0.5
    state.values["b"] = torch.zeros(1)
    net.add_module("more", nn.Linear(1, 1))
    optimizer.add_param_group({"params": net.more.parameters()})
    found = capture(state)
    assert {"values.b", "model.more.bias"} <= found.tensors.keys()
    assert "model.more.bias" in found.stepped
    net[1].weight.data = net[0].weight.data
    found = capture(state)
    assert found.aliases["model.1.weight"] == "model.0.weight"
    net[1].weight.data = torch.zeros(2, 2)
    found = capture(state)
    assert not found.aliases
    assert found.tensors["model.1.weight"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_memory_moving_under_a_plain_tensor_is_seen():
    """A value that comes to lie on a parameter is no longer what only a step changes, nor the other way round."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    state = tk.TrainingState(model=net, optimizer=optimizer, mine={"w": torch.zeros(2, 2)})
    assert "model.weight" in capture(state).stepped
    state.mine["w"] = net.weight.data
    found = capture(state)
    assert found.aliases == {"mine.w": "model.weight"}
    assert "model.weight" not in found.stepped
    state.mine["w"] = net.weight.data[0]
    found = capture(state)
    assert not found.aliases
    assert "model.weight" not in found.stepped
    state.mine["w"] = torch.zeros(2, 2)
    assert "model.weight" in capture(state).stepped


def test_lazily_conjugated_tensors_are_resolved_at_every_save():
    """Their memory holds other values than they do, so what is kept is a copy, and never an old one."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64).conj())
    state = tk.TrainingState(model=net)
    for number in range(1, 4):
        with torch.no_grad():
            net.weight.fill_(complex(0, number))
        assert net.weight.is_conj()
        kept = capture(state).tensors["model.weight"]
        assert not kept.is_conj()
        assert kept.tolist() == [complex(0, number)] * 2


def test_optimizer_state_that_comes_to_be_shared_is_seen():
    """Two parameters may be given one step count, or tensors of their own again, between saves."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = tk.TrainingState(model=net, optimizer=optimizer)
    weight, bias = optimizer.state.values()
    for _ in range(2):
        assert not capture(state).aliases
    bias["step"] = weight["step"]
    for _ in range(2):
        assert capture(state).aliases == {"optimizer.state.bias.step": "optimizer.state.weight.step"}
    bias["step"] = weight["step"].clone()
    assert not capture(state).aliases
    weight["exp_avg"] = torch.ones(2, 2).to_sparse()
    with pytest.raises(UnsavableError, match=r"exp_avg'\] can't be saved: its layout is sparse_coo"):
        capture(state)


def test_only_what_steps_change_is_copied_late():
    """Parameters and their state are; frozen ones, buffers, averages, values and generators are not."""
    net = mlp()
    net[1].bias.requires_grad_(requires_grad=False)
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=torch.tensor(0.1))
    steps(net, optimizer, 1)
    ema = torch.optim.swa_utils.AveragedModel(net)
    state = tk.TrainingState(
        model=net, optimizer=optimizer, ema=ema, average=Average(net), best={"x": torch.ones(1)}
    )
    found = capture(state)
    expected = {"model.0.weight", "model.0.bias", "model.1.weight", "model.4.bias"}
    assert {name for name in found.stepped if name.startswith("model")} == expected
    others = found.stepped - expected
    assert all(name.startswith("optimizer.state.") for name in others)
    assert len(others) == 4 * 3
    assert found.stepped <= found.tensors.keys()
    assert found.optimizers == (optimizer,)


def test_a_weight_that_forward_rescales_is_no_steps_alone():
    """An embedding with a largest norm changes its weight when it is called, while a save may be copying it."""
    net = nn.Sequential(nn.Embedding(4, 2, max_norm=1.0), nn.EmbeddingBag(4, 2), nn.Linear(2, 2))
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    assert capture(state).stepped == {"model.1.weight", "model.2.weight", "model.2.bias"}
    net[1].max_norm, net[0].max_norm = 1.0, None
    assert capture(state).stepped == {"model.0.weight", "model.2.weight", "model.2.bias"}


def test_a_flat_buffer_of_parameters_steps_as_a_whole():
    """Parameters that lie side by side in one memory share no byte; one that overlaps others does."""
    flat = torch.zeros(6)
    net = nn.Module()
    net.a, net.b = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1))
    assert capture(state).stepped == {"model.a", "model.b"}
    net.register_buffer("view", flat[2:4])
    assert not capture(state).stepped


def test_tensors_are_kept_once_across_parts():
    """A module that is also part of another, and an average that is the model's own tensor, cost no bytes."""
    net = mlp()
    average = Average(net)
    average.shadow["0.bias"] = net[0].bias.detach()
    found = capture(tk.TrainingState(head=net[4], average=average, model=net))
    assert found.aliases["head.weight"] == found.aliases["model.4.weight"] == "model.0.weight"
    assert found.aliases["average.shadow.0.bias"] == "model.0.bias"
    assert found.tensors["model.0.weight"] is net[4].weight
    store, other = Store(), mlp(1)
    store.save(tk.TrainingState(head=net[4], average=average, model=net))
    restored = tk.TrainingState(head=other[4], average=Average(other), model=other)
    assert store.restore(restored) == ()
    assert torch.equal(other[0].weight, net[0].weight)
    assert torch.equal(restored.average.shadow["0.bias"], net[0].bias)
    assert restored.average.shadow["0.bias"].data_ptr() != other[0].bias.data_ptr()


def test_a_modules_names_are_the_owners():
    """Whatever order the parts come in, what else lies on a parameter is its alias."""
    net = nn.Linear(2, 2)
    found = capture(tk.TrainingState(average={"w": net.weight.detach()}, net=net))
    assert found.aliases == {"average.w": "net.weight"}


def test_two_parameters_on_one_memory_step_only_together():
    """Where only one of them is in an optimizer, the other may be written at any time."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = nn.Parameter(net[0].weight.detach())
    state = tk.TrainingState(model=net, optimizer=torch.optim.SGD([net[0].weight, net[0].bias], 0.1))
    found = capture(state)
    assert found.aliases == {"model.1.weight": "model.0.weight"}
    assert found.stepped == {"model.0.bias"}
    state.optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert capture(state).stepped == {"model.0.weight", "model.0.bias", "model.1.bias"}


def test_everything_that_needs_pickle_is_told_at_once():
    """Each with its path and type, before anything is written."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    class Odd:
        def state_dict(self):
            return {"inner": [object()]}

        def load_state_dict(self, state_dict): ...

    state = tk.TrainingState(
        model=net, optimizer=optimizer, odd=Odd(), values={"f": len, "nets": [net], "ok": 1}, kind=Odd
    )
    state.epoch = 1.5
    with pytest.raises(UnsavableError) as caught:
        capture(state)
    text = str(caught.value)
    assert "odd['inner'][0]: it is an object" in text
    assert "values['f']: it is a builtin_function_or_method" in text
    assert (
        "values['nets'][0]: it is a torch.nn.modules.container.Sequential among plain values; make it a part"
        in text
    )
    assert "kind: it is a type; save its name" in text
    assert "epoch: it must be a whole number, not 1.5" in text


def test_a_model_without_values_is_refused_with_advice():
    """The meta device has no values, and a lazy layer no shape."""
    with pytest.raises(UnsavableError, match=r"model\.weight: it is on the meta device and has no values"):
        capture(tk.TrainingState(model=nn.Linear(2, 2, device="meta")))
    with pytest.raises(UnsavableError, match=r"model\.weight: it has no shape yet; run a forward pass first"):
        capture(tk.TrainingState(model=nn.LazyLinear(2)))


def test_an_error_in_a_state_dict_names_the_part():
    """Errors of others come through, and say where they are from."""

    class Broken:
        def state_dict(self):
            raise RuntimeError("not yet")

        def load_state_dict(self, state_dict): ...

    with pytest.raises(RuntimeError, match="not yet") as caught:
        capture(tk.TrainingState(broken=Broken()))
    (note,) = caught.value.__notes__
    assert note.startswith("state_dict() of the part 'broken'")


def test_parts_are_attributes():
    """They can be read and replaced, but not added: what is no part would not be saved."""
    state = tk.TrainingState(model=mlp(), best=None)
    state.best = 0.5
    assert state.best == 0.5
    assert capture(state).tree["value"]["dict"]["best"] == 0.5
    state.best = nn.Linear(1, 1)
    assert "best.weight" in capture(state).tensors
    assert not hasattr(state, "bset")
    with pytest.raises(StateError, match=r"has no part 'bset', so it would not be saved; give it when"):
        state.bset = 1
    with pytest.raises(StateError, match="has no part 'optimizer'; it has model, best"):
        _ = state.optimizer
    for name in ("epoch", "rng", "_hidden", "a.b"):
        with pytest.raises(StateError, match="can't be called"):
            tk.TrainingState(**{name: 1})
    assert repr(tk.TrainingState(best=1)) == "<TrainingState best=int; epoch 0, batch 0>"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_of_a_state_are_states_of_their_own(copied):
    """Nothing that was remembered of the original is taken for true of a copy."""
    parameter = nn.Parameter(torch.ones(2))
    state = tk.TrainingState(optimizer=torch.optim.SGD([parameter], 0.1, momentum=0.9))
    parameter.grad = torch.ones(2)
    state.optimizer.step()
    state.epoch = 3
    for _ in range(2):
        capture(state)
    other = copied(state)
    for _ in range(2):
        found = capture(other)
        held = other.optimizer.state[other.optimizer.param_groups[0]["params"][0]]
        name = "optimizer.state.group-0.position-0.momentum_buffer"
        assert found.tensors[name] is held["momentum_buffer"]
        assert found.tensors[name] is not capture(state).tensors[name]
    assert other.epoch == 3


def test_capturing_keeps_nothing_alive():
    """A model that is gone with its state is gone, and so is optimizer state that was replaced."""
    net = mlp()
    optimizer = torch.optim.LBFGS(net.parameters())
    steps(net, optimizer, 1)
    state = tk.TrainingState(model=net, optimizer=optimizer)
    capture(state)
    old = weakref.ref(next(iter(optimizer.state.values()))["d"])
    steps(net, optimizer, 1)
    gc.collect()
    assert old() is None
    gone = weakref.ref(net)
    del net, optimizer, state
    gc.collect()
    assert gone() is None
    alone = mlp()
    capture(alone)
    gone = weakref.ref(alone)
    del alone
    gc.collect()
    assert gone() is None


def test_capturing_draws_nothing():
    """Saving must not change what is drawn next, also where a recipe is tried out."""
    torch.manual_seed(3)
    state = tk.TrainingState(model=mlp(4))
    torch.manual_seed(3)
    capture(state)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def _replace_parameter(state, rng):
    layer = rng.choice(list(state.model))
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _tie(state, rng):
    one, other = rng.sample(list(state.model), 2)
    one.weight = other.weight


def _swap_memory(state, rng):
    rng.choice(list(state.model)).bias.data = torch.randn(3)


def _transpose(state, rng):
    weight = rng.choice(list(state.model)).weight
    weight.data = weight.data.t()


def _convert(state, rng):
    layer = rng.choice(list(state.model))
    layer.bias.data = layer.bias.data.to(rng.choice([torch.float32, torch.float64, torch.complex64]))


def _conjugate(state, rng):
    layer = rng.choice(list(state.model))
    layer.bias.data = layer.bias.data.conj()


def _alias_value(state, rng):
    state.values[rng.choice("abc")] = rng.choice(list(state.model)).weight.detach()


def _view_value(state, rng):
    state.values[rng.choice("abc")] = rng.choice(list(state.model)).bias.detach()[1:]


def _plain_value(state, rng):
    state.values[rng.choice("abc")] = torch.randn(2)


def _step(state, rng):
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter) if rng.random() < 0.7 else None
    state.optimizer.step()


def _new_optimizer(state, rng):
    kind = rng.choice([torch.optim.Adam, torch.optim.SGD])
    state.optimizer = kind(list(dict.fromkeys(state.model.parameters())), lr=0.1)


def _replace_state(state, rng):
    for held in state.optimizer.state.values():
        for key in held:
            if isinstance(held[key], torch.Tensor) and rng.random() < 0.3:
                held[key] = held[key].clone()


def _share_state(state, rng):
    tensors = [held for held in state.optimizer.state.values() if "step" in held]
    if len(tensors) > 1:
        one, other = rng.sample(tensors, 2)
        one["step"] = other["step"]


def _plain_state(state, rng):
    for held in state.optimizer.state.values():
        held["note"] = rng.random()


def _freeze(state, rng):
    weight = rng.choice(list(state.model)).weight
    weight.requires_grad_(not weight.requires_grad)


def _forget_state(state, _):
    state.optimizer.state.clear()


_CHANGES = [value for name, value in list(globals().items()) if name.startswith("_") and callable(value)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_remembered_never_differs_from_a_fresh_look(seed):
    """After any changes in any order, a state that was captured before gives what a new one gives."""
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    torch.manual_seed(seed)
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    state = tk.TrainingState(model=net, optimizer=torch.optim.Adam(net.parameters()), values={})
    bare = BareModule(net)
    for _ in range(60):
        rng.choice(_CHANGES)(state, rng)
        assert lying(capture(bare)) == lying(capture(net))
        found = capture(state)
        fresh = capture(tk.TrainingState(model=net, optimizer=state.optimizer, values=state.values))
        names = [name for name in fresh.tensors if not name.startswith("rng.")]
        assert found.tensors.keys() == fresh.tensors.keys()
        assert all(found.tensors[name] is fresh.tensors[name] for name in names)
        assert (found.aliases, found.stepped, found.tree) == (fresh.aliases, fresh.stepped, fresh.tree)
        assert lying(found, names) == lying(fresh, names)


def kept_again(net):
    """What remembers a module from save to save."""
    return [BareModule(net), tk.TrainingState(model=net)]


def test_a_wrapper_that_is_given_another_model_is_looked_at_again():
    """Else the old model would be saved under the new one's steps."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    wrapper = nn.DataParallel(first)
    states = kept_again(wrapper)
    for net in (first, second):
        wrapper.module = net
        for state in states:
            assert next(iter(capture(state).tensors.values())) is net.weight
    loop = nn.Sequential()
    loop.append(loop)
    wrapper.module = loop
    for _ in range(2):
        for state in states:
            with pytest.raises(SourceError, match="contains itself"):
                capture(state)


def test_what_a_module_begins_to_write_by_itself_is_refused_later_too():
    """It has nothing of the kind at first, when what is found out about it is remembered."""

    class Caching(nn.Linear):
        cache = None

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if self.cache is not None:
                destination[prefix + "cache"] = self.cache

    net = Caching(2, 2)
    states = kept_again(net)
    for state in states:
        capture(state)
    net.cache = torch.ones(2)
    for state in states:
        with pytest.raises(UnsavableError, match="cache"):
            capture(state)
    net.cache = None
    net._register_state_dict_hook(
        lambda _, written, prefix, __: written.update({f"{prefix}hooked": torch.ones(2)})
    )
    for state in states:
        with pytest.raises(UnsavableError, match="hooked"):
            capture(state)


def test_a_parameter_that_becomes_the_negative_of_its_memory_is_looked_at_again():
    """PyTorch negates lazily: address, shape and dtype are those that they were."""
    numbers = torch.full((1,), 2j)
    net = nn.Linear(1, 1, bias=False)
    states = kept_again(net)
    for imaginary, value in ((numbers.imag, 2), (numbers.conj().imag, -2)):
        net.weight.data = imaginary.view(1, 1)
        for state in states:
            assert [found.tensor.item() for found in capture(state).held.values() if found.nbytes == 4] == [value]


def test_memory_that_a_module_has_left_is_given_back():
    """What is remembered from the last save does not keep it: a model that moved would be there twice."""
    net = nn.Linear(3, 3)
    states = kept_again(net)
    captured = [capture(state) for state in [*states, *states]]
    left = StorageWeakRef(net.weight.untyped_storage())
    net.half()
    assert not left.expired()  # a save in flight has it still
    del captured
    assert left.expired()


def lying(captured, names=None):
    """Describe where tensors lie and what a commit would write."""
    found = {}
    for name in captured.held if names is None else names:
        tensor, address, nbytes, live = captured.held[name]
        copy = ctypes.create_string_buffer(nbytes)
        pieces = list(pieces_of({name: live}))
        for piece in pieces:
            piece.give(0, memoryview(copy).cast("B"), ctypes.addressof(copy))
        shapes = [piece[:-1] for piece in pieces]
        found[name] = (address, tensor.dtype, tensor.shape, tensor.stride(), shapes, copy.raw)
    return found
