"""Initializers: values, fans and scales are torch's; wrong arguments are refused where they are given."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import torchkeep as tk
from stable_ids import stable
from torchkeep.init.fans import fans

MODULES = [
    nn.Linear(40, 60),
    nn.Conv1d(8, 12, 5),
    nn.Conv2d(8, 12, (3, 5)),
    nn.Conv2d(8, 12, 3, groups=4),
    nn.Conv3d(4, 6, 3),
    nn.ConvTranspose2d(8, 12, 3),
    nn.ConvTranspose2d(8, 12, 3, groups=2),
    nn.Bilinear(3, 4, 5),
    nn.Embedding(50, 30),
]


def filled(initializer, *shape, dtype=torch.float32, name="weight"):
    """Fill one parameter of that shape and return it."""
    net = nn.Module()
    net.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))
    tk.initialize(net, {name: initializer})
    return net.get_parameter(name)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_fans_are_torchs(module):
    """Of linear layers, convolutions, transposed and grouped ones, embeddings: as torch.nn.init counts them."""
    shape = tuple(module.weight.shape)
    assert fans(shape) == nn.init._calculate_fan_in_and_fan_out(module.weight)
    plan = tk.init.plan(module, {"**": tk.init.keep()})
    assert (plan["weight"].fan_in, plan["weight"].fan_out) == fans(shape)


@pytest.mark.parametrize("shape", [None, (), (5,)])
def test_there_are_no_fans_below_two_dimensions(shape):
    """Nor while a parameter is lazy."""
    assert fans(shape) is None


SCALED = [
    (tk.init.xavier_uniform(), nn.init.xavier_uniform_),
    (tk.init.xavier_uniform(1.5), lambda t: nn.init.xavier_uniform_(t, 1.5)),
    (tk.init.xavier_normal(gain=2), lambda t: nn.init.xavier_normal_(t, 2)),
    (tk.init.kaiming_uniform(), nn.init.kaiming_uniform_),
    (tk.init.kaiming_uniform(5**0.5), lambda t: nn.init.kaiming_uniform_(t, 5**0.5)),
    (tk.init.kaiming_uniform(0.1, "fan_out"), lambda t: nn.init.kaiming_uniform_(t, 0.1, "fan_out")),
    (tk.init.kaiming_normal(), nn.init.kaiming_normal_),
    (
        tk.init.kaiming_normal(0, "fan_out", "relu"),
        lambda t: nn.init.kaiming_normal_(t, 0, "fan_out", "relu"),
    ),
    (tk.init.kaiming_normal(nonlinearity="tanh"), lambda t: nn.init.kaiming_normal_(t, nonlinearity="tanh")),
    (tk.init.kaiming_normal(nonlinearity="selu"), lambda t: nn.init.kaiming_normal_(t, nonlinearity="selu")),
    (tk.init.lecun_normal(), lambda t: nn.init.kaiming_normal_(t, nonlinearity="linear")),
]


@pytest.mark.parametrize(("ours", "theirs"), SCALED, ids=stable)
@pytest.mark.parametrize("shape", [(300, 200), (64, 32, 3, 3), (32, 64, 5)], ids=str)
def test_scaled_initializers_agree_with_torch(ours, theirs, shape):
    """The same distribution as torch's function gives: two-sample Kolmogorov-Smirnov, and the same spread."""
    mine = filled(ours, *shape).flatten()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = theirs(torch.empty(shape)).flatten()
    assert stats.ks_2samp(mine.numpy(), other.numpy()).pvalue > 1e-3
    assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.03)
    assert ours.deviation(shape) == pytest.approx(float(mine.std()), rel=0.03)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25), (16, 4, 3, 3), (4, 16, 3, 3)], ids=str)
@pytest.mark.parametrize("gain", [1, 2.5])
def test_orthogonal_is_orthogonal(shape, gain):
    """Rows or columns, whichever are fewer, are orthogonal and of length `gain`."""
    matrix = filled(tk.init.orthogonal(gain), *shape).flatten(1).double()
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    assert torch.allclose(short @ short.T, gain**2 * torch.eye(short.shape[0]).double(), atol=1e-5)


def test_orthogonal_favours_no_direction():
    """Its entries are spread as those of a uniformly random rotation: signs even, mean 0, variance 1/n."""
    entries = torch.cat(
        [filled(tk.init.orthogonal(), 64, 64, name=f"w{number}").flatten() for number in range(20)]
    )
    assert abs(float(entries.mean())) < 4 / 8 / entries.numel() ** 0.5
    assert float(entries.std()) == pytest.approx(1 / 8, rel=0.01)
    assert abs(float((entries > 0).float().mean()) - 0.5) < 4 * 0.5 / entries.numel() ** 0.5


def test_patterns_are_torchs():
    """Eye and dirac are what torch.nn.init makes."""
    assert torch.equal(filled(tk.init.eye(), 4, 6), torch.eye(4, 6))
    for shape, groups in [((6, 4, 3), 1), ((6, 2, 3, 3), 2), ((6, 2, 3, 4, 5), 3)]:
        assert torch.equal(filled(tk.init.dirac(groups), *shape), nn.init.dirac_(torch.empty(shape), groups))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.uint8, torch.bool]
)
def test_constants_fill_every_dtype(dtype):
    """zeros, ones and constants that the dtype holds, integers and bool too."""
    assert (filled(tk.init.zeros(), 3, 2, dtype=dtype).float() == 0).all()
    assert (filled(tk.init.ones(), 3, 2, dtype=dtype).float() == 1).all()
    assert (filled(tk.init.constant(1), 3, 2, dtype=dtype).float() == 1).all()


def test_a_large_integer_constant_is_exact():
    """An integer is not turned into a float on the way."""
    assert filled(tk.init.constant(2**62 + 1), 2, dtype=torch.int64).tolist() == [2**62 + 1] * 2
    assert (filled(tk.init.constant(-math.inf), 2) == -math.inf).all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.int64, 0.5), (torch.uint8, 300), (torch.uint8, -1), (torch.bool, 2), (torch.float16, 1e6)],
)
def test_constants_that_do_not_fit_are_refused(dtype, value):
    """A constant is never rounded to another number, nor to infinity."""
    with pytest.raises(tk.TorchkeepError, match="can't hold"):
        filled(tk.init.constant(value), 2, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_follow_torch(dtype):
    """Normal halves the variance between real and imaginary part; uniform draws both; as torch.nn.init does."""
    for ours, theirs in [
        (tk.init.normal(1, 2), lambda t: nn.init.normal_(t, 1, 2)),
        (tk.init.uniform(-1, 2), lambda t: nn.init.uniform_(t, -1, 2)),
        (tk.init.kaiming_normal(), nn.init.kaiming_normal_),
        (tk.init.xavier_uniform(), nn.init.xavier_uniform_),
    ]:
        mine = torch.view_as_real(filled(ours, 300, 100, dtype=dtype))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            other = torch.view_as_real(theirs(torch.empty(300, 100, dtype=dtype)))
        for part in (0, 1):
            assert (
                stats.ks_2samp(mine[..., part].flatten().numpy(), other[..., part].flatten().numpy()).pvalue > 1e-3
            )
        assert abs(
            float((mine[..., 0] - mine[..., 0].mean()).flatten() @ (mine[..., 1] - mine[..., 1].mean()).flatten())
        ) < (4 * float(mine[..., 0].std() * mine[..., 1].std()) * 30_000**0.5)


@pytest.mark.parametrize("initializer", [tk.init.trunc_normal(), tk.init.orthogonal()], ids=str)
def test_what_is_only_defined_for_reals_refuses_complex(initializer):
    """As torch, which raises there too."""
    with pytest.raises(tk.TorchkeepError, match="real"):
        filled(initializer, 3, 3, dtype=torch.complex64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8])
def test_draws_refuse_integers(dtype):
    """A distribution can't be rounded to integers; the error names the dtype and what to use."""
    with pytest.raises(tk.TorchkeepError, match=r"can't be drawn in (int32|bool|uint8); use constant"):
        filled(tk.init.normal(), 3, 3, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tk.init.normal(0, -1), "normal: std is 0 or more, not -1"),
        (lambda: tk.init.normal(float("nan")), "normal: mean is a finite number, not nan"),
        (lambda: tk.init.normal(0, math.inf), "normal: std is a finite number, not inf"),
        (lambda: tk.init.normal("0"), "normal: mean is a number, not '0'"),
        (lambda: tk.init.normal(mean=True), "normal: mean is a number, not True"),
        (lambda: tk.init.uniform(1, 1), "uniform: low is below high, but 1 is not below 1"),
        (lambda: tk.init.uniform(2, -2), "uniform: low is below high, but 2 is not below -2"),
        (lambda: tk.init.trunc_normal(0, 0), "trunc_normal: std is above 0, not 0"),
        (lambda: tk.init.trunc_normal(0, 1, 2, 1), "trunc_normal: low is below high"),
        (lambda: tk.init.trunc_normal(0, 1, float("nan")), "trunc_normal: low is a finite number"),
        (lambda: tk.init.xavier_normal(-1), "xavier_normal: gain is 0 or more, not -1"),
        (
            lambda: tk.init.kaiming_normal(mode="fan_inn"),
            r"mode is one of fan_in, fan_out, not 'fan_inn'; did you mean `fan_in`",
        ),
        (lambda: tk.init.kaiming_uniform(nonlinearity="Relu"), r"not 'Relu'; did you mean `relu`"),
        (lambda: tk.init.kaiming_uniform(nonlinearity="zzz"), "not 'zzz'; choose one"),
        (lambda: tk.init.kaiming_normal(a=None), "kaiming_normal: a is a number, not None"),
        (lambda: tk.init.orthogonal("big"), "orthogonal: gain is a number, not 'big'"),
        (lambda: tk.init.constant("1"), "constant: value is a number, not '1'"),
        (lambda: tk.init.constant(math.nan), "constant: value is a finite number, not nan"),
        (lambda: tk.init.dirac(0), "dirac: groups is a whole number of 1 or more, not 0"),
        (lambda: tk.init.custom(3), "custom: fn is a function of a tensor and a generator, not 3; use constant"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, sentence):
    """The error comes where the initializer is made, and names the argument, what was found and what is meant."""
    with pytest.raises(tk.TorchkeepError, match=sentence) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("initializer", "text"),
    [
        (tk.init.normal(0, 0.01), "normal(mean=0, std=0.01)"),
        (tk.init.normal(), "normal(mean=0, std=1)"),
        (tk.init.uniform(-1, 1), "uniform(low=-1, high=1)"),
        (tk.init.trunc_normal(std=0.02), "trunc_normal(mean=0, std=0.02, low=-2, high=2)"),
        (tk.init.trunc_normal(high=math.inf), "trunc_normal(mean=0, std=1, low=-2, high=inf)"),
        (tk.init.constant(42), "constant(42)"),
        (tk.init.zeros(), "zeros()"),
        (tk.init.xavier_uniform(), "xavier_uniform()"),
        (tk.init.xavier_uniform(2), "xavier_uniform(gain=2)"),
        (
            tk.init.kaiming_normal(mode="fan_out", nonlinearity="relu"),
            "kaiming_normal(mode='fan_out', nonlinearity='relu')",
        ),
        (tk.init.dirac(2), "dirac(groups=2)"),
        (tk.init.custom(nn.init.ones_), "custom(ones_)"),
        (tk.init.keep(), "keep()"),
        (tk.init.torch_default(), "torch_default()"),
        (tk.init.normal(np.float64(0.5), np.float32(0.5)), "normal(mean=0.5, std=0.5)"),
    ],
)
def test_initializers_show_how_they_were_made(initializer, text):
    """Repr is the call that makes it, without what is left at its default, save for a distribution's numbers."""
    assert repr(initializer) == text


def test_initializers_are_immutable_values():
    """They compare by value, can be used as keys and pickled, and can't be changed."""
    one, other = tk.init.normal(0, 1), tk.init.normal(0.0, 1.0)
    assert one == other
    assert len({one, other, tk.init.uniform()}) == 2
    assert tk.init.xavier_normal() != tk.init.xavier_uniform()
    assert tk.init.zeros() != tk.init.constant(0)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.mean = 3


def test_a_normal_without_spread_is_its_mean():
    """std=0 is allowed, as in torch."""
    assert (filled(tk.init.normal(3, 0), 100) == 3).all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2, 2)], ids=str)
def test_tensors_without_elements_are_fine(shape):
    """Nothing to fill is no error, for draws from fans of 0 either."""
    assert filled(tk.init.normal(), *shape).shape == shape
    if len(shape) > 1:
        for rule in (
            tk.init.kaiming_normal(),
            tk.init.xavier_uniform(),
            tk.init.orthogonal(),
            tk.init.lecun_normal(),
        ):
            assert filled(rule, *shape).shape == shape


def test_scalars_are_drawn():
    """A parameter without dimensions gets one draw."""
    assert filled(tk.init.uniform(2, 3)).shape == ()
    assert 2 <= float(filled(tk.init.uniform(2, 3))) < 3
    assert float(filled(tk.init.constant(7))) == 7


def test_a_uniform_wider_than_the_dtype_is_refused():
    """Torch's uniform can't draw from an interval longer than the greatest float."""
    with pytest.raises(tk.TorchkeepError, match=r"reaches beyond float32, which ends at 3\.4e\+38; bring it in"):
        filled(tk.init.uniform(-3e38, 3e38), 4)
    assert filled(tk.init.uniform(-3e38, 3e38), 4, dtype=torch.float64).isfinite().all()


@pytest.mark.parametrize(
    "initializer",
    [
        tk.init.normal(0, 30_000),
        tk.init.normal(70_000, 1),
        tk.init.uniform(0, 70_000),
        tk.init.trunc_normal(0, 30_000, 0, math.inf),
        tk.init.xavier_normal(1e5),
    ],
    ids=str,
)
def test_draws_that_the_dtype_can_not_hold_are_refused(initializer):
    """Nothing becomes infinite by rounding into float16; float32 holds it."""
    with pytest.raises(tk.TorchkeepError, match="reaches beyond float16"):
        filled(initializer, 8, 8, dtype=torch.float16)
    assert filled(initializer, 8, 8).isfinite().all()
