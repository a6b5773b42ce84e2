"""keeping_ties: after anything that replaces tensors, what was one is one, and optimizers hold what is live."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from torchkeep.errors import TieError
from torchkeep.tying import keeping_ties, tie, ties


def shared_module():
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), shared, nn.Tanh(), shared, nn.BatchNorm1d(4))


def shared_parameter():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    tie(net, "2.weight", "0.weight")
    return net


def shared_storage():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    net[2].weight = nn.Parameter(net[0].weight.data)
    return net


def shared_buffer():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    net[2].running_mean = net[1].running_mean
    return net


NETS = {make.__name__: make for make in (shared_module, shared_parameter, shared_storage, shared_buffer)}


@contextmanager
def conversion(*, overwrite=False, swap=False):
    """Set torch's conversion flags, and set them back."""
    try:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(value=False)
        torch.__future__.set_swap_module_params_on_conversion(value=False)


def own_state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


BODIES = {
    "to_empty": lambda net: net.to_empty(device="cpu"),
    "to meta": lambda net: net.to("meta"),
    "to meta and back": lambda net: net.to("meta").to_empty(device="cpu"),
    "to float64": lambda net: net.to(torch.float64),
    "part by part": lambda net: [part.to(torch.float64) for part in net],
    "assign": lambda net: net.load_state_dict(own_state(net), assign=True),
    "assign twice, then convert": lambda net: [
        net.load_state_dict(own_state(net), assign=True),
        net.load_state_dict(own_state(net), assign=True),
        net.half(),
    ],
    "nothing": lambda _: None,
}


def one_and_live(net, optimizer):
    """Tell whether the optimizer holds exactly the live parameters, each once, and state of no other."""
    live = {id(p) for p in net.parameters()}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return len(held) == len(set(held)) and set(held) == live and {id(p) for p in optimizer.state} <= live


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


def through_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def step(net, optimizer, x):
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "weakrefs"])
@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"swap": True}], ids=["plain", "overwrite", "swap"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_ties_and_optimizers_survive(make, body, flags, watched):
    """Every kind of tie, through every conversion, under each of torch's flags: same ties, live optimizer.

    Where torch itself refuses (it swaps no tensor that is weakly referenced), the ties hold all the same.
    """
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    step(net, optimizer, torch.rand(8, 4))
    references = [weakref.ref(p) for p in net.parameters()] if watched else []
    before = ties(net)
    refused = None
    with conversion(**flags):
        try:
            with keeping_ties(net, optimizer):
                body(net)
        except RuntimeError as error:
            refused = error
    assert ties(net) == before
    assert one_and_live(net, optimizer)
    assert refused is None or (watched and "swap" in str(refused))
    assert len(references) == (len(list(net.parameters())) if watched else 0)


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (shared_module, copy.deepcopy),
        (shared_parameter, copy.deepcopy),
        (shared_module, through_pickle),
        (shared_parameter, through_pickle),
        (shared_module, through_torch_save),
        (shared_parameter, through_torch_save),
        (shared_storage, through_torch_save),
    ],
)
def test_copies_keep_ties_by_themselves(make, copied):
    """What copies objects keeps shared modules and Parameters and their owners; torch.save keeps storage too."""
    net = make()
    other = copied(net)
    assert ties(other) == ties(net)
    assert all(mine is not theirs for mine, theirs in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "convert",
    [
        lambda net: net.load_state_dict(own_state(net), assign=True),
        lambda net: net.to(torch.float64).to(torch.float32),
        lambda net: [part.to("meta") for part in net][:0] or net.load_state_dict(SAVED["state"], assign=True),
    ],
    ids=["assign", "there and back", "through meta"],
)
@pytest.mark.parametrize("make", [shared_module, shared_parameter])
@pytest.mark.parametrize("overwrite", [False, True])
def test_training_goes_on_as_if_nothing_had_happened(make, convert, overwrite):
    """Three steps, a conversion, three steps: the bits of six undisturbed steps, moments included."""
    torch.manual_seed(0)
    net = make()
    untouched = copy.deepcopy(net)
    batches = torch.rand(6, 8, 4)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in (net, untouched)]
    for number, x in enumerate(batches):
        if number == 3:
            SAVED["state"] = own_state(net)
            with conversion(overwrite=overwrite), keeping_ties(net, optimizers[0]):
                convert(net)
        for model, optimizer in zip((net, untouched), optimizers, strict=True):
            step(model, optimizer, x)
    for mine, theirs in zip(net.state_dict().values(), untouched.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert len(optimizers[0].state) == len(optimizers[1].state)


SAVED = {}


def test_a_body_that_raises_leaves_ties_and_optimizer_whole():
    """The body's own error comes out, and what it broke before raising is mended."""
    net = shared_parameter()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def body():
        with keeping_ties(net, optimizer):
            net.to("meta")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        body()
    assert net[0].weight is net[2].weight
    assert one_and_live(net, optimizer)
    assert not getattr(caught.value, "__notes__", [])


def test_a_body_that_raises_with_a_conflict_keeps_its_error_and_notes_the_conflict():
    """Neither of the two is lost."""
    net = shared_parameter()

    def body():
        with keeping_ties(net):
            net[0].weight = nn.Parameter(torch.zeros(4, 4))
            net[2].weight = nn.Parameter(torch.ones(4, 4))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        body()
    assert any("2.weight" in note and "0.weight" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("start", ["cpu", "meta"])
def test_conflicting_values_are_an_error_that_names_both(start):
    """A state_dict that gives the two names different values is not silently resolved."""
    net = shared_parameter()
    with keeping_ties(net):
        net.to(start)
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in net.state_dict().items()}
    state["0.weight"] = torch.ones(4, 4)
    with pytest.raises(TieError, match=r"'2\.weight' and '0\.weight'.*different values"), keeping_ties(net):
        net.load_state_dict(state, assign=True)


def test_equal_bits_are_no_conflict_even_when_they_are_nan():
    """NaN with the same payload is the same value; with another payload it is not."""
    net = shared_parameter()
    values = torch.full((4, 4), float("nan"))
    state = own_state(net) | {"0.weight": values.clone(), "2.weight": values.clone()}
    with keeping_ties(net):
        net.load_state_dict(state, assign=True)
    assert net[0].weight is net[2].weight
    state["0.weight"].view(torch.int32)[0, 0] += 1
    with pytest.raises(TieError, match="different values"), keeping_ties(net):
        net.load_state_dict(state, assign=True)


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
@pytest.mark.parametrize("start", ["cpu", "meta"])
@pytest.mark.parametrize("make", [shared_parameter, shared_storage])
def test_a_state_dict_that_holds_one_name_fills_the_tie(make, name, start):
    """Files often hold a tied tensor once, under either name: that value wins over the one left alone."""
    net = make()
    with keeping_ties(net):
        net.to(start)
    state = {name: torch.full((4, 4), 3.0)}
    with keeping_ties(net):
        net.load_state_dict(state, strict=False, assign=True)
    assert (net[0].weight == 3).all()
    assert (net[2].weight == 3).all()
    assert len(ties(net)) == 1


def test_values_written_to_one_name_after_a_split_are_kept():
    """to_empty splits a meta tie; filling one of the two names is enough."""
    net = shared_parameter()
    with keeping_ties(net):
        net.to("meta")
    with keeping_ties(net):
        net.to_empty(device="cpu")
        nn.init.constant_(net[0].weight, 5)
    assert (net[2].weight == 5).all()


def test_filling_both_names_differently_after_a_split_is_an_error():
    """The sentence says to initialise after the block."""
    net = shared_parameter()
    with keeping_ties(net):
        net.to("meta")

    def fill(layer, value):
        nn.init.constant_(layer.to_empty(device="cpu").weight, value)

    with pytest.raises(TieError, match="after the block"), keeping_ties(net):
        fill(net[0], 5), fill(net[2], 6)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("make", [shared_parameter, shared_storage])
@pytest.mark.parametrize("overwrite", [False, True])
def test_converting_one_place_converts_the_tie(make, index, overwrite):
    """A module converted alone takes the tensor that it shares along."""
    net = make()
    values = net[0].weight.detach().clone()
    with conversion(overwrite=overwrite), keeping_ties(net):
        net[index].double()
    assert net[0].weight.dtype == net[2].weight.dtype == torch.float64
    assert torch.equal(net[0].weight.float(), values)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("make", [shared_parameter, shared_storage])
def test_values_win_over_the_meta_device(make, index):
    """One place that is sent to the meta device alone takes no values away from the tie."""
    net = make()
    values = net[0].weight.detach().clone()
    with keeping_ties(net):
        net[index].to("meta")
    assert torch.equal(net[0].weight, values)
    assert torch.equal(net[2].weight, values)
    assert len(ties(net)) == 1


def test_a_gradient_that_no_longer_fits_goes():
    """Of two Parameters over one storage, only one was converted: the other's gradient is of the old dtype."""
    net = shared_storage()
    net(torch.rand(8, 4)).sum().backward()
    gradient = net[2].weight.grad.clone()
    with keeping_ties(net):
        net[2].double()
    assert net[0].weight.dtype == torch.float64
    assert net[0].weight.grad is None
    assert torch.equal(net[2].weight.grad, gradient.double())


def test_places_converted_differently_are_an_error():
    """Half here and bfloat16 there can't be one tensor."""
    net = shared_parameter()
    says = r"float16.*bfloat16|bfloat16.*float16"
    with conversion(overwrite=True), pytest.raises(TieError, match=says), keeping_ties(net):
        net[0].half(), net[2].bfloat16()


def test_a_name_that_the_body_takes_away_is_an_error():
    """A tie of one name is none."""
    net = shared_parameter()
    with pytest.raises(TieError, match=r"'2\.weight'.*away"), keeping_ties(net):
        del net[2]
    assert net[2].weight.shape == (4,)


def test_an_optimizer_does_not_follow_a_name_that_means_another_tensor_now():
    """Taking a layer out of a Sequential renumbers the rest; the optimizer keeps those, the lost one is named."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["params"])
    with pytest.raises(TieError, match=r"holds '1\.weight'"), keeping_ties(net, optimizer):
        del net[1]
    assert all(one is other for one, other in zip(optimizer.param_groups[0]["params"], before, strict=True))


def test_a_shared_module_that_is_replaced_in_one_place_is_an_error():
    """Which of the two modules is meant can't be known."""
    net = shared_module()
    with pytest.raises(TieError, match="another module"), keeping_ties(net):
        net[3] = nn.Linear(4, 4)


def test_a_shared_module_replaced_everywhere_is_fine():
    """The same new module in each place is as one as the old was."""
    net = shared_module()
    with keeping_ties(net):
        net[1] = net[3] = nn.Linear(4, 4)
    assert [group.kind for group in ties(net)] == ["module", "module"]


def test_other_overlaps_that_are_lost_are_an_error():
    """A slice of a weight is no tie, so it is not kept, and that is said."""
    net = nn.ParameterDict({"whole": nn.Parameter(torch.zeros(4, 2))})
    net["part"] = nn.Parameter(net["whole"].data[1:3])
    with pytest.raises(TieError, match="'whole', 'part' overlapped"), keeping_ties(net):
        net.double()
    columns = nn.ParameterDict({"all": nn.Parameter(torch.zeros(4, 2))})
    columns["left"], columns["right"] = (nn.Parameter(columns["all"].data[:, i]) for i in range(2))
    del columns["all"]
    with keeping_ties(columns):
        columns.double()


def test_gradients_are_converted_with_their_parameter():
    """In the middle of an accumulation, the tie has one gradient, of the new dtype."""
    net = shared_parameter()
    net(torch.rand(8, 4)).sum().backward()
    gradient = net[0].weight.grad.clone()
    with conversion(overwrite=True), keeping_ties(net):
        net.double()
    assert torch.equal(net[0].weight.grad, gradient.double())
    net(torch.rand(8, 4, dtype=torch.float64)).sum().backward()
    assert net[2].weight.grad is net[0].weight.grad


def test_an_optimizer_of_another_model_is_refused_before_the_body_runs():
    """Also one whose model has been replaced under it: its steps would go nowhere."""
    net = shared_parameter()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.to("meta")
    with pytest.raises(TieError, match=r"optimizer 0 \(SGD\)"), keeping_ties(net, optimizer):
        pytest.fail("the body ran")


def test_groups_keep_their_options_and_names():
    """Only the tensors change: options, param_names and the order of groups stay, for several optimizers."""
    net = shared_parameter()
    named = dict(net.named_parameters())
    groups = [{"params": [(n, p)], "lr": 0.1 * i} for i, (n, p) in enumerate(named.items())]
    first, second = torch.optim.AdamW(groups), torch.optim.LBFGS(net.parameters())
    with keeping_ties(net, first, second):
        net.to("meta")
    assert [(g["lr"], g["param_names"]) for g in first.param_groups] == [
        (0.1 * i, [n]) for i, n in enumerate(named)
    ]
    assert one_and_live(net, first)
    assert one_and_live(net, second)
    assert second._params is second.param_groups[0]["params"]


def test_a_tie_made_inside_is_followed_too():
    """Two entries of an optimizer that became one Parameter are one entry, with the owner's name and state."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = torch.optim.Adam(net.named_parameters())
    step(net, optimizer, torch.rand(8, 4))
    moments = optimizer.state[net[0].weight]
    with keeping_ties(net, optimizer):
        tie(net, "0.weight", "1.weight")
    assert optimizer.param_groups[0]["params"] == [net[0].weight]
    assert optimizer.param_groups[0]["param_names"] == ["0.weight"]
    assert optimizer.state == {net[0].weight: moments}
    step(net, optimizer, torch.rand(8, 4))


def test_nothing_is_left_behind():
    """The hooks that watch assignments are gone afterwards, and so are the tensors that were replaced."""
    from torch.nn.modules import module

    net = shared_parameter()
    watchers = module._global_parameter_registration_hooks, module._global_buffer_registration_hooks
    hooks = [*map(len, watchers)]
    old = weakref.ref(net[0].weight)
    with keeping_ties(net):
        net.to("meta")
    gc.collect()
    assert old() is None
    assert [*map(len, watchers)] == hooks


def test_lazy_parameters_pass_through():
    """A model that is lazy in part, also where a lazy module is shared, is kept like any other."""
    lazy = nn.LazyLinear(4)
    net = nn.Sequential(nn.Linear(4, 4), lazy, lazy)
    with keeping_ties(net):
        net[0].double()
    assert net[1] is net[2]
