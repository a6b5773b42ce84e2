"""Centering, FixedLinear, Scale and Permute: layers that compute by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.errors import BlockError
from torchkeep.nn import Centering, FixedLinear, Permute, Scale

GOLDEN = [[-0.7274224081095911, 0.3805329309847134], [-0.23027042672731915, -0.3116914836205355]]


def test_centering_takes_the_mean_of_the_features():
    """By default of the last dimension, for each sample by itself."""
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 60.0]])
    assert torch.equal(Centering()(x), torch.tensor([[-1.0, 0.0, 1.0], [-20.0, -10.0, 30.0]]))


def test_centering_never_mixes_samples_by_default():
    """A sample's output does not depend on what else is in the batch."""
    x = torch.rand(5, 4, 3)
    assert torch.equal(Centering()(x)[:2], Centering()(x[:2]))


@pytest.mark.parametrize("dims", [0, 1, -2, (1, 2), [0, 1, 2], (-1, 0)])
def test_centering_over_named_dimensions(dims):
    """The mean over exactly those is zero afterwards, and the others are untouched."""
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    found = Centering(dims)(x)
    over = tuple(dims) if isinstance(dims, (tuple, list)) else (dims,)
    assert found.mean(over).abs().max() < 1e-15
    assert torch.allclose(x - found, (x - found).mean(over, keepdim=True).expand_as(x))


def test_centering_of_one_sample_and_of_complex_numbers():
    """A vector is one sample; complex numbers have a mean as well."""
    assert torch.equal(Centering()(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]))
    assert torch.equal(Centering()(torch.tensor([1j, 3j])), torch.tensor([-1j, 1j]))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda: Centering("x"), "dims must be a whole number, found 'x'"),
        (lambda: Centering(()), "at least one dimension, found none"),
        (lambda: Centering((1, 1)), r"each dimension once, found \[1, 1\]"),
        (lambda: Centering(2)(torch.rand(2, 2)), r"an input with dimension 2, found shape \(2, 2\)"),
        (lambda: Centering()(torch.rand(())), r"an input with dimension -1, found shape \(\)"),
        (lambda: Centering()(torch.arange(3)), r"expected floating point or complex numbers, found torch\.int64"),
        (lambda: Centering((0, -2))(torch.rand(2, 2)), r"dimensions \(0, -2\) are not distinct.*\(2, 2\)"),
    ],
)
def test_centering_says_what_is_wrong(use, sentence):
    """Dimensions and numbers that have no mean."""
    with pytest.raises(BlockError, match=sentence):
        use()


def test_fixed_linear_multiplies_by_its_weight():
    """The product with the transposed weight, which is a persistent buffer and no parameter."""
    layer, x = FixedLinear(3, 4), torch.rand(2, 3)
    assert torch.allclose(layer(x), x @ layer.weight.T)
    assert list(layer.state_dict()) == ["weight"]
    assert list(layer.parameters()) == []
    assert not layer(x).requires_grad


def test_fixed_linear_is_a_function_of_its_seed_and_sizes():
    """Equal arguments, equal bits; another seed, others. The global generator plays no part and is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = FixedLinear(30, 40, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(one.weight, FixedLinear(30, 40, seed=3).weight)
    others = [FixedLinear(30, 40, seed=seed).weight for seed in (-3, 4, 3 + 2**32, 2**200)]
    assert not any(torch.equal(one.weight, other) for other in others)
    assert not torch.equal(one.weight.flatten(), FixedLinear(40, 30, seed=3).weight.flatten())


def test_fixed_linear_golden_values():
    """The scheme does not change by accident: a saved model's recipe would give another net."""
    found = FixedLinear(2, 2, seed=0, dtype=torch.float64).weight
    expected = torch.tensor(GOLDEN, dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_fixed_linear_keeps_the_size_of_what_it_projects():
    """Normal values with variance 1 / in_features."""
    weight = FixedLinear(400, 500, seed=7).weight
    assert abs(weight.mean()) < 5 / (400 * 200_000) ** 0.5
    assert weight.std().item() == pytest.approx(0.05, rel=0.01)
    x = torch.randn(10, 400, generator=torch.Generator().manual_seed(0))
    assert (FixedLinear(400, 500)(x).pow(2).mean() / x.pow(2).mean()).item() == pytest.approx(1, rel=0.1)


def test_fixed_linear_is_rebuilt_after_the_meta_device():
    """reset_parameters gives the same weight again, so nothing is lost on meta."""
    layer = FixedLinear(3, 4, seed=9, device="meta")
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.weight, FixedLinear(3, 4, seed=9).weight)


def test_fixed_linear_rounds_one_draw():
    """Lower precision is the float32 weight rounded; a default device of the caller's is no obstacle."""
    whole = FixedLinear(3, 4).weight
    assert torch.equal(FixedLinear(3, 4, dtype=torch.bfloat16).weight, whole.bfloat16())
    with torch.device("meta"):
        assert torch.equal(FixedLinear(3, 4, device="cpu").weight, whole)
        assert FixedLinear(3, 4).weight.is_meta


def test_fixed_linear_loads_what_was_saved():
    """Its weight comes from the file, whatever its seed."""
    one, other = FixedLinear(3, 4, seed=1), FixedLinear(3, 4, seed=2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda: FixedLinear(0, 4), "in_features must be a whole number of at least 1, found 0"),
        (lambda: FixedLinear(3, 4, seed=1.5), r"seed must be a whole number, found 1\.5"),
        (lambda: FixedLinear(3, 4, dtype=torch.int32), r"dtype must be a floating point one, found torch\.int32"),
        (lambda: FixedLinear(3, 4)(torch.rand(4)), r"expected an input of shape \(\*, 3\), found \(4,\)"),
    ],
)
def test_fixed_linear_says_what_is_wrong(use, sentence):
    """Sizes, seeds, dtypes and inputs."""
    with pytest.raises(BlockError, match=sentence):
        use()


def test_scale_multiplies_each_feature():
    """By its own factor; at first all are the initial one."""
    layer = Scale(3, 0.5)
    x = torch.rand(2, 3)
    assert torch.equal(layer(x), x * 0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(layer(x), x * torch.tensor([1.0, 2.0, 3.0]))
    layer.reset_parameters()
    assert layer.weight.tolist() == [0.5] * 3
    with pytest.raises(BlockError, match=r"Scale: expected an input of shape \(\*, 3\), found \(2, 1\)"):
        layer(torch.rand(2, 1))


def test_permute_lets_convolutions_and_recurrence_meet():
    """The view that Tensor.permute gives."""
    x = torch.rand(2, 5, 3)
    assert torch.equal(Permute(0, 2, 1)(x), x.permute(0, 2, 1))
    assert torch.equal(Permute((0, -1, 1))(x), x.permute(0, 2, 1))
    net = nn.Sequential(Permute(0, 2, 1), nn.Conv1d(3, 4, 1), Permute(0, 2, 1), nn.LayerNorm(4))
    assert net(x).shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda: Permute(), "order must name at least one dimension"),  # noqa: PLW0108 - the call is what is tested
        (lambda: Permute(0, 0), r"each dimension once, found \[0, 0\]"),
        (lambda: Permute(0, 2), r"each of 2 dimensions once, found \[0, 2\]"),
        (lambda: Permute(0, -2), r"each of 2 dimensions once, found \[0, -2\]"),
        (lambda: Permute(0, 1)(torch.rand(1, 2, 3)), r"an input of 2 dimensions, found shape \(1, 2, 3\)"),
    ],
)
def test_permute_says_what_is_wrong(use, sentence):
    """Orders that are none, and inputs of another number of dimensions."""
    with pytest.raises(BlockError, match=sentence):
        use()
