"""The survey of a live module: canonical names, places, ties, overlaps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from torchkeep.errors import SourceError
from torchkeep.tables.survey import OWNERS_ATTRIBUTE, survey


class Tied(nn.Module):
    """An encoder and a decoder over one weight, declared as one Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def names(net):
    return [row.name for row in survey(net).listing.rows]


def test_rows_follow_the_state_dict():
    """Names and order are those of state_dict(), with non-persistent buffers in their module's place."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1)))
    assert names(net) == list(net.state_dict())
    net[1].register_buffer("cache", torch.zeros(2), persistent=False)
    found = {row.name: row for row in survey(net).listing.rows}
    assert not found["1.cache"].persistent
    assert found["1.running_mean"].persistent
    assert (found["1.running_mean"].kind, found["1.weight"].kind) == ("buffer", "parameter")


def test_a_row_says_what_the_tensor_is():
    """Shape, dtype, device, kind, trainable and class of one row are the live tensor's."""
    net = nn.Sequential(nn.Linear(2, 3, dtype=torch.bfloat16, device="meta"))
    net[0].weight.requires_grad_(requires_grad=False)
    row = survey(net).listing.rows[0]
    assert (row.name, row.shape, row.dtype, row.device) == ("0.weight", (3, 2), "bfloat16", "meta")
    assert (row.kind, row.trainable, row.module_type) == ("parameter", False, "Linear")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_three_kinds_of_tie_are_told_apart(device):
    """A shared module, a shared Parameter and two Parameters over one storage are ties, each of its kind."""
    shared = nn.Linear(2, 2, bias=False, device=device)
    module = nn.Sequential(shared, shared)
    parameter = Tied().to(device)
    parameter.head.weight = parameter.embed.weight
    storage = nn.Sequential(nn.Linear(2, 2, bias=False, device=device), nn.Linear(2, 2, bias=False, device=device))
    storage[1].weight = nn.Parameter(storage[0].weight.data)
    found = {
        tie.kind: (tie.owner, tie.aliases) for net in (module, parameter, storage) for tie in survey(net).ties
    }
    assert found == {
        "module": ("0.weight", ("1.weight",)),
        "parameter": ("embed.weight", ("head.weight",)),
        "storage": ("0.weight", ("1.weight",)),
    }


def test_a_tie_is_one_row_with_every_place():
    """The row stands once under its owner, and each place leads to the tensor."""
    net = Tied()
    found = survey(net)
    assert [(row.name, row.aliases) for row in found.listing.rows] == [("embed.weight", ("head.weight",))]
    assert found.tensors[0] is net.embed.weight
    assert [(place.name, place.module, place.key) for place in found.places[0]] == [
        ("embed.weight", net.embed, "weight"),
        ("head.weight", net.head, "weight"),
    ]


def test_the_owner_is_the_declared_one_else_the_naturally_smallest():
    """Layers.2 comes before layers.10, unless layers.10 was declared, and copies keep the declaration."""
    shared = nn.Linear(1, 1, bias=False)
    net = nn.ModuleDict({"layers": nn.ModuleDict({"10": shared, "2": shared})})
    assert names(net) == ["layers.2.weight"]
    net.__dict__[OWNERS_ATTRIBUTE] = ("layers.10.weight",)
    assert names(net) == names(copy.deepcopy(net)) == ["layers.10.weight"]
    assert names(nn.Sequential(net)) == ["0.layers.10.weight"]


def test_other_overlaps_are_reported_and_not_tied():
    """A Parameter that is a slice of another shares memory without being the same tensor."""
    net = nn.ParameterDict({"whole": nn.Parameter(torch.zeros(4)), "other": nn.Parameter(torch.zeros(4))})
    net["part"] = nn.Parameter(net["whole"].data[1:3])
    found = survey(net)
    assert found.ties == ()
    assert found.overlaps == (("whole", "part"),)


def test_wrappers_are_no_part_of_a_name():
    """DataParallel, torch.compile and activation checkpointing around and inside a model leave its names alone."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    bare = names(net)
    wrapped = nn.Sequential(net[0], checkpoint_wrapper(net[1]))
    for model in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(wrapped))):
        assert names(model) == bare


def test_a_module_that_merely_has_an_attribute_called_module_is_no_wrapper():
    """Only types tell: a user's own `module` stays part of the name."""
    net = nn.ModuleDict({"module": nn.Linear(1, 1, bias=False)})
    assert names(net) == ["module.weight"]


def test_parametrized_weights_keep_their_names_and_answer_to_the_plain_one():
    """The two originals carry the plain name, and the class is Linear, not the one made on the fly."""
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    found = survey(net).listing
    rows = {row.name: row for row in found.rows}
    assert rows["0.parametrizations.weight.original0"].plain == ("0.weight",)
    assert rows["0.parametrizations.weight.original1"].plain == ("0.weight",)
    assert rows["0.bias"].plain == ()
    assert rows["0.parametrizations.weight.original0"].module_type == "Linear"
    assert found.modules["0"].qualified == "torch.nn.modules.linear.Linear"


def test_lazy_parameters_have_no_shape():
    """A lazy module is described, not refused."""
    row = survey(nn.LazyLinear(3)).listing.rows[0]
    assert (row.name, row.shape, row.lazy, row.numel) == ("weight", None, True, 0)


def test_a_module_that_contains_itself_is_refused():
    """The error names the path where the loop closes, instead of running out of stack."""
    net = nn.Sequential(nn.Sequential())
    net[0].add_module("loop", net)
    with pytest.raises(SourceError, match=r"'0\.loop' contains itself"):
        survey(net)


def test_anything_but_a_module_is_refused():
    """The error says what was given."""
    with pytest.raises(SourceError, match="found dict"):
        survey({})


def test_the_classes_of_every_path_are_known():
    """Each path, shared ones under each name, has its class and its bases by name."""
    shared = nn.ReLU()
    found = survey(nn.Sequential(shared, nn.Sequential(shared))).listing.modules
    assert {path: info.name for path, info in found.items()} == {
        "": "Sequential",
        "0": "ReLU",
        "1": "Sequential",
        "1.0": "ReLU",
    }
    assert found["0"].lineage[-1] == ("torch.nn.modules.module", "Module")


def test_two_tensors_under_one_name_are_refused():
    """A dot in a key can give two tensors one name; the error says which, before either is taken for the other."""
    net = nn.Module()
    net.a = nn.Module()
    net.a.b = nn.Parameter(torch.zeros(3))
    net._parameters["a.b"] = nn.Parameter(torch.zeros(2))
    with pytest.raises(SourceError, match=r"two tensors called 'a\.b'"):
        survey(net)
    del net.a
    assert names(net) == ["a.b"]


@pytest.mark.parametrize("key", ["", 0, nn.ReLU()])
def test_a_key_that_is_no_name_is_refused(key):
    """A hand-written container may use any key; one that makes no name is told, with the module that holds it."""
    net = nn.Sequential(nn.Module())
    net[0]._modules[key] = nn.Linear(1, 1)
    with pytest.raises(SourceError, match="module at '0' holds something under"):
        survey(net)
    bare = nn.Module()
    bare._buffers[key] = torch.zeros(1)
    with pytest.raises(SourceError, match="the model holds something under"):
        survey(bare)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused_by_name(layout):
    """A nested tensor has no shape that a row could tell, in a model or in a mapping."""
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)
    net = nn.Sequential(nn.Module())
    net[0].register_buffer("parts", nested)
    with pytest.raises(SourceError, match=r"0\.parts is a nested tensor"):
        survey(net)
    with pytest.raises(SourceError, match="parts is a nested tensor"):
        tk.params({"parts": nested})


def test_a_modules_own_getattr_is_not_asked():
    """A class that answers for every attribute, or raises its own error, is surveyed as any other."""

    class Guarded(nn.Linear):
        def __getattr__(self, name):
            if name in ("weight", "bias"):
                return super().__getattr__(name)
            raise RuntimeError(name)

    net = nn.Sequential(Guarded(2, 1))
    assert names(net) == ["0.weight", "0.bias"]
    assert "Guarded(2, 1)" in str(tk.tree(net))
