"""A load plan: what goes where, what does not fit, what may mend it, in few lines."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from torchkeep.errors import LoadError


def net(blocks=4):
    torch.manual_seed(0)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(blocks)])
    model.head = nn.Linear(2, 2)
    return model


def state(blocks=4, rename=lambda name: name):
    return {rename(name): tensor for name, tensor in net(blocks).state_dict().items()}


def test_a_plan_touches_nothing_and_folds_repeated_blocks():
    """The plan names all matches, in lines that paste back as selectors."""
    model = net(12)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    plan = tk.plan_load(model, {name: tensor + 1 for name, tensor in state(12).items()})
    assert plan.ok
    assert plan.problems == ()
    assert len(plan.matched) == 50
    assert "matched (50)" in str(plan)
    assert "blocks[0:12][0:2].weight" in str(plan).replace(".[", "[") or "blocks[0:12].0.weight" in str(plan)
    assert str(plan).count("\n") < 10
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    plan.raise_for_problems()


def test_problems_are_told_one_by_one_and_folded_in_the_text():
    """``problems`` has a sentence for each tensor; the error's text folds them."""
    plan = tk.plan_load(net(12), state(6))
    assert not plan.ok
    assert len(plan.problems) == 24
    assert len(plan.missing) == 24
    with pytest.raises(LoadError) as caught:
        plan.raise_for_problems()
    assert caught.value.problems == plan.problems
    assert "blocks[6:12]" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10
    assert pickle.loads(pickle.dumps(caught.value)).problems == plan.problems


def test_renamed_sources_are_matched_by_pattern():
    """A rename with a wildcard moves every block; the plan shows where each comes from, folded."""
    source = state(rename=lambda name: name.replace("blocks.", "encoder.layer."))
    plan = tk.plan_load(net(), source, rename={"encoder.layer.*.": "blocks.*."})
    assert plan.ok
    assert plan.matched[0].source == "encoder.layer.0.0.weight"
    assert "<- encoder.layer[0:4]" in str(plan)


def test_a_permutation_of_blocks_is_not_folded_into_one_line():
    """Blocks that change places are told as such; a source in another order is nothing else than itself."""
    swapped = tk.plan_load(
        net(), state(), rename=[("blocks[0:2].", "blocks[2:4]."), ("blocks[2:4].", "blocks[0:2].")]
    )
    assert "blocks[0:2][0:2].weight (4 tensors) <- blocks[2:4][0:2].weight" in str(swapped)
    assert "blocks[2:4][0:2].weight (4 tensors) <- blocks[0:2][0:2].weight" in str(swapped)
    turned = tk.plan_load(net(), state(), rename={f"blocks.{one}.": f"blocks.{3 - one}." for one in range(4)})
    assert "blocks.3[0:2].weight (2 tensors) <- blocks.0[0:2].weight" in str(turned)
    source = dict(sorted(state(12, lambda name: name.replace("blocks.", "layers.")).items()))
    moved = tk.plan_load(net(12), source, rename={"layers.": "blocks."})
    assert "blocks[0:12][0:2].weight (24 tensors) <- layers[0:12][0:2].weight" in str(moved)


@pytest.mark.parametrize(
    ("change", "rename"),
    [
        (lambda name: f"module.{name}", {"module.": ""}),
        (lambda name: f"_orig_mod.{name}", {"_orig_mod.": ""}),
        (lambda name: f"model.backbone.{name}", {"model.backbone.": ""}),
        (lambda name: name.removeprefix("blocks."), {"": "blocks."}),
        (lambda name: name.replace("blocks.", "blocks._orig_mod."), {"**._orig_mod.**": "**.**"}),
    ],
)
def test_the_rename_that_would_mend_it_is_suggested_and_does(change, rename):
    """A systematic prefix is recognised; the suggested rename, pasted, makes the plan fit better."""
    model, source = net(), state(rename=change)
    if "" in rename:
        del model.head
        source = {name: tensor for name, tensor in source.items() if not name.startswith("head")}
    plan = tk.plan_load(model, source)
    assert f"rename={rename!r}" in str(plan)
    with pytest.raises(LoadError, match="try rename="):
        plan.raise_for_problems()
    assert tk.plan_load(model, source, rename=rename).ok


def test_a_checkpoint_with_other_things_beside_the_model_suggests_its_prefix(tmp_path):
    """A nested training checkpoint of ours has the model's names below a key."""
    model = net()
    tk.save({"model": model.state_dict(), "step": 3, "best": torch.ones(1)}, tmp_path / "file")
    plan = tk.plan_load(model, tmp_path / "file")
    assert "rename={'model.': ''}, and unexpected='ignore' to leave out what it holds besides (1)" in str(plan)
    plan = tk.plan_load(model, tmp_path / "file", rename={"model.": ""}, unexpected="ignore")
    assert plan.ok
    assert plan.unexpected == ("best",)
    assert "ignored" in str(plan)


def test_the_nearest_name_is_offered_for_a_missing_one():
    """A typo in one name is shown beside the name that was meant."""
    source = state(rename=lambda name: name.replace("head.weight", "haed.weight"))
    with pytest.raises(LoadError, match=r"head\.weight did you mean `haed\.weight`"):
        tk.load_into(net(), source)


def test_a_rename_that_matches_nothing_is_a_problem():
    """Silence is never success: an unused rename is told, with the nearest name."""
    plan = tk.plan_load(net(), state(), rename={"heads.weight": "head.weight"})
    assert not plan.ok
    assert "'heads.weight' matches no name" in plan.problems[0]
    assert "head.weight" in plan.problems[0]


def test_two_sources_for_one_target_are_a_problem():
    """A rename that gives two tensors one name does not choose between them."""
    source = state() | {"old.weight": torch.ones(2, 2)}
    plan = tk.plan_load(net(), source, rename={"old.*": "head.*"})
    assert any("'head.weight' and 'old.weight'" in problem for problem in plan.problems)
    assert "tied" not in str(plan)


def test_a_parametrized_target_says_what_to_do():
    """A plain weight does not fit a weight that is computed from others; the hint says how to get there."""
    model = net()
    parametrizations.weight_norm(model.head)
    plan = tk.plan_load(model, state())
    assert not plan.ok
    assert any("'head.weight'" in hint and "parametrized" in hint for hint in plan.hints)
    assert tk.plan_load(model, model.state_dict()).ok


def test_a_non_persistent_target_says_so():
    """What a file has for a buffer that is no part of the state is unexpected, and the hint says why."""
    model = net()
    model.register_buffer("scratch", torch.ones(1), persistent=False)
    plan = tk.plan_load(model, state() | {"scratch": torch.ones(1)})
    assert plan.unexpected == ("scratch",)
    assert any("non-persistent" in hint for hint in plan.hints)


def test_the_last_rename_that_matches_wins():
    """As with all rules, a later one overrides an earlier one; pairs do as well as a mapping."""
    source = state(rename=lambda name: f"module.{name}")
    source["module.top.weight"] = source.pop("module.head.weight")
    plan = tk.plan_load(net(), source, rename=[("module.", ""), ("module.top.", "head.")])
    assert plan.ok


def test_a_plan_of_many_tensors_is_quick_to_tell():
    """20,000 names that all miss their prefix give a short text."""
    model = nn.Module()
    for index in range(200):
        block = nn.Module()
        for part in range(100):
            block.register_buffer(f"b{part}", torch.ones(1))
        model.add_module(str(index), block)
    source = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    plan = tk.plan_load(model, source)
    assert len(plan.problems) == 40_000
    assert len(str(plan).splitlines()) < 80
    assert "rename={'module.': ''}" in str(plan)
