"""Optimizer groups: what is in them, what torch makes of them, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import NoMatchError, RuleError, SourceError
from torchkeep.selectors import select


def make_net():
    """Two linear layers, a norm, and the first layer again."""
    first = nn.Linear(3, 3)
    return nn.Sequential(first, nn.BatchNorm1d(3), nn.Linear(3, 3), first)


def test_every_trainable_parameter_is_in_exactly_one_group():
    """The last rule that matches wins, under an alias too, and a shared layer is there once, under its owner."""
    net = make_net()
    groups = tk.optimizer_groups(
        net, {"**": {"weight_decay": 0.1}, "**.bias": {"weight_decay": 0.0}, "3.weight": {}}
    )
    named = [[name for name, _ in group["params"]] for group in groups]
    assert named == [["1.weight", "2.weight"], ["0.bias", "1.bias", "2.bias"], ["0.weight"]]
    assert groups[2]["params"][0][1] is net[3].weight
    listed = [id(tensor) for group in groups for _, tensor in group["params"]]
    assert sorted(listed) == sorted(map(id, net.parameters()))


def test_groups_have_names_and_their_options():
    """The options are copied as given; the rule's text is the group's name unless the options give one."""
    options = {"lr": 0.1}
    groups = tk.optimizer_groups(make_net(), [("**", options), (select("**.bias"), {"name": "biases"})])
    assert [(group["name"], group.get("lr")) for group in groups] == [("**", 0.1), ("biases", None)]
    assert options == {"lr": 0.1}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_torch_accepts_them_and_keeps_names(make):
    """torch.optim takes the groups, keeps param_names, steps, and its state_dict loads into a second one."""
    net = make_net()

    def optimizer():
        return make(tk.optimizer_groups(net, {"**": {}, "**.bias": {"weight_decay": 0.0}}), lr=0.5)

    first = optimizer()
    assert [group["param_names"] for group in first.param_groups] == [
        ["0.weight", "1.weight", "2.weight"],
        ["0.bias", "1.bias", "2.bias"],
    ]
    assert [group["name"] for group in first.param_groups] == ["**", "**.bias"]
    assert first.param_groups[1]["weight_decay"] == 0.0
    before = net[0].weight.clone()
    net(torch.ones(4, 3)).square().sum().backward()
    first.step()
    assert not torch.equal(before, net[0].weight)
    second = optimizer()
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["param_groups"] == first.state_dict()["param_groups"]


def test_frozen_parameters_are_left_out():
    """What does not train needs no rule and is in no group."""
    net = make_net()
    tk.params(net, "0.**").freeze()
    groups = tk.optimizer_groups(net, {"**": {}})
    assert [name for name, _ in groups[0]["params"]] == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_a_rule_that_may_be_empty_makes_no_group():
    """Only an explicit allow_empty lets a rule match nothing."""
    rules = [("**", {}), (select("decoder.**", allow_empty=True), {"lr": 0.1})]
    assert [group["name"] for group in tk.optimizer_groups(make_net(), rules)] == ["**"]
    with pytest.raises(NoMatchError, match="decoder"):
        tk.optimizer_groups(make_net(), {"**": {}, "decoder.**": {"lr": 0.1}})


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"**.bias": {}}, r"no rule claims 3 trainable parameters of the model: 0\.weight, 1\.weight, 2\.weight"),
        ({"**.bias": {}, "**": {}}, r"'\*\*\.bias' never wins: .*\('\*\*'\)"),
        ({"**": {}, "1.running_mean": {}}, "'1.running_mean' matches none of the trainable parameters"),
        ({"**": {}, ":buffer": {}}, "':buffer' matches none of the trainable parameters"),
        ({"**": 0.1}, r"options of the rule '\*\*' must be a mapping such as .* not 0\.1"),
        ({"**": {"params": []}}, "may not hold 'params'"),
        ({"**": {"param_names": []}}, "may not hold 'param_names'"),
        ({"**": {1: 2}}, "must have names as keys, not 1"),
        ("**", "rules are a mapping or a list of pairs"),
        ({}, "no rule at all"),
    ],
)
def test_rules_that_make_no_groups(rules, problem):
    """Each is a RuleError that names the rule or the parameters."""
    with pytest.raises(RuleError, match=problem):
        tk.optimizer_groups(make_net(), rules)


def test_all_problems_are_told_at_once():
    """Several mistakes are one error with one sentence each."""
    with pytest.raises(RuleError) as caught:
        tk.optimizer_groups(make_net(), {"**.weight": {"params": 1}, "0.*": {}, "0.{weight,bias}": {}})
    assert len(caught.value.problems) == 3
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_a_rule_for_frozen_parameters_only():
    """A rule that would train nothing is refused, since it has no effect."""
    net = make_net()
    tk.params(net, "2.**").freeze()
    with pytest.raises(RuleError, match=r"'2\.\*' matches none of the trainable parameters"):
        tk.optimizer_groups(net, {"**": {}, "2.*": {"lr": 0.1}})


def test_two_parameters_over_one_storage_are_refused():
    """Two Parameters over one memory would each be stepped: tie them first. Frozen ones are harmless."""
    net = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    net[1].weight = nn.Parameter(net[0].weight.data)
    with pytest.raises(RuleError, match=r"0\.weight and 1\.weight are 2 Parameters .*tk\.tie them first"):
        tk.optimizer_groups(net, {"**": {}})
    tk.params(net).freeze()
    net.append(nn.Linear(2, 2))
    assert len(tk.optimizer_groups(net, {"**": {}})[0]["params"]) == 2


def test_overlapping_parameters_are_refused():
    """A Parameter over part of another one's memory would be stepped twice."""
    net = nn.ModuleList([nn.Linear(2, 4, bias=False), nn.Linear(2, 2, bias=False)])
    net[1].weight = nn.Parameter(net[0].weight.data[:2])
    with pytest.raises(RuleError, match=r"0\.weight, 1\.weight overlap in memory.*\.clone\(\)"):
        tk.optimizer_groups(net, {"**": {}})


def test_interleaved_parameters_are_no_overlap():
    """Columns of one matrix lie between each other and share no element: each trains by itself."""
    fused = torch.zeros(4, 6)
    net = nn.ModuleList([nn.Linear(2, 4, bias=False) for _ in range(3)])
    for at, layer in enumerate(net):
        layer.weight = nn.Parameter(fused[:, 2 * at : 2 * at + 2])
    assert len(tk.optimizer_groups(net, {"**": {}})[0]["params"]) == 3
    net[2].weight = nn.Parameter(fused[:, 3:5])
    with pytest.raises(RuleError, match="overlap in memory"):
        tk.optimizer_groups(net, {"**": {}})


def test_only_modules_have_groups():
    """A state_dict has nothing that trains."""
    with pytest.raises(SourceError, match=r"expected a torch\.nn\.Module, found OrderedDict"):
        tk.optimizer_groups(make_net().state_dict(), {"**": {}})
