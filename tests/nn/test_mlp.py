"""MLP: order of the parts, names, arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.errors import BlockError
from torchkeep.nn import MLP


def test_it_computes_linear_norm_activation_dropout():
    """Against the same written out by hand; the last layer is linear alone."""
    block = MLP([3, 5, 4, 2], "tanh", "layer").eval()
    x = torch.rand(6, 3)
    y = x
    for layer in block[:2]:
        y = y @ layer.linear.weight.T + layer.linear.bias
        y = torch.tanh(nn.functional.layer_norm(y, y.shape[-1:]))
    y = y @ block[2].linear.weight.T + block[2].linear.bias
    assert torch.allclose(block(x), y, atol=1e-6)


def test_dropout_drops_in_training_only():
    """With probability 1 everything but the last bias is gone, and in eval mode nothing is."""
    block = MLP([3, 5, 2], dropout=1.0)
    x = torch.rand(4, 3)
    assert torch.equal(block(x), block[1].linear.bias.expand(4, 2))
    assert not torch.equal(block.eval()(x), block[1].linear.bias.expand(4, 2))


def test_names_do_not_depend_on_the_options():
    """Adding norm or dropout renames no weight, so an old state_dict's linear layers still fit."""
    plain, rich = MLP([3, 5, 2]), MLP([3, 5, 2], norm="rms", dropout=0.1, activate_last=True)
    assert list(plain.state_dict()) == ["0.linear.weight", "0.linear.bias", "1.linear.weight", "1.linear.bias"]
    assert set(plain.state_dict()) < set(rich.state_dict())
    assert rich.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        ("gelu", nn.GELU),
        (nn.SiLU, nn.SiLU),
        (lambda: nn.LeakyReLU(0.2), nn.LeakyReLU),
        (None, type(None)),
        ("prelu", nn.PReLU),
    ],
)
def test_activations_by_name_class_or_function(activation, kind):
    """Each layer gets one of its own, the last none unless asked."""
    block = MLP([3, 4, 4, 2], activation)
    made = [getattr(layer, "activation", None) for layer in block]
    assert [type(one) for one in made] == [kind, kind, type(None)]
    assert made[0] is None or made[0] is not made[1]


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("layer", nn.LayerNorm), ("rms", nn.RMSNorm), ("batch", nn.BatchNorm1d), (nn.LayerNorm, nn.LayerNorm)],
)
def test_norms_have_the_layers_width(norm, kind):
    """They are made for the number of features that the linear layer before them has."""
    block = MLP([3, 4, 5, 2], norm=norm)
    assert [type(layer.norm) for layer in block[:2]] == [kind, kind]
    assert [layer.norm.weight.numel() for layer in block[:2]] == [4, 5]


def test_activate_last_and_no_bias():
    """The last layer gets all the parts, and no linear layer a bias."""
    block = MLP([3, 2], norm="layer", bias=False, activate_last=True)
    assert [name for name, _ in block[0].named_children()] == ["linear", "norm", "activation"]
    assert block[0].linear.bias is None
    assert block(torch.rand(5, 3)).min() >= 0


def test_a_slice_is_a_plain_sequential():
    """The first layers can be taken out, with their names and the same parameters."""
    block = MLP([3, 5, 4, 2])
    part = block[:2]
    assert type(part) is nn.Sequential
    assert part[1].linear.weight is block[1].linear.weight
    assert part(torch.rand(1, 3)).shape == (1, 4)
    assert type(block[0]) is nn.Sequential


def test_parts_are_made_on_the_device_and_in_the_dtype_asked_for():
    """Also those that a user's function makes without being told."""
    block = MLP([3, 4, 2], "prelu", lambda width: nn.LayerNorm(width), device="meta", dtype=torch.float64)  # noqa: PLW0108 - a function, not a class
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.float64)}
    assert len(list(block.parameters())) == 2 * 2 + 2 + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"sizes": [3]}, r"an input's and an output's.*found \[3\]"),
        ({"sizes": 3}, r"sizes must be a list of numbers.*found 3"),
        ({"sizes": "34"}, r"sizes must be a list of numbers.*found '34'"),
        ({"sizes": [3, 0]}, "each size must be a whole number of at least 1, found 0"),
        ({"sizes": [3, 2.5]}, r"each size must be a whole number of at least 1, found 2\.5"),
        ({"sizes": [3, True]}, "each size must be a whole number of at least 1, found True"),
        ({"activation": "rellu"}, "activation must be one of relu, .* found 'rellu'"),
        ({"activation": nn.ReLU()}, "activation is called for each layer, so give a class"),
        ({"activation": 3}, "activation must be a name, a class, .* found 3"),
        ({"activation": lambda: 3}, r"what activation and norm make must be a torch\.nn\.Module, found int"),
        ({"dropout": "half"}, "dropout must be a probability between 0 and 1, found 'half'"),
        ({"norm": "group"}, "norm must be one of layer, rms, batch, .* found 'group'"),
        ({"dropout": 1.5}, r"dropout must be a probability between 0 and 1, found 1\.5"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    """Each is named, with what was expected and what was found."""
    with pytest.raises(BlockError, match=sentence):
        MLP(**{"sizes": [3, 4, 2], **arguments})


def test_a_wrong_input():
    """The sentence is the block's, not that of the layer inside."""
    with pytest.raises(BlockError, match=r"MLP: expected an input of shape \(\*, 3\), found \(2, 4\)"):
        MLP([3, 2])(torch.rand(2, 4))
    with pytest.raises(BlockError, match=r"found \(\)"):
        MLP([3, 2])(torch.rand(()))


def test_batch_norm_takes_nothing_for_features_that_is_none():
    """BatchNorm1d would normalise over the length of a sequence as long as a layer is wide; that is an error."""
    mlp = MLP([8, 4, 2], norm="batch")
    assert mlp(torch.rand(5, 8)).shape == (5, 2)
    with pytest.raises(BlockError, match=r"expected an input of shape \(batch, 8\), found \(5, 4, 8\)"):
        mlp(torch.rand(5, 4, 8))
    assert MLP([8, 2], norm="batch")(torch.rand(5, 4, 8)).shape == (5, 4, 2)
