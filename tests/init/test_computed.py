"""Weights that modules compute from others are set through right_inverse, or refused: never silently unchanged."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torchkeep as tk

init = tk.init


class Symmetric(nn.Module):
    """Has no right_inverse."""

    def forward(self, x):
        return x.triu() + x.triu(1).T


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, y):
        return y / 2


class Sum(nn.Module):
    """Computed from two originals of other shapes than the weight's."""

    def forward(self, rows, columns):
        return rows[:, None] + columns[None]

    def right_inverse(self, y):
        return y[:, 0], y[0] - y[0, 0]


def weight_normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2))


def problems_of(net, rules):
    with pytest.raises(tk.errors.RuleError) as caught:
        init.plan(net, rules)
    return caught.value.problems


RULES = {"**": init.normal(0, 0.5), "**.bias": init.zeros()}


def test_a_rule_on_the_plain_name_claims_all_originals():
    """One row under the plain name with the plain shape; nothing is unclaimed."""
    net = weight_normed()
    for selector in ("0.weight", "@=Linear & 0.weight", "**.weight", "[shape=4x6]"):
        plan = init.plan(net, {"**": init.zeros(), selector: init.xavier_normal()})
        row = plan["0.weight"]
        assert (row.rule, row.shape, row.fan_in, row.fan_out) == (selector, (4, 6), 6, 4)
        assert not any("original" in row.name for row in plan)


@pytest.mark.parametrize(
    "initializer", [init.normal(), init.orthogonal(), init.torch_default(), init.constant(0.5)], ids=str
)
def test_weight_norm_gets_the_weight_that_was_drawn(initializer):
    """What the module computes equals what the plan draws for the plain name, as for the same layer without it."""
    net, bare = weight_normed(), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    rules = {"**": init.zeros(), "0.weight": initializer}
    plan = tk.initialize(net, rules, seed=9)
    tk.initialize(bare, rules, seed=9)
    assert torch.allclose(net[0].weight, bare[0].weight, atol=1e-6)
    assert torch.equal(plan.values("0.weight"), bare[0].weight)
    norms = net[0].parametrizations.weight.original0
    assert torch.allclose(norms, bare[0].weight.norm(dim=1, keepdim=True))


def test_the_originals_stay_the_same_objects():
    """They are filled in place, with requires_grad as it was, and autograd notices."""
    net = weight_normed()
    held = dict(net.named_parameters())
    net[0].parametrizations.weight.original1.requires_grad_(requires_grad=False)
    tk.initialize(net, RULES)
    assert all(value is held[name] for name, value in net.named_parameters())
    assert not net[0].parametrizations.weight.original1.requires_grad


def test_spectral_norm_and_orthogonal_are_set_through_their_right_inverse():
    """As assigning to the attribute does in torch, for the same values."""
    for make in (parametrizations.spectral_norm, parametrizations.orthogonal):
        torch.manual_seed(0)
        net = make(nn.Linear(5, 5))
        expected = copy.deepcopy(net)
        initializer = init.orthogonal()
        plan = init.plan(net, {"weight": initializer, "bias": init.zeros()})
        plan.apply()
        with torch.no_grad():
            expected.weight = plan.values("weight")
        assert torch.allclose(net.eval().weight, expected.eval().weight, atol=1e-6)
        ones = [value for name, value in net.named_parameters() if "original" in name]
        twos = [value for name, value in expected.named_parameters() if "original" in name]
        assert all(torch.equal(one, two) for one, two in zip(ones, twos, strict=True))


def test_custom_parametrizations_chained_and_of_several_originals():
    """Right inverses run from the last to the first; originals may have shapes of their own."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    parametrize.register_parametrization(net[0], "weight", Doubled())
    parametrize.register_parametrization(net[0], "weight", Doubled())
    parametrize.register_parametrization(net[1], "weight", Sum())
    rules = {"**": init.zeros(), "0.weight": init.uniform(1, 2), "1.weight": init.constant(3)}
    plan = tk.initialize(net, rules)
    assert torch.equal(net[0].weight, plan.values("0.weight"))
    assert torch.equal(net[0].parametrizations.weight.original, plan.values("0.weight") / 4)
    assert torch.equal(net[1].weight, torch.full((4, 3), 3.0))
    assert plan["1.weight"].shape == (4, 3)


def test_planning_runs_no_parametrization_on_the_model():
    """spectral_norm's power iteration changes its buffers at each use in training: a plan leaves them alone."""
    net = parametrizations.spectral_norm(nn.Linear(5, 5)).train()
    before = {name: (value.clone(), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    plan = init.plan(net, RULES)
    plan.values("weight")
    for name, value in net.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]


def test_without_right_inverse_it_is_refused():
    """The class is named, and what can be done; keeping is fine."""
    net = nn.Linear(4, 4)
    parametrize.register_parametrization(net, "weight", Symmetric())
    (problem,) = problems_of(net, RULES)
    assert problem.startswith("weight: weights under Symmetric are computed")
    assert "no right_inverse" in problem
    assert "'parametrizations.weight.original'" in problem
    before = net.weight.clone()
    tk.initialize(net, {"**": init.keep(), "bias": init.zeros()})
    assert torch.equal(net.weight, before)


def test_an_original_named_itself_is_set_raw():
    """Naming `original1` directly fills that tensor; the rest of the weight follows the rule on the plain name."""
    net = nn.Linear(4, 4)
    parametrize.register_parametrization(net, "weight", Symmetric())
    raw = "parametrizations.weight.original"
    plan = tk.initialize(net, {"bias": init.zeros(), raw: init.normal()})
    assert torch.equal(net.parametrizations.weight.original, plan.values(raw))
    both = parametrizations.weight_norm(nn.Linear(6, 4))
    plan = tk.initialize(both, {"**": init.normal(), "**.original0": init.ones()})
    assert (both.parametrizations.weight.original0 == 1).all()
    assert torch.equal(both.parametrizations.weight.original1, plan.values("weight"))
    assert {row.name for row in plan} == {"bias", "parametrizations.weight.original0", "weight"}


def test_a_later_rule_on_the_plain_name_beats_one_on_an_original():
    """The raw rule then never wins, which is an error that names the later one."""
    (problem,) = problems_of(
        weight_normed(), [("**", init.zeros()), ("**.original0", init.ones()), ("0.weight", init.normal())]
    )
    assert "'**.original0' never wins: later rules claim all that it matches ('0.weight')" in problem


def test_an_unclaimed_computed_weight_is_named_once():
    """Under its plain name; or by the original that is left when the other one is claimed."""
    (problem,) = problems_of(weight_normed(), {"**.bias": init.zeros(), "1.weight": init.zeros()})
    assert "1 of the parameters of the model: 0.weight" in problem
    (problem,) = problems_of(
        weight_normed(), {"**.bias": init.zeros(), "1.weight": init.zeros(), "**.original0": init.ones()}
    )
    assert "0.parametrizations.weight.original1" in problem


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("make", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_of_the_older_hooks_are_refused(make):
    """torch.nn.utils.weight_norm computes the weight in a hook; to fill its originals is not what was asked."""
    net = nn.Sequential(make(nn.Linear(6, 4)), nn.Linear(4, 2))
    (problem,) = problems_of(net, RULES)
    assert problem.startswith(f"0.weight: weights under torch.nn.utils.{make.__name__} are computed by a hook")
    assert f"use torch.nn.utils.parametrizations.{make.__name__}" in problem
    before = {name: value.clone() for name, value in net[0].state_dict().items()}
    tk.initialize(net, {"**": init.keep(), "1.*": init.zeros()})
    assert all(torch.equal(value, before[name]) for name, value in net[0].state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_originals_of_the_older_hooks_can_be_named():
    """`weight_g` and `weight_v` are parameters like others when a rule says so."""
    net = nn.utils.weight_norm(nn.Linear(6, 4))
    tk.initialize(net, {"bias": init.zeros(), "weight_g": init.ones(), "weight_v": init.normal()})
    net(torch.zeros(1, 6))
    assert torch.allclose(net.weight.norm(dim=1), torch.ones(4))


def test_values_that_the_parametrization_can_not_hold_are_refused():
    """weight_norm divides by the norm: zeros would give NaN at the first forward. Nothing is changed."""
    net = weight_normed()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(tk.errors.RuleError, match=r"'0\.weight', computed by _WeightNorm, .* is NaN"):
        tk.initialize(net, {"**": init.zeros()})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_right_inverse_that_raises_or_does_not_fit_is_told():
    """Orthogonal without its trivialisation can only hold orthogonal matrices: its own reason is shown."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fits = True

        def forward(self, x):
            return x[:4]

        def right_inverse(self, y):
            return torch.cat([y, y[:1]]) if self.fits else y

    net = parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley", use_trivialization=False)
    with pytest.raises(tk.errors.RuleError, match="'weight', computed by _Orthogonal, can't be set to the values"):
        tk.initialize(net, RULES)
    net = nn.Linear(3, 4)
    parametrize.register_parametrization(net, "weight", Odd(), unsafe=True)
    tk.initialize(net, RULES)
    net.parametrizations.weight[0].fits = False
    with pytest.raises(
        tk.errors.RuleError, match=r"right_inverse gives \(4, 3\) in float32 for .* which is \(5, 3\)"
    ):
        tk.initialize(net, RULES)


def test_computed_weights_on_the_meta_device():
    """Planned, drawn and assigned as on the CPU, with the same bits."""
    with torch.device("meta"):
        net = weight_normed()
    real = weight_normed()
    for rules in (RULES, {"**": init.torch_default()}):
        plan = init.plan(net, rules, seed=2)
        assert plan["0.weight"].shape == (4, 6)
    plan.apply("cpu")
    tk.initialize(real, {"**": init.torch_default()}, seed=2)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in real.state_dict().items())


def test_a_shared_parametrized_module_is_one():
    """Its plain names are aliases of one weight."""
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    net = nn.Sequential(layer, nn.ReLU(), layer)
    plan = tk.initialize(net, {"**": init.normal(), "**.bias": init.zeros()})
    assert (plan["2.weight"].name, plan["2.weight"].aliases) == ("0.weight", ("2.weight",))
    assert torch.allclose(net[2].weight, plan.values("0.weight"), atol=1e-6)


def test_an_original_that_is_tied_to_a_plain_parameter_is_that_parameter():
    """The tie is under the plain parameter's name, which rules may use."""
    net = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    parametrize.register_parametrization(net.b, "weight", Doubled())
    net.b.parametrizations.weight.original = net.a.weight
    for selector in ("a.weight", "**"):
        plan = tk.initialize(net, {selector: init.normal()})
        assert [row.name for row in plan] == ["a.weight"]
        assert torch.equal(net.b.weight, 2 * plan.values("a.weight"))


def test_a_parametrized_buffer_is_claimed_only_by_name():
    """It is a buffer: `**` leaves it alone."""
    net = nn.BatchNorm1d(3)
    parametrize.register_parametrization(net, "running_mean", Doubled())
    tk.initialize(net, {"**": init.ones()})
    assert (net.running_mean == 0).all()
    tk.initialize(net, {"**": init.ones(), ":buffer & running_mean": init.constant(4)})
    assert (net.running_mean == 4).all()
    assert (net.parametrizations.running_mean.original == 2).all()
