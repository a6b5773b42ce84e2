"""Residual, Parallel and Repeat: blocks made of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchkeep.errors import BlockError
from torchkeep.nn import MLP, FixedLinear, Parallel, Pick, Repeat, Residual


class Masked(nn.Module):
    """Multiplies by a mask and a factor, to see that further arguments arrive."""

    def forward(self, x, mask, *, factor=1.0):
        return x * mask * factor


class WithoutReset(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3))


def test_residual_adds_its_input():
    """The sum of both, exactly."""
    inner, x = nn.Linear(3, 3), torch.rand(2, 3)
    assert torch.equal(Residual(inner)(x), x + inner(x))


def test_residual_with_a_shortcut():
    """shortcut(x) + inner(x), exactly."""
    inner, shortcut, x = nn.Linear(3, 5), nn.Linear(3, 5), torch.rand(2, 3)
    assert torch.equal(Residual(inner, shortcut)(x), shortcut(x) + inner(x))


def test_residual_never_broadcasts():
    """A shape that would be stretched in silence is refused, with both shapes."""
    with pytest.raises(BlockError, match=r"the shape of its input, \(2, 3\), found \(2, 1\)"):
        Residual(nn.Linear(3, 1))(torch.rand(2, 3))
    with pytest.raises(BlockError, match=r"what the shortcut returns, \(2, 3\), found \(2, 1\)"):
        Residual(nn.Linear(3, 1), nn.Identity())(torch.rand(2, 3))


def test_residual_around_attention():
    """What returns a tuple is refused with what helps; keyword arguments go to the inner block."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.rand(1, 3, 4)
    with pytest.raises(BlockError, match=r"what inner returns must be a tensor, found tuple; tk\.nn\.Pick"):
        Residual(attention)(x, x, x)
    assert torch.equal(Residual(Masked())(x, torch.zeros(3, 4), factor=2.0), x)


def test_parallel_sums():
    """The sum of three branches, exactly in order."""
    branches, x = [nn.Linear(3, 2) for _ in range(3)], torch.rand(4, 3)
    expected = branches[0](x) + branches[1](x) + branches[2](x)
    assert torch.equal(Parallel(branches)(x), expected)


def test_parallel_concatenates_along_any_dimension():
    """Sizes along it add up; branches by name are in their order."""
    branches, x = {"wide": nn.Linear(3, 5), "narrow": nn.Linear(3, 2)}, torch.rand(4, 3)
    block = Parallel(branches, "concatenate")
    assert torch.equal(block(x), torch.cat([branches["wide"](x), branches["narrow"](x)], dim=-1))
    assert next(iter(block.state_dict())) == "branches.wide.weight"
    assert Parallel([nn.Identity(), nn.Identity()], "concatenate", dim=0)(x).shape == (8, 3)


def test_parallel_combines_by_a_function_or_a_module():
    """The function gets the list of what the branches returned, tensors or not; a module is part of the block."""
    x = torch.rand(2, 3)
    assert torch.equal(Parallel([nn.Identity(), nn.Identity()], torch.stack)(x), torch.stack([x, x]))
    assert Parallel([nn.GRU(3, 4), nn.GRU(3, 4)], len)(x) == 2

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, outputs):
            return self.gain * torch.stack(outputs).mean(0)

    block = Parallel([nn.Identity(), nn.Identity()], Mean())
    assert torch.equal(block(x), x)
    assert [name for name, _ in block.named_parameters()] == ["combine.gain"]


def test_parallel_passes_every_argument_to_every_branch():
    """Masks and keywords arrive in each."""
    x = torch.rand(2, 3)
    assert torch.equal(Parallel([Masked(), Masked()])(x, torch.ones(3), factor=3.0), x * 3 + x * 3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Parallel([]), "at least one module, found none"),
        (lambda: Parallel(nn.Linear(2, 2)), "a list or a mapping of modules, found one Linear"),
        (lambda: Parallel([nn.Linear]), r"branch 0 must be a module, found the class Linear; call it"),
        (lambda: Parallel({"a": 3}), r"branch a must be a torch\.nn\.Module, found int"),
        (lambda: Parallel([nn.ReLU()], "mean"), "combine must be sum, concatenate or a function, found 'mean'"),
        (lambda: Parallel([nn.ReLU()], None), "combine must be sum, concatenate or a function, found None"),
        (lambda: Parallel([nn.ReLU()], "concatenate", dim=None), "dim must be a whole number, found None"),
        (lambda: Residual(torch.relu), r"inner must be a torch\.nn\.Module, found builtin_function_or_method"),
        (lambda: Residual(nn.ReLU(), 3), r"shortcut must be a torch\.nn\.Module, found int"),
        (lambda: Repeat(nn.ReLU(), 0), "times must be a whole number of at least 1, found 0"),
        (lambda: Repeat(3, 2), "block must be a module or a function that makes one, found 3"),
        (lambda: Repeat(lambda: 3, 2), r"what block makes must be a torch\.nn\.Module, found int"),
        (lambda: Repeat(WithoutReset(), 2), "WithoutReset owns parameters and has no reset_parameters"),
        (lambda: Repeat(nn.Sequential(WithoutReset()), 2), r"'0' \(WithoutReset\) owns parameters"),
        (lambda: Repeat(parametrizations.weight_norm(nn.Linear(2, 2)), 2), "Linear is parametrised"),
    ],
)
def test_wrong_arguments(make, sentence):
    """Each is named, with what was expected and what was found."""
    with pytest.raises(BlockError, match=sentence):
        make()


def test_parallel_refuses_what_cannot_be_combined():
    """All shapes are in the sentence, and nothing is broadcast."""
    x = torch.rand(2, 3)
    with pytest.raises(BlockError, match=r"differs in shape: \(2, 1\), \(2, 2\)"):
        Parallel([nn.Linear(3, 1), nn.Linear(3, 2)])(x)
    with pytest.raises(BlockError, match=r"along dimension 0 .* other dimensions too: \(2, 1\), \(2, 2\)"):
        Parallel([nn.Linear(3, 1), nn.Linear(3, 2)], "concatenate", dim=0)(x)
    with pytest.raises(BlockError, match=r"an input with dimension 2, found shape \(2, 3\)"):
        Parallel([nn.Identity()], "concatenate", dim=2)(x)
    with pytest.raises(BlockError, match="what a branch returns must be a tensor, found tuple"):
        Parallel([nn.GRU(3, 4)])(x)


def test_repeat_applies_its_blocks_in_turn():
    """Three copies one after the other."""
    block, x = Repeat(nn.Linear(3, 3), 3), torch.rand(2, 3)
    assert torch.equal(block(x), block[2](block[1](block[0](x))))
    assert [name for name, _ in block.named_parameters()] == [
        f"{i}.{key}" for i in range(3) for key in ("weight", "bias")
    ]


def test_repeat_keeps_the_given_module_and_initialises_copies_afresh():
    """Block 0 is the module itself, values and all; the copies differ from it and from each other."""
    inner = MLP([3, 4, 3], norm="layer")
    before = inner[0].linear.weight.clone()
    block = Repeat(inner, 3)
    assert block[0] is inner
    assert torch.equal(inner[0].linear.weight, before)
    weights = [one[0].linear.weight for one in block]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(torch.equal(one[0].norm.weight, torch.ones(4)) for one in block)


def test_repeat_resets_running_statistics_and_attention():
    """A copy of a used BatchNorm starts afresh; attention, whose reset has another name, is drawn anew."""
    norm = nn.BatchNorm1d(3)
    norm(torch.rand(8, 3))
    block = Repeat(norm, 2)
    assert (block[0].num_batches_tracked.item(), block[1].num_batches_tracked.item()) == (1, 0)
    heads = Repeat(nn.MultiheadAttention(4, 2), 2)
    assert not torch.equal(heads[0].in_proj_weight, heads[1].in_proj_weight)
    # Attention zeroes its inner layer's bias, which that layer's own reset does not: the outer one comes last.
    assert torch.equal(heads[1].out_proj.bias, torch.zeros(4))


def test_repeat_with_a_function_calls_it_for_each():
    """What can't be reset can be made; a class is such a function."""
    made = Repeat(lambda: nn.Sequential(WithoutReset()), 3)
    assert len({id(one[0].weight) for one in made}) == 3
    assert len(Repeat(nn.ReLU, 2)) == 2


def test_repeat_shared_is_one_layer_under_every_name():
    """One module: parameters once, gradients of all uses added, a tie in the state_dict."""
    inner, x = nn.Linear(3, 3), torch.rand(2, 3)
    block = Repeat(inner, 3, shared=True)
    assert block[0] is block[1] is block[2] is inner
    assert torch.equal(block(x), inner(inner(inner(x))))
    assert len(list(block.parameters())) == 2
    assert len(block.state_dict()) == 6
    assert Repeat(lambda: nn.Linear(3, 3), 2, shared=True)[1].weight.shape == (3, 3)


def test_repeat_passes_further_arguments_to_every_block():
    """A mask goes to each."""
    x = torch.rand(2, 3)
    assert torch.equal(Repeat(Masked(), 2)(x, torch.full((3,), 2.0), factor=0.5), x)


def test_repeat_copies_keep_ties_inside_a_block():
    """A block that ties two of its layers ties them in each copy, and to no other copy."""
    inner = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    inner["b"].weight = inner["a"].weight
    block = Repeat(inner, 2)
    assert block[1]["a"].weight is block[1]["b"].weight
    assert block[1]["a"].weight is not block[0]["a"].weight


def test_repeat_slices_are_plain_sequentials():
    """Part of a stack can be taken out."""
    block = Repeat(nn.Linear(3, 3), 4)
    assert [name for name, _ in block[1:3].named_children()] == ["1", "2"]
    assert type(block[1:3]) is nn.Sequential


def test_fixed_layers_keep_their_seed_in_copies():
    """What is constant by its seed is the same in each copy, as its own documentation says."""
    block = Repeat(FixedLinear(3, 3, seed=5), 2)
    assert torch.equal(block[0].weight, block[1].weight)


def test_pick_takes_items_of_any_depth():
    """Positions of tuples and lists, keys of dicts, one for each level."""
    value = ({"a": [1, 2]}, 3)
    assert Pick(1)(value) == 3
    assert Pick(0, "a", -1)(value) == 2
    net = nn.Sequential(nn.LSTM(3, 4, batch_first=True), Pick(1, 0), nn.Linear(4, 2))
    assert net(torch.rand(2, 5, 3)).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        ((2,), (1, 2), "there is no 2 in the tuple, which holds 2 items"),
        (("b",), {"a": 1}, r"there is no 'b' in the dict, which holds \['a'\]"),
        (("a",), [1], "there is no 'a' in the list, which holds 1 items"),
        ((0,), 3, "expected a tuple, list or dict to take 0 from, found int"),
    ],
)
def test_pick_says_what_there_is(keys, value, sentence):
    """A missing item is named with what could be taken."""
    with pytest.raises(BlockError, match=sentence):
        Pick(*keys)(value)


@pytest.mark.parametrize("keys", [(), (1.5,), (True,)])
def test_pick_needs_keys(keys):
    """Without a key there is nothing to take."""
    with pytest.raises(BlockError, match="give a position or a key"):
        Pick(*keys)
