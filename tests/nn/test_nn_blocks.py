"""What every block of tk.nn promises: gradients, state, copies, devices, dtypes, any batch, no mutation."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import torchkeep.nn as tknn
from torchkeep.errors import BlockError
from torchkeep.recipes import build, recipe

CASES = {
    "MLP": (lambda **place: tknn.MLP([3, 5, 5, 2], "gelu", "layer", **place), (3,), (2,)),
    "MLP of one layer": (lambda **place: tknn.MLP([3, 2], **place), (3,), (2,)),
    "Residual": (lambda **place: tknn.Residual(nn.Linear(3, 3, **place)), (3,), (3,)),
    "Residual with a shortcut": (
        lambda **place: tknn.Residual(nn.Linear(3, 2, **place), nn.Linear(3, 2, **place)),
        (3,),
        (2,),
    ),
    "Parallel sum": (
        lambda **place: tknn.Parallel([nn.Linear(3, 2, **place), nn.Linear(3, 2, **place)]),
        (3,),
        (2,),
    ),
    "Parallel concatenate": (
        lambda **place: tknn.Parallel({"a": nn.Linear(3, 2, **place), "b": nn.Identity()}, "concatenate"),
        (3,),
        (5,),
    ),
    "Repeat": (lambda **place: tknn.Repeat(nn.Linear(3, 3, **place), 3), (3,), (3,)),
    "Repeat shared": (lambda **place: tknn.Repeat(nn.Linear(3, 3, **place), 3, shared=True), (3,), (3,)),
    "Centering": (lambda **_: tknn.Centering(), (3,), (3,)),
    "FixedLinear": (lambda **place: tknn.FixedLinear(3, 4, seed=1, **place), (3,), (4,)),
    "Scale": (lambda **place: tknn.Scale(3, 0.5, **place), (3,), (3,)),
    "Permute": (lambda **_: tknn.Permute(0, 2, 1), (2, 3), (3, 2)),
    "Pick": (
        lambda **place: nn.Sequential(nn.LSTM(3, 4, batch_first=True, **place), tknn.Pick(0)),
        (2, 3),
        (2, 4),
    ),
    "nested": (
        lambda **place: nn.Sequential(
            tknn.Repeat(tknn.Residual(tknn.MLP([3, 4, 3], norm="layer", **place)), 2),
            tknn.Parallel([tknn.Centering(), tknn.FixedLinear(3, 3, **place)]),
            nn.Sequential(tknn.Scale(3, **place), nn.Linear(3, 1, **place)),
        ),
        (3,),
        (1,),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def run(block, x):
    return block.eval()(x)


def test_shapes_are_as_documented_for_any_number_of_samples(case):
    """A batch of several, of one, and an empty one."""
    make, inside, outside = case
    for batch in (4, 1, 0):
        assert run(make(), torch.rand(batch, *inside)).shape == (batch, *outside)


@pytest.mark.parametrize("name", [name for name, (_, inside, _) in CASES.items() if len(inside) == 1])
def test_extra_dimensions_are_kept(name):
    """Whatever takes (*, in) takes it with two more dimensions, and with none."""
    make, inside, outside = CASES[name]
    for before in ((), (2, 1, 5)):
        assert run(make(), torch.rand(*before, *inside)).shape == (*before, *outside)


def test_gradients_are_right(case):
    """In float64, with respect to the input and to every parameter."""
    make, inside, _ = case
    block = make(dtype=torch.float64)
    x = torch.rand(2, *inside, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *block.parameters()))


def test_every_parameter_gets_a_gradient(case):
    """Nothing is registered that the output does not depend on."""
    make, inside, _ = case
    block, x = make(), torch.rand(4, *inside, requires_grad=True)
    (block(x) ** 2).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())


def test_the_input_is_left_alone(case):
    """Neither its values nor its version change."""
    make, inside, _ = case
    x = torch.rand(3, *inside)
    before = x.clone()
    run(make(), x)
    assert torch.equal(x, before)
    assert x._version == 0


def test_state_dicts_round_trip(case):
    """Loaded into a block that was made separately, they give the same output."""
    make, inside, _ = case
    one, other = make(), make()
    assert other.load_state_dict(one.state_dict()).missing_keys == []
    x = torch.rand(3, *inside)
    assert torch.equal(run(one, x), run(other, x))


def test_copies_are_equal_and_apart(case):
    """A deep copy and a pickled one compute the same and share no memory."""
    make, inside, _ = case
    block, x = make(), torch.rand(3, *inside)
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(block), torch.load(buffer, weights_only=False)):
        assert torch.equal(run(copied, x), run(block, x))
        for mine, theirs in zip(copied.state_dict().values(), block.state_dict().values(), strict=True):
            assert mine.data_ptr() != theirs.data_ptr()


def test_recipes_rebuild_the_block(case):
    """Through JSON: the same classes, names and arguments; loaded with the same state, the same output."""
    make, inside, _ = case
    block, x = make(), torch.rand(3, *inside)
    again = build(json.loads(recipe(block).to_json()))
    assert str(again) == str(block)
    again.load_state_dict(block.state_dict())
    assert torch.equal(run(again, x), run(block, x))


def test_made_on_the_meta_device(case):
    """All tensors are where and what they were asked to be, and shapes flow."""
    make, inside, outside = case
    block = make(device="meta", dtype=torch.bfloat16)
    assert {(t.device.type, t.dtype) for t in block.state_dict().values()} <= {("meta", torch.bfloat16)}
    assert block(torch.empty(4, *inside, device="meta", dtype=torch.bfloat16)).shape == (4, *outside)


def test_low_precision(case):
    """bfloat16 in, bfloat16 out."""
    make, inside, _ = case
    assert run(make(dtype=torch.bfloat16), torch.rand(2, *inside, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in CASES if name != "Pick"])
def test_vmap(name):
    """Mapping over a dimension is the same as having it; the example of Pick holds an LSTM, which has no vmap."""
    make, inside, _ = CASES[name]
    block = make().eval()
    x = torch.rand(3, 2, *inside)
    expected = torch.stack([block(sample) for sample in x])
    assert torch.allclose(torch.func.vmap(block)(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["Residual", "Parallel sum", "Parallel concatenate", "Centering", "FixedLinear", "nested"]
)
def test_compiled_in_one_graph(name):
    """torch.compile takes the whole block, checks included, without a break, and computes the same."""
    make, inside, _ = CASES[name]
    block, x = make().eval(), torch.rand(3, *inside)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), block(x))


def test_printing_says_how_it_was_made(case):
    """The repr works on every block, also on meta."""
    make, *_ = case
    assert repr(make(device="meta"))


def test_a_net_of_blocks_learns():
    """Blocks inside Sequential, nested in each other, fit a function better than at first."""
    torch.manual_seed(0)
    net = nn.Sequential(
        tknn.Centering(),
        tknn.MLP([4, 16], activate_last=True),
        tknn.Repeat(tknn.Residual(nn.Sequential(tknn.MLP([16, 32, 16], "gelu", "layer"), tknn.Scale(16, 0.1))), 3),
        tknn.Parallel([tknn.MLP([16, 4]), tknn.FixedLinear(16, 4)], "concatenate"),
        nn.Linear(8, 1),
    )
    x = torch.rand(64, 4)
    y = (x[:, :1] * x[:, 1:2]).sin()
    losses = []
    for _ in range(40):
        loss = nn.functional.mse_loss(net(x), y)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.05)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["MLP", "Residual", "Parallel sum", "Repeat", "FixedLinear", "Scale"])
def test_an_input_that_does_not_fit_is_refused_with_both_shapes(name):
    """The sentence holds the shape that came; torch's own layers inside may say it in their way."""
    make, *_ = CASES[name]
    with pytest.raises((BlockError, RuntimeError), match=r"\(2, 7\)|2x7"):
        make()(torch.rand(2, 7))


def test_what_is_no_tensor_is_refused_with_its_type():
    """A block behind one that returns a tuple says so, and what helps."""
    net = nn.Sequential(nn.GRU(3, 3), tknn.Centering())
    with pytest.raises(BlockError, match=r"Centering: its input must be a tensor, found tuple; tk\.nn\.Pick"):
        net(torch.rand(4, 2, 3))
