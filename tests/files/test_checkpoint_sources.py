"""Models filled and built from checkpoints, and states loaded from them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from kept_states import Net, bits, bytes_of, make_store, state_of
from saved_values import bits_of, described
from torchkeep.archive import Retention, Writer
from torchkeep.archive.locating import locate
from torchkeep.errors import (
    DamageError,
    FormatError,
    LoadError,
    NoMatchError,
    RecipeError,
    SourceError,
    StoreError,
)
from torchkeep.files.checkpointed import CheckpointSource
from torchkeep.storage.local_folders import LOCAL_FOLDERS

CHUNK = 64


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_store("runs", {4: state_of(Net(1))}, chunk=CHUNK)


# Filling models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["plain", "channels last", "double"])
def test_a_model_is_filled_from_the_model_of_a_checkpoint(tmp_path, device):
    """Under the module's own names, whatever else the state holds; targets of any stride and dtype."""
    torch.manual_seed(0)
    make = {
        "plain": lambda: nn.Conv2d(3, 4, 3),
        "channels last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        "double": lambda: nn.Conv2d(3, 4, 3).double(),
    }[device]
    saved, net = nn.Conv2d(3, 4, 3), make()
    strides, before = net.weight.stride(), net.weight
    root = make_store(tmp_path / "store", {1: state_of(saved)}, chunk=CHUNK)
    report = tk.load_into(net, f"{root}@1", cast=device == "double")
    assert bits_of(net.weight.float()) == bits_of(saved.weight)
    assert (net.weight is before, net.weight.stride()) == (True, strides)
    assert (report.verified, report.names) == (True, ("weight", "bias"))
    assert "store@1" in str(report)


def test_ties_and_extra_state_come_along(store):
    """A tie stays one tensor, and extra state is given back with its tensors."""
    net = Net()
    report = tk.load_into(net, f"{store}@latest")
    assert bits(net) == bits(Net(1))
    assert net.second.weight is net.first.weight
    assert described(net.counter.kept) == described({"seen": torch.arange(5), "count": 7})
    assert report.plan.extra == (("counter._extra_state", "counter._extra_state"),)


def test_autograd_learns_that_a_filled_tensor_changed(store):
    """A value saved for a backward pass is not the one that is there now: torch must refuse it."""
    net = Net()
    out = (net.first.weight * net.first.weight).sum()
    tk.load_into(net, f"{store}@4")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_checkpoint_object_is_a_source(store):
    """What a store gives out fills and plans as its name does."""
    checkpoint = tk.Checkpoint.of(*locate(f"{store}@4"))
    net = Net()
    assert tk.plan_load(net, checkpoint).problems == ()
    tk.load_into(net, checkpoint)
    assert bits(net) == bits(Net(1))


def test_rename_is_over_full_names(store):
    """With rename, all of the checkpoint is offered: other parts than the model can be loaded."""
    net = nn.Linear(6, 6)
    saved = tk.load(f"{store}@4")["optimizer"]["state"]
    report = tk.load_into(net, f"{store}@4", rename={"optimizer.state.first.*.exp_avg": "*"}, unexpected="ignore")
    assert bits_of(net.weight) == bits_of(saved["first.weight"]["exp_avg"])
    assert "model.first.weight" in report.plan.unexpected


def test_without_a_part_called_model_the_only_module_is_meant(tmp_path):
    """A module kept under any name, or alone, is the one; of several, the error names them and says how to ask."""
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    root = make_store(tmp_path / "store", {1: {"generator": one}, 2: one, 3: {"generator": one, "critic": two}})
    for step in (1, 2):
        net = nn.Linear(3, 3)
        tk.load_into(net, f"{root}@{step}")
        assert bits_of(net.weight) == bits_of(one.weight)
    with pytest.raises(SourceError, match=r"several modules \(generator, critic\).*rename=\{'generator\.': ''\}"):
        tk.load_into(nn.Linear(3, 3), f"{root}@3")
    net = nn.Linear(3, 3)
    tk.load_into(net, f"{root}@3", rename={"critic.": ""}, unexpected="ignore")
    assert bits_of(net.weight) == bits_of(two.weight)


def test_a_model_that_does_not_fit_is_not_touched(store):
    """The plan's report, as of a file; nothing is changed."""
    net = nn.Sequential(nn.Linear(6, 6))
    before = bits(net)
    with pytest.raises(LoadError, match="missing") as caught:
        tk.load_into(net, f"{store}@4")
    assert "runs@4" in str(caught.value)
    assert bits(net) == before


def test_damage_names_what_was_replaced(store):
    """A flipped bit in the last tensor: the error names it and what was filled before; atomic leaves all alone."""
    located = locate(f"{store}@4")
    piece = located.manifest.tensors["model.second.bias"].pieces[0]
    path = Path(located.archive.pack_path(located.manifest.body.packs[piece.pack].id))
    data = bytearray(path.read_bytes())
    data[piece.start] ^= 1
    path.write_bytes(data)
    net = Net()
    before = bits(net)
    with pytest.raises(DamageError, match=r"'model\.second\.bias'.*the model is as it was"):
        tk.load_into(net, f"{store}@4", atomic=True)
    assert bits(net) == before
    with pytest.raises(DamageError, match=r"'model\.second\.bias'.*already replaced in the model") as caught:
        tk.load_into(net, f"{store}@4")
    changed = {name for name, value in bits(net).items() if value != before[name]}
    assert changed - {"second.weight"} <= set(caught.value.replaced)


def test_damage_in_a_large_tensor_names_it_although_it_was_read_in_place(tmp_path):
    """A tensor that is read to where it belongs may hold damaged bytes then: it is among those replaced."""
    saved, net = nn.Linear(3000, 1000, bias=False), nn.Linear(3000, 1000, bias=False)
    root = make_store(tmp_path / "store", {1: saved})
    located = locate(root)
    (piece,) = located.manifest.tensors["weight"].pieces
    path = Path(located.archive.pack_path(located.manifest.body.packs[piece.pack].id))
    data = bytearray(path.read_bytes())
    data[piece.stop - 1] ^= 1
    path.write_bytes(data)
    before = bits(net)
    with pytest.raises(DamageError, match="'weight'") as caught:
        tk.load_into(net, root)
    assert caught.value.replaced == (() if bits(net) == before else ("weight",))


def test_ties_that_the_checkpoint_does_not_know_are_compared_by_digest(tmp_path, monkeypatch):
    """Two tensors of a checkpoint for one of the model: equal ones load, others are told; no byte is read."""
    root = tmp_path / "store"
    with Writer(LOCAL_FOLDERS, str(root), chunk=CHUNK) as writer:
        ones, twos = torch.ones(6, 6), torch.full((6, 6), 2.0)
        writer.commit(1, {"first.weight": bytes_of(ones), "second.weight": bytes_of(ones.clone())})
        writer.commit(2, {"first.weight": bytes_of(ones), "second.weight": bytes_of(twos)})
    monkeypatch.setattr(CheckpointSource, "tensors", None)
    assert tk.plan_load(Net(), f"{root}@1", missing="ignore").problems == ()
    with pytest.raises(LoadError, match=r"its names are tied in the model, but .* differ"):
        tk.plan_load(Net(), f"{root}@2", missing="ignore").raise_for_problems()


def test_tensors_cut_otherwise_are_compared_by_their_bits(tmp_path):
    """Digests of other pieces say nothing: then the bytes do."""
    tensor = torch.arange(60.0)
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store"), chunk=CHUNK) as writer:
        halves = bytes_of(tensor)
        from torchkeep.archive import Part, TensorBytes

        def copy(start, nbytes, address, first):
            halves.parts[0].source(first + start, nbytes, address)

        cut = TensorBytes(
            "float32",
            (60,),
            (
                Part((0,), (7,), lambda start, nbytes, address: copy(start, nbytes, address, 0)),
                Part((7,), (53,), lambda start, nbytes, address: copy(start, nbytes, address, 28)),
            ),
        )
        writer.commit(1, {"a": halves, "b": cut, "c": bytes_of(tensor + 1)})
    source = CheckpointSource(*locate(f"{tmp_path / 'store'}@1"))
    assert source.same("a", "b")
    assert not source.same("a", "c")
    assert not source.same("b", "c")


# Loading states -----------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was(store):
    """Parts, containers and plain values; a module as the flat dict of its state, a tie as one object."""
    state = tk.load(f"{store}@4")
    assert list(state) == ["model", "optimizer", "step"]
    assert (state["step"], state["optimizer"]["lr"], state["optimizer"]["betas"]) == (4, 0.1, (0.9, None))
    net = Net()
    net.load_state_dict(state["model"])
    assert bits(net) == bits(Net(1))
    assert described(net.counter.kept) == described({"seen": torch.arange(5), "count": 7})
    assert state["model"]["first.weight"] is state["model"]["second.weight"]
    assert described(tk.load(tk.Checkpoint.of(*locate(store)))) == described(state)


def test_selected_tensors_come_as_a_flat_dict(store):
    """Full names, aliases too; nothing else is read."""
    found = tk.load(f"{store}@4", select="model.**.weight & @Linear")
    assert list(found) == ["model.first.weight", "model.second.weight"]
    assert bits_of(found["model.second.weight"]) == bits_of(Net(1).first.weight)
    with pytest.raises(NoMatchError):
        tk.load(f"{store}@4", select="decoder.**")


VALUES = {
    "nested": {"a": [torch.ones(2), (1, {"b": torch.zeros(1)})], "c": {1: "x", (2, 3): float("inf")}},
    "ordered": OrderedDict(b=torch.ones(1), a=OrderedDict(c=None)),
    "plain": {"shape": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"), "z": 1 + 2j},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_any_kind_come_back(tmp_path, value):
    """Types and bits, also of what is no tensor."""
    root = make_store(tmp_path / "store", {1: {"part": value, "other": torch.arange(3)}})
    assert described(tk.load(f"{root}@1")) == described({"part": value, "other": torch.arange(3)})


def test_a_checkpoint_of_which_nothing_is_said_is_a_flat_dict(tmp_path):
    """Whatever committed it, its tensors are there under their names."""
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store")) as writer:
        writer.commit(1, {"w": bytes_of(torch.arange(3))})
    assert described(tk.load(tmp_path / "store")) == described({"w": torch.arange(3)})


@pytest.mark.parametrize(
    "value",
    [{"module": "x"}, {"tensor": "x"}, {"tensor": 1}, {"module": []}, {"dict": {"a": {"odd": 1}}}],
    ids=repr,
)
def test_values_that_lead_nowhere_are_refused(tmp_path, value):
    """A tree that names a tensor or a module that is not there is an error that names the manifest."""
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store")) as writer:
        writer.commit(1, {"w": bytes_of(torch.arange(3))}, tree={"value": value})
    with pytest.raises(FormatError, match=r"store/checkpoints/00000001-1\.json"):
        tk.load(tmp_path / "store")


# Building models ----------------------------------------------------------------------------------


def test_a_model_is_built_from_its_recipe(tmp_path):
    """The recipe of the part `model`, filled with what that part holds; a bare module's too."""
    torch.manual_seed(3)
    saved = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    recipe = tk.recipe(saved).to_dict()
    root = make_store(tmp_path / "store", {1: state_of(saved), 2: saved}, recipe=recipe)
    for source in (f"{root}@1", root, tk.Checkpoint.of(*locate(f"{root}@1"))):
        built = tk.load_model(source)
        assert str(built) == str(saved)
        assert bits(built) == bits(saved)


def test_without_a_recipe_no_model_is_built(store):
    """It says what to do instead."""
    with pytest.raises(RecipeError, match=r"runs@4' holds no recipe.*fill it with load_into"):
        tk.load_model(f"{store}@4")


# Stores that training makes -----------------------------------------------------------------------


def test_what_training_saved_is_a_source_like_any_other(tmp_path):
    """A real CheckpointStore of a TrainingState: listed, loaded, filled and built from its name."""
    from torchkeep.training.state.states import TrainingState
    from torchkeep.training.store.stores import CheckpointStore

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    state = TrainingState(model=net, optimizer=optimizer)
    with CheckpointStore(tmp_path / "store", retention=Retention(best=("loss", "min"))) as store:
        for step in (1, 2):
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            store.save(step, state, metrics={"loss": float(step)}).result()
        wanted = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        filled = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        tk.load_into(filled, store.latest())
    root = str(tmp_path / "store")
    assert bits(filled) == {name: bits_of(tensor) for name, tensor in wanted.items()}
    assert bits(tk.load_model(f"{root}@2")) == bits(filled)
    assert tk.params(f"{root}@best").select("model.** & @Linear").names() == [f"model.{name}" for name in wanted]
    moments = tk.load(f"{root}@2")["optimizer"]["state"]["2.weight"]["exp_avg"]
    assert bits_of(moments) == bits_of(optimizer.state[net[2].weight]["exp_avg"])
    with pytest.raises(StoreError, match="has no checkpoint of step 3"):
        tk.load(f"{root}@3")


def test_the_helper_names_states_as_training_does(tmp_path):
    """The states of these tests are taken apart as `TrainingState`s are: the same names and kinds."""
    from torchkeep.training.state.states import TrainingState
    from torchkeep.training.store.stores import CheckpointStore

    net = Net()
    with CheckpointStore(tmp_path / "store") as store:
        checkpoint = store.save(1, TrainingState(model=net)).result()
        rows = {row for row in checkpoint.listing.rows if row.name.startswith("model.")}
    assert rows == set(tk.params(make_store(tmp_path / "other", {1: {"model": net}})).rows)
