"""torch.nn's modules: nearly every one that torch's own tests make has a verified recipe."""

from __future__ import annotations

import sys
import types
import unittest
import warnings

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import RecipeError
from torchkeep.recipes.builtin import arguments_of
from torchkeep.recipes.registry import torch_classes

PER_CLASS = 12


def module_infos(monkeypatch):
    """Torch's database of modules for tests; its import wants a package that only torch's own tests use."""
    if "expecttest" not in sys.modules:
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        monkeypatch.setitem(sys.modules, "expecttest", stub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common_modules = pytest.importorskip("torch.testing._internal.common_modules")
    return common_modules.module_db


def variants(info, dtype):
    """At most some variants of each class, evenly from all (one has hundreds)."""
    inputs = list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True))
    for one in inputs[:: -(-len(inputs) // PER_CLASS)]:
        yield info.module_cls(*one.constructor_input.args, **one.constructor_input.kwargs).to(dtype)


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_modules_have_recipes(monkeypatch):
    """Whatever torch tests, in two dtypes: a verified recipe or a clear error, and all but lazy ones a recipe."""
    described, refused, classes = 0, {}, set()
    for info in module_infos(monkeypatch):
        for dtype in (torch.float32, torch.float64):
            for module in variants(info, dtype):
                try:
                    written = tk.recipe(module)
                except RecipeError as error:
                    refused[info.name] = str(error)
                    continue
                described += 1
                classes.add(type(module))
                assert tk.recipe(tk.build(written)) == written
    assert described > 700
    assert len(classes) > 100
    assert {name.removeprefix("nn.")[:4] for name in refused} <= {"Lazy"}
    assert all("run the model once" in said for said in refused.values())


def test_every_class_is_registered_or_left_out_for_a_reason():
    """Lazy modules, wrappers and one deprecated name are no blocks; all else in torch.nn is."""
    known = set(torch_classes().values())
    left = {name for name, cls in vars(nn).items() if isinstance(cls, type) and issubclass(cls, nn.Module)} - {
        name.removeprefix("torch.nn.") for name in torch_classes()
    }
    assert {name for name in left if not name.startswith("Lazy")} == {"Container", "DataParallel"}
    assert nn.Linear in known


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (nn.Linear, {"in_features": 2, "out_features": 3}),
        (nn.Linear, {"in_features": 2, "out_features": 3, "bias": False, "dtype": torch.half}),
        (nn.LayerNorm, {"normalized_shape": (3,), "elementwise_affine": False}),
        (nn.BatchNorm1d, {"num_features": 3, "affine": False}),
        (nn.LSTM, {"input_size": 1, "hidden_size": 2, "num_layers": 2, "bidirectional": True}),
        (nn.RNN, {"input_size": 1, "hidden_size": 2, "nonlinearity": "relu"}),
        (nn.MultiheadAttention, {"embed_dim": 4, "num_heads": 2, "kdim": 3, "add_bias_kv": True}),
        (nn.AdaptiveLogSoftmaxWithLoss, {"in_features": 64, "n_classes": 9, "cutoffs": [2, 5]}),
        (nn.Embedding, {"num_embeddings": 5, "embedding_dim": 2, "padding_idx": 4}),
        (nn.ReLU, {}),
        (nn.Upsample, {"scale_factor": 2.0, "mode": "bilinear"}),
    ],
)
def test_arguments_are_read_back_from_what_a_module_holds(cls, given):
    """What differs from the defaults, under the constructor's own names."""
    assert arguments_of(cls(**given)) == given


def test_a_transformer_with_parts_of_its_own():
    """Activations that are functions or modules, norms, and stacks that the user gave."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=nn.GELU(), norm_first=True, bias=False)
    stack = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(4), enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, activation=torch.tanh), 1)
    net = nn.ModuleDict(
        {"encoder": stack, "decoder": decoder, "both": nn.Transformer(4, 2, 1, 2, 8, batch_first=True)}
    )
    net["custom"] = nn.Transformer(4, 2, custom_encoder=nn.Identity(), num_decoder_layers=1, dim_feedforward=8)
    other = tk.build(tk.recipe(net))
    assert isinstance(other["encoder"].layers[2].activation, nn.GELU)
    assert other["decoder"].layers[0].activation is torch.tanh
    assert isinstance(other["custom"].encoder, nn.Identity)
    with pytest.raises(RecipeError, match="no layer"):
        tk.recipe(nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 0))


def test_layers_of_a_stack_that_were_changed_are_named():
    """A stack is described by its first layer; a layer unlike it is a difference."""
    stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 3)
    stack.layers[1].linear1 = nn.Linear(4, 9)
    with pytest.raises(RecipeError, match=r"layers\.1\.linear1\.weight"):
        tk.recipe(stack)


def test_lists_and_dicts_of_parameters():
    """Shapes, dtypes, order, and plain things that a ParameterList may hold; tensors become Parameters as ever."""
    whole_numbers = nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
    net = nn.ModuleList(
        [
            nn.ParameterList([torch.zeros(2), whole_numbers, "text"]),
            nn.ParameterDict({"z": torch.zeros(3), "a": torch.zeros((), dtype=torch.float64)}),
        ]
    )
    other = tk.build(tk.recipe(net))
    assert [tuple(p.shape) for p in other.parameters()] == [(2,), (1,), (), (3,)]
    assert other[0][2] == "text"
    assert list(other[1]) == list(net[1])


def test_a_bare_module_is_a_container():
    """nn.Module itself, filled by hand, is described by its children; tensors hung into it are a difference."""
    net = nn.Module()
    net.first = nn.Linear(1, 1)
    assert list(tk.build(tk.recipe(net)).state_dict()) == ["first.weight", "first.bias"]
    net.scale = nn.Parameter(torch.zeros(1))
    with pytest.raises(RecipeError, match="scale: this parameter was added"):
        tk.recipe(net)
