"""Seeing ties and making them: names, objects, owners, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations

from torchkeep.errors import NoMatchError, SourceError, TieError
from torchkeep.tables.survey import TieGroup
from torchkeep.tying import tie, ties


def language():
    """An embedding and a head of one shape, and another head."""
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4),
            "head": nn.Linear(4, 7, bias=False),
            "other": nn.Linear(4, 7),
        }
    )


def values_of(tensor):
    return None if is_lazy(tensor) or tensor.is_meta else tensor.tolist()


def state_of(net):
    """Everything that a refused tie must leave alone: objects, values, declarations."""
    return (
        {name: (id(p), values_of(p)) for name, p in net.named_parameters(remove_duplicate=False)},
        [dict(vars(module)).get("_torchkeep_owners") for module in net.modules()],
    )


def test_ties_prints_what_is_one_and_what_merely_overlaps():
    """The list equals plain TieGroups; a slice of a weight is named as an overlap, two columns of it are not."""
    net = nn.ParameterDict({"whole": nn.Parameter(torch.zeros(4, 2)), "z": nn.Parameter(torch.zeros(2))})
    net["left"] = nn.Parameter(net["whole"].data[:, 0])
    net["right"] = nn.Parameter(net["whole"].data[:, 1])
    net["again"] = net["z"]
    found = ties(net)
    assert found == [TieGroup("again", ("z",), "parameter")]
    assert found.overlaps == (("whole", "left", "right"),)
    assert str(found).splitlines() == [
        "again = z  (parameter)",
        "whole overlaps left overlaps right  (no tie)",
    ]
    del net["whole"]
    assert ties(net).overlaps == ()
    assert str(ties(nn.Linear(1, 1))) == "no ties"


def test_a_tie_is_one_object_under_every_name():
    """The alias becomes the owner's Parameter; writing through one name is read through the other."""
    net = language()
    values = net["head"].weight.detach().clone()
    assert tie(net, "head.weight", "embed.weight") == TieGroup("head.weight", ("embed.weight",), "parameter")
    assert net["embed"].weight is net["head"].weight
    assert torch.equal(net["embed"].weight, values)
    with torch.no_grad():
        net["embed"].weight[0, 0] = 42
    assert net["head"].weight[0, 0] == 42


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_the_declared_owner_stays_the_owner(copied):
    """`head` is not the smallest name, yet listings keep it, also in copies; declaring another replaces it."""
    net = language()
    tie(net, "head.weight", "embed.weight")
    other = copied(net)
    assert ties(other) == ties(net) == [TieGroup("head.weight", ("embed.weight",), "parameter")]
    tie(other, "embed.weight", "head.weight")
    assert ties(other) == [TieGroup("embed.weight", ("head.weight",), "parameter")]
    assert ties(net)[0].owner == "head.weight"


def test_an_owner_declared_inside_gives_way_to_one_declared_outside():
    """A part that was tied on its own keeps its tie, under the owner that the whole declares."""
    part = language()
    tie(part, "head.weight", "embed.weight")
    net = nn.ModuleDict({"part": part, "z": nn.Linear(4, 7, bias=False)})
    assert ties(net)[0].owner == "part.head.weight"
    group = tie(net, "z.weight", "part.embed.weight")
    assert group == TieGroup("z.weight", ("part.embed.weight", "part.head.weight"), "parameter")


def test_every_place_of_an_alias_follows():
    """An alias that is itself tied (a shared module, another name) brings all its names along."""
    shared = nn.Linear(4, 7, bias=False)
    net = nn.ModuleDict({"embed": nn.Embedding(7, 4), "a": shared, "b": shared, "c": nn.Linear(4, 7, bias=False)})
    net["c"].weight = shared.weight
    group = tie(net, "embed.weight", "b.weight")
    assert group.aliases == ("a.weight", "b.weight", "c.weight")
    assert shared.weight is net["c"].weight is net["embed"].weight


def test_two_parameters_over_one_storage_become_one_object():
    """After the tie there is one Parameter, hence one gradient."""
    net = language()
    net["head"].weight = nn.Parameter(net["embed"].weight.data)
    assert ties(net)[0].kind == "storage"
    assert tie(net, "embed.weight", "head.weight").kind == "parameter"
    assert net["head"].weight is net["embed"].weight


def test_other_parameters_over_the_owners_storage_stay_their_own():
    """Only the names that are given become the owner's object; the third keeps its own gradient."""
    net = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in "abc"})
    net["b"].data = net["c"].data = net["a"].data
    assert tie(net, "a", "b") == TieGroup("a", ("b", "c"), "storage")
    assert net["b"] is net["a"]
    assert net["c"] is not net["a"]


def test_a_recurrent_layer_runs_with_the_tied_weight():
    """cuDNN-style layers keep a list of their weights; it must hold the owner's too."""
    net = nn.ModuleDict({"a": nn.LSTM(3, 3), "b": nn.LSTM(3, 3)})
    tie(net, "a.weight_ih_l0", "b.weight_ih_l0")
    net["b"](torch.rand(2, 1, 3))[0].sum().backward()
    assert net["a"].weight_ih_l0.grad is not None


def test_the_owners_gradient_and_requires_grad_stay():
    """What the owner has is kept; what the alias had is gone."""
    net = language()
    net["embed"].weight.requires_grad_(requires_grad=False)
    net["head"].weight.grad = torch.ones(7, 4)
    tie(net, "head.weight", "embed.weight")
    assert net["embed"].weight.requires_grad
    assert torch.equal(net["embed"].weight.grad, torch.ones(7, 4))


@pytest.mark.parametrize(
    ("change", "names", "error", "says"),
    [
        (lambda _: None, ["embed.weight", "other.bias"], TieError, r"\(7, 4\).*\(7,\)"),
        (lambda net: net["head"].double(), ["embed.weight", "head.weight"], TieError, "float32.*float64"),
        (lambda net: net["head"].to("meta"), ["embed.weight", "head.weight"], TieError, "cpu.*meta"),
        (lambda _: None, ["embed.weight", "haed.weight"], NoMatchError, r"haed.*head\.weight"),
        (lambda _: None, ["embed.wieght", "head.weight"], NoMatchError, r"embed\.weight"),
        (lambda _: None, ["embed.weight"], TieError, "at least one more"),
        (lambda _: None, ["embed.weight", "head.weight", "embed.weight"], TieError, "owner"),
        (
            lambda net: net["other"].register_buffer("cache", torch.zeros(7)),
            ["other.bias", "other.cache"],
            TieError,
            "buffer",
        ),
        (lambda net: net.update({"lazy": nn.LazyLinear(7)}), ["other.weight", "lazy.weight"], TieError, "lazy"),
        (
            lambda net: parametrizations.weight_norm(net["head"]),
            ["embed.weight", "head.weight"],
            TieError,
            "parametriz",
        ),
        (
            lambda net: parametrizations.weight_norm(net["head"]),
            ["embed.weight", "head.parametrizations.weight.original1"],
            TieError,
            "parametriz",
        ),
    ],
)
def test_what_can_not_be_tied_is_refused_and_nothing_changes(change, names, error, says):
    """The error names both tensors and what differs; objects, values and owners are as before."""
    net = language()
    change(net)
    before = state_of(net)
    with pytest.raises(error, match=says):
        tie(net, *names)
    assert state_of(net) == before


def test_a_second_alias_that_does_not_fit_leaves_the_first_alone():
    """All aliases are checked before any is tied, and each problem has its line."""
    net = language()
    net["other"].double()
    before = state_of(net)
    with pytest.raises(TieError) as caught:
        tie(net, "embed.weight", "head.weight", "other.weight", "other.bias")
    assert "other.weight" in str(caught.value)
    assert "other.bias" in str(caught.value)
    assert state_of(net) == before


def test_a_module_that_refuses_the_tensor_leaves_all_as_it_was():
    """When one module raises on assignment, those before it get their own tensors back."""

    class Stubborn(nn.Linear):
        def __setattr__(self, name, value):
            if name == "weight" and "weight" in self.__dict__.get("_parameters", {}):
                raise RuntimeError("no")
            super().__setattr__(name, value)

    net = language()
    net["stubborn"] = Stubborn(4, 7)
    before = state_of(net)
    with pytest.raises(RuntimeError, match="no"):
        tie(net, "embed.weight", "head.weight", "stubborn.weight")
    assert state_of(net) == before


def test_wrappers_that_hold_their_own_list_are_refused(monkeypatch):
    """DistributedDataParallel would go on reducing the old Parameter, so the tie comes first."""
    from torch.nn.parallel import distributed

    class Held(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setattr(distributed, "DistributedDataParallel", Held)
    net = Held(language())
    with pytest.raises(TieError, match="before wrapping"):
        tie(net, "embed.weight", "head.weight")


def test_names_ignore_other_wrappers():
    """A DataParallel around the model is no part of the names."""
    net = nn.DataParallel(language())
    tie(net, "embed.weight", "head.weight")
    assert net.module["embed"].weight is net.module["head"].weight
    assert ties(net.module) == ties(net)


def test_names_may_be_spelled_as_selectors_do():
    """What a table shows pastes back."""
    net = nn.ModuleDict({"block 0": nn.Linear(2, 2), "block 1": nn.Linear(2, 2)})
    assert tie(net, "'block 1'.weight", "block 0.weight").owner == "block 1.weight"
    with pytest.raises(TieError, match="owner"):
        tie(net, "'block 1'.weight", "block 1.weight")


def test_anything_but_a_module_is_refused():
    """A dict has no places to tie."""
    with pytest.raises(SourceError, match="dict"):
        ties({})
