"""torch_default: the owner's own reset_parameters, on a copy, keyed by the module's name."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import torchkeep as tk

init = tk.init
DEFAULT = {"**": init.torch_default()}

LAYERS = {
    "Linear": lambda: nn.Linear(60, 50),
    "Conv2d": lambda: nn.Conv2d(12, 16, 3, groups=2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(12, 16, 5),
    "Bilinear": lambda: nn.Bilinear(10, 12, 14),
    "Embedding": lambda: nn.Embedding(100, 30, padding_idx=7),
    "LSTM": lambda: nn.LSTM(20, 30, num_layers=2, bidirectional=True),
    "GRUCell": lambda: nn.GRUCell(20, 30),
    "LayerNorm": lambda: nn.LayerNorm(40),
    "BatchNorm2d": lambda: nn.BatchNorm2d(40),
    "PReLU": lambda: nn.PReLU(40),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_values_are_distributed_as_torchs_own(layer):
    """Each parameter of a default-initialised layer follows the distribution that its constructor gives it."""
    net = LAYERS[layer]()
    torch.manual_seed(3)
    fresh = [dict(LAYERS[layer]().named_parameters()) for _ in range(5)]
    for value in net.parameters():
        nn.init.constant_(value, 77)
    tk.initialize(net, DEFAULT)
    for name, value in net.named_parameters():
        theirs = torch.cat([other[name].detach().flatten() for other in fresh])
        mine = value.detach().flatten()
        if layer in {"MultiheadAttention", "TransformerEncoderLayer"} and name.endswith("out_proj.bias"):
            assert mine.abs().max() <= 1 / math.sqrt(32)  # the projection's own reset, not the attention's
        elif theirs.unique().numel() <= 1:
            assert torch.equal(mine, theirs[: mine.numel()])
        else:
            assert stats.ks_2samp(mine.numpy(), theirs.numpy()).pvalue > 1e-3, name


def test_padding_stays_zero():
    """What a reset does besides drawing is done too."""
    net = nn.Embedding(10, 4, padding_idx=3)
    tk.initialize(net, DEFAULT)
    assert (net.weight[3] == 0).all()
    assert (net.weight[[0, 1, 2, 4]] != 0).all()


def test_only_what_is_claimed_is_copied_back():
    """Other parameters of the module, and its buffers, keep their values, though the reset sets them."""
    net = nn.BatchNorm1d(4)
    with torch.no_grad():
        for value in (net.weight, net.bias, net.running_mean):
            value.fill_(9)
    tk.initialize(net, {"bias": init.torch_default(), "weight": init.keep()})
    assert (net.bias == 0).all()
    assert (net.weight == 9).all()
    assert (net.running_mean == 9).all()
    tk.initialize(net, {"**": init.keep(), ":buffer & {running_mean,num_batches_tracked}": init.torch_default()})
    assert (net.running_mean == 0).all()
    assert (net.weight == 9).all()


def test_a_claim_of_one_tensor_does_not_change_the_others():
    """What is claimed beside it does not matter for a value: the reset runs whole."""
    one, other = nn.Linear(5, 5), nn.Linear(5, 5)
    tk.initialize(one, DEFAULT)
    tk.initialize(other, {"weight": init.zeros(), "bias": init.torch_default()})
    assert torch.equal(one.bias, other.bias)


def test_values_depend_on_the_modules_name_alone():
    """The same layer under two names differs; more layers change nothing; the seed does."""
    small, large = nn.Sequential(nn.Linear(5, 5)), nn.Sequential(*[nn.Linear(5, 5) for _ in range(3)])
    tk.initialize(small, DEFAULT, seed=1)
    tk.initialize(large, DEFAULT, seed=1)
    assert torch.equal(small[0].weight, large[0].weight)
    assert not torch.equal(large[0].weight, large[1].weight)
    tk.initialize(small, DEFAULT, seed=2)
    assert not torch.equal(small[0].weight, large[0].weight)


def test_no_global_generator_is_consumed():
    """torch's, Python's and NumPy's go on as if nothing had happened, and their state does not matter."""

    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.empty(3))

        def reset_parameters(self):
            with torch.no_grad():
                self.w[0] = random.random()  # noqa: S311 - a global generator is what is tested
                self.w[1] = float(np.random.rand())  # noqa: NPY002 - likewise
                self.w[2:].normal_()

    one, other = Draws(), Draws()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002 - likewise
    tk.initialize(one, DEFAULT)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]  # noqa: NPY002 - likewise
    torch.rand(1)
    random.seed(5)
    tk.initialize(other, DEFAULT)
    assert torch.equal(one.w, other.w)


def test_the_dtype_is_the_parameters():
    """A bfloat16 layer is reset in bfloat16, as in torch."""
    net = nn.Linear(100, 100, dtype=torch.bfloat16)
    plan = tk.initialize(net, DEFAULT)
    assert net.weight.dtype == torch.bfloat16
    assert float(net.weight.detach().float().std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert torch.equal(plan.values("weight", slice(3)), net.weight[:3])


def test_a_meta_model_gets_the_same_values():
    """Resets run on the CPU, whatever the device."""
    with torch.device("meta"):
        net = nn.LSTM(4, 5, num_layers=2)
    real = nn.LSTM(4, 5, num_layers=2)
    tk.initialize(net, DEFAULT, device="cpu")
    tk.initialize(real, DEFAULT)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), real.parameters(), strict=True))
    x = torch.randn(3, 2, 4)
    assert torch.equal(net(x)[0], real(x)[0])


class Parent(nn.Module):
    """Its reset resets a child as well; only its own tensor is taken from that."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))
        self.child = nn.Linear(3, 3)

    def reset_parameters(self):
        nn.init.normal_(self.scale)
        nn.init.constant_(self.child.weight, 5)


def test_a_reset_that_also_resets_a_child():
    """The child's parameters follow the child's own reset."""
    net = Parent()
    tk.initialize(net, DEFAULT)
    assert net.scale.abs().max() > 0
    assert net.child.weight.abs().max() < 1


def test_hooks_and_odd_attributes_are_no_obstacle():
    """Hooks, references to other modules and cached results of a forward do not come into the copy's way."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].register_forward_hook(lambda *_: None)
    net[0].elsewhere = [net[1]]
    net[0].cached = net[0](torch.ones(3))
    tk.initialize(net, DEFAULT)
    assert (net[0].weight != 0).all()
    assert net[0].cached.grad_fn is not None


class Broken(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self):
        if self.kind == "raises":
            raise KeyError("deep inside")
        nn.init.ones_(self.a)
        if self.kind == "scales":
            with torch.no_grad():
                self.b.mul_(2)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("raises", r"Broken\.reset_parameters of '1' could not be run on a copy .*KeyError.*deep inside"),
        ("forgets", r"Broken\.reset_parameters of '1' does not fill '1\.b'; give these another initializer"),
        ("scales", r"does not fill '1\.b'"),
    ],
)
def test_a_reset_that_fails_or_forgets_is_told(kind, sentence):
    """A tensor that the reset leaves, or makes from what was there, is an error; nothing was changed."""
    net = nn.Sequential(nn.Linear(2, 2), Broken(kind))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(tk.errors.RuleError, match=sentence):
        tk.initialize(net, DEFAULT)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_integer_buffer_that_the_reset_leaves_is_told():
    """NaN shows in floats; integers are told apart too."""
    net = Broken("fine")
    rules = {"**": init.zeros(), ":buffer & count": init.torch_default()}
    with pytest.raises(tk.errors.RuleError, match="does not fill 'count'"):
        tk.initialize(net, rules)


def test_the_owner_of_a_shared_layer_is_its_canonical_place():
    """A layer in two places is reset once, under its owner's name."""
    layer = nn.Linear(4, 4)
    net, alone = nn.ModuleDict({"b": layer, "a": layer}), nn.ModuleDict({"a": nn.Linear(4, 4)})
    tk.initialize(net, DEFAULT)
    tk.initialize(alone, DEFAULT)
    assert torch.equal(net["b"].weight, alone["a"].weight)
