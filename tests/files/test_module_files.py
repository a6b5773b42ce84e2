"""A module's file: the same rows, kinds and classes as the live model, its extra state, its ties."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from saved_values import bits_of, described
from torchkeep.formats import listing_of
from torchkeep.tables.survey import survey


class Scaled(nn.Module):
    """Keeps a tensor, a tuple and a number as extra state."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.extra = {"factor": factor, "shape": (2, 3), "table": torch.arange(3)}

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def zoo():
    """Return a model with a bit of everything that rows tell."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), Scaled(2.5))
    net.add_module("again", net[0])
    net.add_module("normed", parametrizations.weight_norm(nn.Linear(3, 3)))
    net.add_module("tied", nn.Linear(3, 3, bias=False))
    net.tied.weight = net[0].weight
    net[3].to(memory_format=torch.channels_last)
    net[1].bias.requires_grad = False
    net.register_buffer("kept", torch.arange(4).to(torch.complex128))
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    return net


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def test_the_file_lists_what_the_live_model_lists(path):
    """Rows, order, kinds, aliases, plain names and classes are equal, non-persistent buffers apart."""
    net = zoo()
    tk.save(net, path)
    live, kept = survey(net).listing, listing_of(path)
    assert list(kept.rows) == [row for row in live.rows if row.persistent]
    assert dict(kept.modules) == dict(live.modules)


@pytest.mark.parametrize(
    "selector",
    [
        ":param",
        ":buffer - scratch",
        ":frozen",
        ":trainable",
        ":tied",
        "@Linear",
        "@=Conv2d",
        "@torch.nn.BatchNorm1d",
        "@Sequential > again.*",
        "normed.weight",
        "[ndim>=2] & @Module",
        "[0:4].weight",
    ],
)
def test_selectors_mean_the_same_on_the_file(path, selector):
    """The same selector selects the same names from the live model and from its file."""
    net = zoo()
    tk.save(net, path)
    assert tk.params(path, selector).names() == tk.params(net, selector).names()


def test_a_module_loads_as_its_flat_state(path):
    """``load`` gives what ``state_dict`` gives: names in its order, aliases, extra state; plain tensors."""
    net = zoo()
    tk.save(net, path)
    state, back = net.state_dict(), tk.load(path)
    assert list(back) != []
    assert set(back) == set(state)
    tensors = [name for name in state if not name.endswith("_extra_state")]
    assert [name for name in back if not name.endswith("_extra_state")] == tensors
    for name in tensors:
        assert described(back[name]) == described(state[name].detach())
    assert back["0.weight"] is back["again.weight"] is back["tied.weight"]
    assert described(back["4._extra_state"]) == described(net[4].extra)
    fresh = zoo()
    fresh.load_state_dict(back)


def test_other_readers_see_ordinary_tensors(path):
    """Safetensors' own reader sees every owner under its name, with the same values."""
    net = zoo()
    tk.save(net, path)
    theirs = load_file(path)
    for row in tk.params(net, ":param").rows:
        assert bits_of(theirs[row.name]) == bits_of(net.get_parameter(row.name))


def test_wrappers_are_no_part_of_the_names(path):
    """What was saved from a wrapped model loads into a bare one, and the other way round."""
    net = nn.Sequential(nn.Linear(2, 2))
    tk.save(nn.DataParallel(net), path)
    assert tk.params(path).names() == ["0.weight", "0.bias"]
    other = nn.Sequential(nn.Linear(2, 2))
    tk.load_into(nn.DataParallel(other), path)
    assert torch.equal(other[0].weight, net[0].weight)


def test_extra_state_is_restored(path):
    """Values and tensors of extra state reach ``set_extra_state``; a file without it is missing something."""
    tk.save(zoo(), path)
    net = zoo()
    net[4].extra = None
    report = tk.load_into(net, path)
    assert described(net[4].extra) == described(Scaled(2.5).extra)
    assert report.plan.extra == (("4._extra_state", "4._extra_state"),)
    tk.save({name: value for name, value in net.state_dict().items() if "extra" not in name}, path)
    with pytest.raises(tk.errors.LoadError, match=r"4\._extra_state"):
        tk.load_into(net, path)
    assert tk.load_into(net, path, missing="ignore").plan.missing == ("4._extra_state",)


def test_extra_state_that_is_a_tensor_of_the_model_is_kept_apart(path):
    """Extra state may be the parameter itself; its row in the file stays one."""
    net = Scaled()
    net.extra = {"parameter": net.weight.detach()}
    tk.save(net, path)
    assert tk.params(path).names() == ["weight"]
    assert torch.equal(tk.load(path)["_extra_state"]["parameter"], net.weight)


def test_overlapping_parameters_share_memory_in_the_file_only(path):
    """Parameters that overlap without being ties are kept as views, and fill their model again."""
    net = nn.Module()
    memory = torch.arange(6.0)
    net.register_buffer("left", memory[:4])
    net.register_buffer("right", memory[2:])
    tk.save(net, path)
    other = nn.Module()
    other.register_buffer("left", torch.zeros(4))
    other.register_buffer("right", torch.zeros(4))
    assert tk.load_into(other, path).names == ("left", "right")
    assert other.left.tolist() == [0, 1, 2, 3]
    assert other.right.tolist() == [2, 3, 4, 5]
    assert [row.name for row in tk.params(path).rows] == ["left", "right"]


def test_parameter_subclasses_are_kept_as_their_bytes(path):
    """A model's own Parameter class is filled again in place, so that nothing of it is lost."""

    class Special(nn.Parameter):
        pass

    net = nn.Module()
    net.weight = Special(torch.arange(3.0))
    tk.save(net, path)
    with torch.no_grad():
        net.weight.zero_()
    tk.load_into(net, path)
    assert type(net.weight) is Special
    assert net.weight.tolist() == [0, 1, 2]
