"""Promise 13: a layer shared in two places is one, and stays one whatever PyTorch does to the model."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

import torchkeep as tk


def shared_layer_net():
    """One linear layer in two places."""
    shared = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 1))


def tied_parameter_net():
    """An embedding and a head over one Parameter, tied by torchkeep."""
    net = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    tk.tie(net, "embed.weight", "head.weight")
    return net


NETS = {
    "layer": (shared_layer_net, "2.weight", "4.weight"),
    "parameter": (tied_parameter_net, "embed.weight", "head.weight"),
}


@pytest.fixture(params=NETS.values(), ids=NETS)
def tied(request):
    """A net, the owner's name and an alias."""
    make, owner, alias = request.param
    return make(), owner, alias


def assert_one(net, owner, alias):
    """The two names are one Parameter object, and writing one element through one is seen through the other."""
    first, second = net.get_parameter(owner), net.get_parameter(alias)
    assert first is second
    assert tk.params(net)[owner] is tk.params(net)[alias] is first
    if first.device.type != "meta":
        with torch.no_grad():
            first[0, 0] = 100.0
        assert second[0, 0] == 100.0
    assert any(group.owner == owner and alias in group.aliases for group in tk.ties(net))


def test_13_a_shared_layer_is_one(tied):
    """Both names lead to one object, counted once."""
    net, owner, alias = tied
    assert_one(net, owner, alias)
    assert tk.params(net).numel == sum(p.numel() for p in net.parameters())


def test_13_so_it_is_after_save_and_load(tied, tmp_path):
    """The file holds the values once, and loading them fills the one parameter."""
    net, owner, alias = tied
    tk.save(net, tmp_path / "net.safetensors")
    loaded = tk.load(tmp_path / "net.safetensors")
    assert loaded[owner] is loaded[alias]
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    tk.load_into(other, tmp_path / "net.safetensors")
    assert torch.equal(other.get_parameter(alias), net.get_parameter(owner))
    assert_one(other, owner, alias)


def test_13_so_it_is_after_deepcopy(tied):
    """A copy is tied within itself and apart from the original."""
    net, owner, alias = tied
    other = copy.deepcopy(net)
    assert_one(other, owner, alias)
    assert other.get_parameter(owner) is not net.get_parameter(owner)


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "weak references alive"])
def test_13_so_it_is_after_to_empty(tied, watched):
    """Moving to the meta device and back through to_empty keeps one object, also while weak references live."""
    net, owner, alias = tied
    references = [weakref.ref(p) for p in net.parameters()] if watched else []
    with tk.keeping_ties(net):
        net.to("meta")
    assert_one(net, owner, alias)
    with tk.keeping_ties(net):
        net.to_empty(device="cpu")
    assert_one(net, owner, alias)
    assert len(references) == (len(list(net.parameters())) if watched else 0)


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "weak references alive"])
def test_13_so_it_is_after_load_state_dict_by_assignment(tied, watched):
    """Loading by assignment replaces Parameters one by one; the tie and the optimizer follow."""
    net, owner, alias = tied
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    state = {name: torch.full_like(value, 0.5) for name, value in net.state_dict().items()}
    references = [weakref.ref(p) for p in net.parameters()] if watched else []
    with tk.keeping_ties(net, optimizer):
        net.load_state_dict(state, assign=True)
    assert (net.get_parameter(owner) == 0.5).all()
    assert_one(net, owner, alias)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}
    assert len(references) == (len(held) if watched else 0)
