"""materialize: memory for everything, values for nothing that nobody gave, and every tie as it was."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchkeep.errors import MaterializeError
from torchkeep.tying import keeping_ties, materialize, ties
from torchkeep.tying.materializing import plan_materializing


class Rotary(nn.Module):
    """Computes its buffer in the constructor, as position encodings do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", 1 / torch.arange(1, 5.0), persistent=False)


class FilledRotary(Rotary):
    """The same, with a method that fills the buffer again."""

    def reset_buffers(self):
        self.frequencies.copy_(1 / torch.arange(1, 5.0))


class RandomFeatures(nn.Module):
    """A buffer that reset_parameters draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.empty(3, 5))
        self.reset_parameters()

    def reset_parameters(self):
        self.directions.normal_()


def on_meta(make):
    with torch.device("meta"):
        return make()


def summary(net):
    return [(id(tensor), tensor.device.type) for tensor in (*net.parameters(), *net.buffers())]


def everything_tied():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(3, 3), shared, shared, nn.Linear(3, 3), nn.Linear(3, 3))
    net[3].weight = net[0].weight
    net[4].weight = nn.Parameter(net[0].weight.data, requires_grad=False)
    return net


def test_parameters_are_nan_until_filled():
    """Every parameter is on the device and NaN, so that what nobody fills shows in the first output."""
    net = on_meta(lambda: nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 3, 2)))
    assert materialize(net, "cpu") is net
    assert all(p.device.type == "cpu" and p.isnan().all() for p in net.parameters())
    assert net(torch.ones(4, 2))[0].isnan().all()


def test_ties_of_every_kind_are_what_they_were():
    """Module, parameter and storage ties, on meta where every address is 0, are the same ties afterwards."""
    net = on_meta(everything_tied)
    before = ties(net)
    assert [group.kind for group in before] == ["storage", "module", "module"]
    materialize(net, "cpu")
    assert ties(net) == before
    assert net[3].weight is net[0].weight is not net[4].weight
    assert not net[4].weight.requires_grad
    with torch.no_grad():
        net[0].weight.fill_(1)
    assert (net[4].weight == 1).all()


def test_overlaps_that_are_no_ties_stay_overlaps():
    """A slice of a weight is a slice of it still; neighbours in one storage need no room for what lies between."""

    def make():
        flat = torch.zeros(10)
        return nn.ParameterList([flat[:6].view(2, 3), flat[3:6], flat[8:]])

    net = materialize(on_meta(make), "cpu")
    with torch.no_grad():
        net[0].copy_(torch.arange(6.0).view(2, 3))
    assert net[1].tolist() == [3, 4, 5]
    assert net[2].untyped_storage().nbytes() < 40


def test_what_a_parameter_is_stays():
    """Class, attributes, strides, dtype and requires_grad of the new Parameter are the old one's."""

    class Marked(nn.Parameter):
        pass

    net = nn.Module()
    net.weight = Marked(torch.empty(3, 2, device="meta", dtype=torch.bfloat16).t(), requires_grad=False)
    net.weight.split_dim = 1
    conv = nn.Conv2d(3, 4, 2, device="meta").to(memory_format=torch.channels_last)
    net.conv = conv
    strides = conv.weight.stride()
    materialize(net, "cpu")
    assert type(net.weight) is Marked
    assert net.weight.split_dim == 1
    assert (net.weight.stride(), net.weight.dtype, net.weight.requires_grad) == ((1, 2), torch.bfloat16, False)
    assert conv.weight.stride() == strides
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "unset"),
    [
        (torch.int8, -128),
        (torch.int64, torch.iinfo(torch.int64).min),
        (torch.uint8, 255),
        (torch.uint16, 65535),
        (torch.bool, False),
    ],
)
def test_parameters_that_can_not_be_nan_hold_the_documented_value(dtype, unset):
    """Integers say "unset" with their most extreme value."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.empty(3, dtype=dtype, device="meta"), requires_grad=False)
    assert materialize(net, "cpu").weight.tolist() == [unset] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_every_float_can_be_nan(dtype):
    """Float8 and complex dtypes too."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.empty(3, dtype=dtype, device="meta"), requires_grad=False)
    values = materialize(net, "cpu").weight
    assert (values.real if dtype.is_complex else values.float()).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float4_e2m1fn_x2, torch.int4, torch.bits8])
def test_dtypes_that_nothing_fills_get_bytes(dtype):
    """Dtypes without arithmetic are materialised too, with a fixed byte."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.empty(3, dtype=dtype, device="meta"), requires_grad=False)
    assert materialize(net, "cpu").weight.data.view(torch.uint8).tolist() == [127] * 3


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors(shape):
    """They have a place in memory like any other."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.empty(shape, device="meta"))
    net.register_buffer("cache", torch.empty(0, device="meta"))
    assert materialize(net, "cpu").weight.shape == shape


def test_an_expanded_parameter_stays_expanded():
    """One row seen four times is still one row."""
    net = nn.Module()
    net.weight = nn.Parameter(torch.empty(1, 3, device="meta").expand(4, 3))
    weight = materialize(net, "cpu").weight
    assert (weight.shape, weight.stride()) == ((4, 3), (0, 1))
    assert weight.isnan().all()


def test_buffers_are_rebuilt_by_their_own_module():
    """Running statistics, counters and what reset_buffers fills are what a fresh instance has."""
    net = on_meta(
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(2, track_running_stats=True), FilledRotary())
    )
    materialize(net, "cpu")
    assert net[0].running_mean.tolist() == [0, 0, 0]
    assert net[0].running_var.tolist() == [1, 1, 1]
    assert net[0].num_batches_tracked == 0
    assert net[1].running_var.tolist() == [1, 1]
    assert torch.equal(net[2].frequencies, 1 / torch.arange(1, 5.0))
    assert list(net.state_dict()) == list(on_meta(lambda: nn.Sequential(*net)).state_dict())


def test_rebuilding_depends_on_the_name_alone_and_touches_no_random_state():
    """A drawn buffer has the same bits each time, others under another name, and the user's generators stay."""
    numpy = pytest.importorskip("numpy")

    def made():
        return materialize(on_meta(lambda: nn.Sequential(RandomFeatures(), RandomFeatures())), "cpu")

    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    one = made()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]
    torch.manual_seed(5)
    two = made()
    assert torch.equal(one[0].directions, two[0].directions)
    assert not torch.equal(one[0].directions, one[1].directions)


def test_what_can_not_be_rebuilt_is_named_and_nothing_changes():
    """All in one error: no method, a value that depends on weights, a method that fails or leaves it alone."""

    class Failing(Rotary):
        def reset_parameters(self):
            raise ZeroDivisionError("by design")

    class Leaving(Rotary):
        def reset_parameters(self):
            pass

    class InPlace(Rotary):
        def reset_parameters(self):
            self.frequencies.mul_(2)

    class Resizing(Rotary):
        def reset_parameters(self):
            self.frequencies = torch.zeros(2)

    def make():
        net = nn.ModuleDict({cls.__name__: cls() for cls in (Rotary, Failing, Leaving, InPlace, Resizing)})
        net["norm"] = nn.BatchNorm1d(3)
        net["spectral"] = parametrizations.spectral_norm(nn.Linear(2, 2))
        net["stray"] = nn.Identity()
        net["stray"].cache = [torch.zeros(2)]
        return net

    net = on_meta(make)
    before = summary(net)
    with pytest.raises(MaterializeError) as caught:
        materialize(net, "cpu")
    said = str(caught.value)
    for name in ("Rotary", "Failing", "Leaving", "InPlace", "Resizing"):
        assert f"'{name}.frequencies', which no state_dict holds," in said
    assert "ZeroDivisionError: by design" in said
    assert "spectral.parametrizations.weight.0._u" in said
    assert "'stray.cache'" in said
    assert "norm" not in said.replace("SpectralNorm", "")
    assert "reset_buffers()" in said
    assert summary(net) == before


def test_the_errors_advice_works():
    """The module constructed on the CPU keeps its buffer; the rest comes from the meta device."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2))
        with torch.device("cpu"):
            net.append(Rotary())
    materialize(net, "cpu")
    assert net[0].weight.isnan().all()
    assert torch.equal(net[1].frequencies, 1 / torch.arange(1, 5.0))


def test_real_tensors_are_left_alone():
    """What is on the device already is the same object with the same values."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    weight, values = net[0].weight, net[0].weight.detach().clone()
    materialize(net, "cpu")
    assert net[0].weight is weight
    assert torch.equal(weight, values)
    assert net[1].weight.isnan().all()


def test_a_buffer_shared_between_modules_is_rebuilt_once():
    """Whichever of its modules can fill it does; both places then hold one tensor."""

    def make():
        net = nn.Sequential(Rotary(), FilledRotary())
        net[0].frequencies = net[1].frequencies
        return net

    net = materialize(on_meta(make), "cpu")
    assert net[0].frequencies is net[1].frequencies
    assert net[0].frequencies.tolist() == (1 / torch.arange(1, 5.0)).tolist()


def test_a_module_that_reaches_into_its_children_is_rebuilt_without_copying_them():
    """Resets may write to children: the copy's are on the meta device, the model's are not touched."""

    class Parent(Rotary):
        def __init__(self):
            super().__init__()
            self.child = nn.Linear(2, 2)
            self.seen = []

        def reset_parameters(self):
            nn.init.zeros_(self.child.weight)
            self.seen.append(self.child.weight.device.type)
            self.frequencies.fill_(7)

    net = on_meta(Parent)
    materialize(net, "cpu")
    assert net.frequencies.tolist() == [7] * 4
    assert net.child.weight.isnan().all()
    assert net.seen == []


def test_lazy_modules_stay_lazy():
    """A lazy parameter gets its shape from the first input, on the device."""
    net = materialize(on_meta(lambda: nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))), "cpu")
    assert net(torch.rand(5, 2)).shape == (5, 4)
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())


def test_a_lazy_module_with_buffers_is_run_first():
    """Its buffers have no shape to rebuild; the advice, one run on the meta device, works."""
    net = on_meta(lambda: nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(MaterializeError, match="lazy; run the model once"):
        materialize(net, "cpu")
    net(torch.empty(5, 2, device="meta"))
    assert materialize(net, "cpu")[0].running_var.tolist() == [1, 1]


def test_an_optimizer_made_on_meta_follows():
    """Inside keeping_ties the optimizer's groups end on the new Parameters."""
    net = on_meta(everything_tied)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with keeping_ties(net, optimizer):
        materialize(net, "cpu")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}


def test_the_caller_may_stand_in_a_device_context():
    """Buffers are rebuilt on the CPU whatever the default device is at the moment."""
    net = on_meta(lambda: nn.Sequential(nn.BatchNorm1d(3), FilledRotary()))
    with torch.device("meta"):
        materialize(net, "cpu")
    assert net[0].running_var.tolist() == [1, 1, 1]
    assert torch.equal(net[1].frequencies, 1 / torch.arange(1, 5.0))


def test_the_meta_device_is_no_target():
    """It holds no values."""
    with pytest.raises(MaterializeError, match="meta"):
        materialize(nn.Linear(1, 1), "meta")


def test_a_plan_changes_nothing_until_it_is_hung():
    """New tensors are there by every name, to be filled, while the model is still on the meta device."""
    net = on_meta(everything_tied)
    plan = plan_materializing(net, "cpu")
    assert net[0].weight.is_meta
    assert plan.new["0.weight"] is plan.new["3.weight"]
    with torch.no_grad():
        plan.new["3.weight"].fill_(2)
    plan.hang()
    assert (net[4].weight == 2).all()
