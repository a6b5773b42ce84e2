"""Plans: what is wrong is said at once and by name, and nothing is touched."""

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk

init = tk.init


def make_net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def problems_of(net, rules, **options):
    with pytest.raises(tk.errors.RuleError) as caught:
        init.plan(net, rules, **options)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_a_plan_says_what_fills_what():
    """Every tensor has a row: name, winning rule, initializer, fans, expected standard deviation, aliases."""
    plan = init.plan(
        make_net(), {"**": init.zeros(), "*.weight": init.normal(0, 0.5), "2.weight": init.xavier_normal()}
    )
    assert [row.name for row in plan] == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    last = plan["2.weight"]
    assert (last.rule, last.initializer, last.shape) == ("2.weight", init.xavier_normal(), (4, 8))
    assert (last.fan_in, last.fan_out, last.aliases) == (8, 4, ())
    assert last.std == pytest.approx((2 / 12) ** 0.5)
    assert last.overridden == (("**", ("2.weight",)), ("*.weight", ("2.weight",)))
    assert (plan[0].rule, plan[0].std, plan[1].fan_in, plan[1].std) == ("*.weight", 0.5, None, 0.0)
    assert len(plan) == 6
    assert [row.name for row in plan[1:3]] == ["0.bias", "1.weight"]


def test_a_plan_touches_nothing():
    """Neither values, versions nor gradients of the model, nor any global generator."""
    net = make_net()
    net(torch.randn(5, 6)).sum().backward()
    before = {name: (value.clone(), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    plan = init.plan(
        net, {"**": init.torch_default(), "0.weight": init.custom(lambda t, g: t.normal_(generator=g))}
    )
    str(plan)
    plan.values("0.weight")
    plan.values("1.bias")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]


def test_a_plan_works_on_the_meta_device():
    """The same rows, and values can be drawn, while the model holds nothing."""
    with torch.device("meta"):
        net = make_net()
    rules = {"**": init.torch_default(), "**.bias": init.uniform(-1, 1)}
    assert str(init.plan(net, rules)) == str(init.plan(make_net(), rules))
    assert init.plan(net, rules).values("0.weight").shape == (8, 6)
    assert all(value.is_meta for value in net.state_dict().values())


def test_unclaimed_parameters_are_named_folded():
    """Every parameter needs a rule; those without are named, repeated blocks in one pattern, with what to add."""
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
    (problem,) = problems_of(net, {"**.weight": init.zeros()})
    assert "no rule claims 12 parameters of the model: [0:12].bias (12)" in problem
    assert "{'**': tk.init.keep()}" in problem


def test_rules_that_never_win_are_named():
    """With the later rules that beat them."""
    (problem,) = problems_of(make_net(), {"0.weight": init.ones(), "1.*": init.ones(), "**": init.zeros()})[:1]
    assert "the rule '0.weight' never wins" in problem
    assert "('**')" in problem


def test_all_problems_are_told_at_once():
    """Unclaimed parameters, beaten rules, fans of 1-D tensors: one error, a sentence each."""
    problems = problems_of(
        make_net(), {"2.weight": init.ones(), "{0,1}.*": init.kaiming_normal(), "**.weight": init.eye()}
    )
    assert len(problems) == 4
    assert "no rule claims" in problems[0]
    assert "'2.weight' never wins" in problems[1]
    assert any(
        "kaiming_normal needs a fan in and a fan out" in problem and "0.bias" in problem for problem in problems
    )
    assert any("eye makes matrices" in problem and "1.weight" in problem for problem in problems)


def test_a_rule_that_matches_nothing_names_the_nearest():
    """A typo is an error of its own kind."""
    with pytest.raises(tk.errors.NoMatchError, match=r"0\.wieght"):
        init.plan(make_net(), {"**": init.zeros(), "0.wieght": init.ones()})


@pytest.mark.parametrize(
    "initializer", [init.xavier_uniform(), init.kaiming_uniform(), init.lecun_normal()], ids=str
)
def test_fans_of_vectors_are_refused(initializer):
    """A bias has no fans; all are named in one sentence, with what to write instead."""
    (problem,) = problems_of(make_net(), {"**": initializer})
    assert f"{initializer.title} needs a fan in and a fan out" in problem
    assert problem.startswith("0.bias, 1.weight, 1.bias, 2.bias: ")
    assert "such as zeros" in problem


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (0.1, "write tk.init.constant(0.1)"),
        (0, "write tk.init.constant(0)"),
        ("xavier_uniform", "write tk.init.xavier_uniform()"),
        ("a b", "write tk.init.zeros()"),
        (init.zeros, r"call it: tk.init.zeros()"),
        (nn.init.zeros_, "write tk.init.custom("),
        (None, "such as tk.init.normal(0, 0.02)"),
    ],
)
def test_what_is_no_initializer_is_refused_with_the_fix(value, fix):
    """A number, a name, a function: the sentence says what to write."""
    (problem,) = problems_of(make_net(), {"**": value})
    assert "which is no initializer" in problem
    assert fix in problem


@pytest.mark.parametrize("rules", [{}, [], 3, "**", [("**",)], [(3, init.zeros())]], ids=repr)
def test_what_is_no_rules_is_refused(rules):
    """A mapping or a list of pairs, and not an empty one."""
    with pytest.raises(tk.errors.RuleError, match="rules are a mapping or a list of pairs"):
        init.plan(make_net(), rules)


def test_rules_may_be_pairs_and_selectors():
    """A list of pairs, an iterator of them, and Selectors as keys do too; a selector may stand twice."""
    pairs = [("**", init.zeros()), (tk.select("*.weight"), init.ones()), ("**", init.keep())]
    assert [row.rule for row in init.plan(make_net(), pairs[:2])][:2] == ["*.weight", "**"]
    assert len(init.plan(make_net(), iter(pairs[:2]))) == 6
    assert len(problems_of(make_net(), pairs)) == 2


def test_every_whole_number_is_a_seed():
    """Negative ones, huge ones and NumPy's; but no bool, float or text."""
    net = make_net()
    drawn = [
        init.plan(net, {"**": init.normal()}, seed=seed).values("0.weight").sum().item()
        for seed in (0, 1, -1, 2**32, 2**200, -(2**64))
    ]
    assert len(set(drawn)) == len(drawn)
    assert init.plan(net, {"**": init.normal()}, seed=np.int64(1)).values("0.weight").sum().item() == drawn[1]
    for seed in (True, 0.0, "0", None):
        with pytest.raises(tk.errors.RuleError, match="seed is a whole number of any size"):
            init.plan(net, {"**": init.normal()}, seed=seed)


def test_lazy_parameters_are_refused_unless_kept():
    """They have no shape; the sentence says how they get one."""
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    (problem,) = problems_of(net, {"**": init.zeros()})
    assert "0.weight" in problem
    assert "run one batch through the model first" in problem
    plan = init.plan(net, {"0.*": init.keep(), "1.*": init.zeros()})
    plan.apply()
    assert plan["0.weight"].shape is None
    assert "lazy" in str(plan)
    assert (net[1].weight == 0).all()


def test_torch_default_needs_a_reset_method():
    """A class without reset_parameters is named."""

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    (problem,) = problems_of(nn.Sequential(Bare()), {"**": init.torch_default()})
    assert problem.startswith("0.scale: torch_default runs the owner's reset_parameters")
    assert "Bare has none" in problem


def test_kept_parameters_on_the_meta_device_are_refused():
    """There is nothing to keep."""
    with torch.device("meta"):
        net = make_net()
    (problem,) = problems_of(net, {"**": init.keep()})
    assert "keep has nothing to keep on the meta device" in problem


def test_the_last_rule_wins_on_a_tie_under_any_of_its_names():
    """One row for the tie; the overridden rule is marked with the name under which it matched."""
    net = Tied()
    net.head.register_parameter("bias", nn.Parameter(torch.zeros(10)))
    plan = init.plan(net, [("head.*", init.ones()), ("embed.weight", init.zeros())])
    row = plan["head.weight"]
    assert (row.name, row.aliases, row.rule) == ("embed.weight", ("head.weight",), "embed.weight")
    assert row.overridden == (("head.*", ("head.weight",)),)
    assert "overrides 'head.*' (as head.weight)" in str(plan)
    assert "tied to head.weight" in str(plan)


def test_a_beaten_rule_on_a_tie_is_an_error_when_it_wins_nothing_else():
    """A rule for an alias that a later rule for the owner beats is a rule that never wins."""
    (problem,) = problems_of(Tied(), [("head.weight", init.ones()), ("embed.weight", init.zeros())])
    assert "'head.weight' never wins: later rules claim all that it matches ('embed.weight')" in problem


def test_buffers_are_left_alone_unless_named():
    """`**` takes parameters only; `:buffer` in the expression takes buffers."""
    net = make_net()
    net[1].running_mean.fill_(3)
    tk.initialize(net, {"**": init.zeros()})
    assert (net[1].running_mean == 3).all()
    plan = tk.initialize(net, {"**": init.zeros(), ":buffer & **.running_mean": init.constant(5)})
    assert (net[1].running_mean == 5).all()
    assert int(net[1].num_batches_tracked) == 0
    assert "1.running_mean" in [row.name for row in plan]


def test_a_rule_for_buffers_that_does_not_say_so_is_refused():
    """Naming a buffer without `:buffer` is told, not ignored."""
    (problem,) = problems_of(make_net(), {"**": init.zeros(), "1.running_mean": init.ones()})
    assert "'1.running_mean' matches none of the parameters" in problem


def test_memory_that_can_not_be_written_element_by_element_is_refused():
    """Expanded and overlapping parameters, sparse ones, and ones made in inference mode; keeping them is fine."""

    def net_with(**parameters):
        net = nn.Module()
        for name, value in parameters.items():
            net.register_parameter(name, nn.Parameter(value, requires_grad=False))
        return net

    base = torch.zeros(6)
    with torch.inference_mode():
        inferred = torch.zeros(3)
    for net, sentence in [
        (net_with(w=torch.zeros(1).expand(5)), "w: expanded, so that several elements are one"),
        (net_with(a=base[:4], b=base[2:]), "'a', 'b' overlap in memory without being ties"),
        (net_with(w=torch.eye(3).to_sparse()), "w: sparse_coo tensors can't be filled"),
        (net_with(w=inferred), "w: made in inference mode"),
    ]:
        (problem,) = problems_of(net, {"**": init.ones()})
        assert sentence in problem
        assert len(init.plan(net, {"**": init.keep()})) >= 1


def test_what_is_no_module_is_refused():
    """A state_dict can't be initialised."""
    with pytest.raises(tk.errors.SourceError, match=r"expected a torch\.nn\.Module"):
        init.plan({"w": torch.zeros(2)}, {"**": init.zeros()})


def test_asking_a_plan_for_what_it_does_not_have():
    """A wrong name names the nearest; a kept tensor has no values to draw; an index that is none is refused."""
    plan = init.plan(make_net(), {"**": init.zeros(), "2.*": init.keep()})
    with pytest.raises(tk.errors.NoMatchError, match=r"no tensor '0\.wieght'; did you mean `0\.weight`"):
        plan.values("0.wieght")
    with pytest.raises(KeyError):
        plan["nothing like it"]
    with pytest.raises(tk.errors.RuleError, match=r"'2\.weight' is kept as it is by the rule '2\.\*'"):
        plan.values("2.weight")
    for index in ([0, 1], torch.tensor([0]), True, "0", (0, [1])):
        with pytest.raises(TypeError, match="an index holds whole numbers, slices"):
            plan.values("0.weight", index)
    with pytest.raises(IndexError):
        plan.values("0.weight", 100)


def test_values_are_found_under_an_alias_too():
    """Any name of a tie gives the values that its owner's key gives."""
    plan = init.plan(Tied(), {"**": init.normal()})
    assert torch.equal(plan.values("head.weight"), plan.values("embed.weight"))
    assert plan["head.weight"] == plan["embed.weight"]


def test_a_plan_reads_well():
    """Blocks fold, columns say all that is asked for, a line sums up; HTML escapes what comes from the model."""
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
    plan = init.plan(net, {"**.weight": init.kaiming_normal(nonlinearity="relu"), "**.bias": init.keep()}, seed=5)
    head, weights, biases, _, summary = str(plan).splitlines()
    assert head.split() == ["name", "count", "shape", "initializer", "fan_in", "fan_out", "std", "rule"]
    assert weights.split() == [
        "[0:12].weight",
        "x12",
        "4x4",
        "kaiming_normal(nonlinearity='relu')",
        "4",
        "4",
        "0.707",
        "**.weight",
    ]
    assert biases.split() == ["[0:12].bias", "x12", "4", "keep()", "**.bias"]
    assert summary == "12 tensors to fill, 12 kept as they are, seed 5"
    assert repr(plan) == "<InitPlan: 12 tensors to fill, 12 kept as they are, seed 5>"
    odd = nn.ModuleDict({"<b>": nn.Linear(1, 1)})
    page = init.plan(odd, {"**": init.keep()})._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_a_model_that_changed_is_planned_again_when_nothing_is_different():
    """Moved to another dtype, or with new Parameter objects of the same names and shapes: it still applies."""
    net = make_net()
    plan = init.plan(net, {"**": init.normal()})
    net.double()
    net[0].weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
    plan.apply()
    assert torch.equal(net[0].weight, init.plan(net, {"**": init.normal()}).values("0.weight"))


def test_a_model_that_is_another_by_now_is_refused():
    """A changed shape, a layer more, a tie: the plan no longer says what would happen."""
    rules = {"**": init.normal()}
    changes = {
        "shape": lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(9, 9))),
        "one more layer": lambda net: net.append(nn.Linear(2, 2)),
        "one parameter less": lambda net: setattr(net[2], "bias", None),
        "another layer in its place": lambda net: net.insert(2, nn.Linear(8, 8)),
        "a tie": lambda net: net[2].register_parameter("extra", net[0].weight),
    }
    for change in changes.values():
        net = make_net()
        plan = init.plan(net, rules)
        change(net)
        with pytest.raises(tk.errors.RuleError, match="the model has changed since it was planned"):
            plan.apply()


def test_a_layer_that_was_replaced_is_filled_in_its_place():
    """The plan fills the model as it is, not a layer that is no longer in it."""
    net = make_net()
    plan = init.plan(net, {"**": init.ones()})
    old, net[0] = net[0], nn.Linear(6, 8)
    before = old.weight.clone()
    plan.apply()
    assert (net[0].weight == 1).all()
    assert torch.equal(old.weight, before)
