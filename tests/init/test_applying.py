"""Applying: in place, into any kind of memory, with ties kept, and all or nothing."""

import copy

import pytest
import torch
from torch import nn

import torchkeep as tk

init = tk.init


def make_net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.block = nn.Linear(4, 4)
        self.again = self.block
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_unchanged(net, before):
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_parameters_stay_the_same_objects():
    """References held by an optimizer, requires_grad and gradients stay; the optimizer steps what was filled."""
    net = make_net()
    net[0].bias.requires_grad_(requires_grad=False)
    net(torch.randn(3, 6)).sum().backward()
    held = dict(net.named_parameters())
    gradients = {name: value.grad for name, value in held.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    tk.initialize(net, {"**": init.ones()})
    for name, value in net.named_parameters():
        assert value is held[name]
        assert value.grad is gradients[name]
        assert value.requires_grad == (name != "0.bias")
    optimizer.step()
    assert torch.equal(net[2].bias, 1 - gradients["2.bias"])


def test_autograd_notices_the_change():
    """A graph that was built on the old values refuses to go backward, as after any in-place change."""
    for initializer in (init.normal(), init.zeros(), init.orthogonal()):
        net = nn.Linear(3, 3, bias=False)
        x = torch.randn(2, 3, requires_grad=True)
        loss = net(x).pow(2).sum()
        tk.initialize(net, {"**": initializer})
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


LAYOUTS = {
    "channels last": lambda: torch.empty(8, 6, 5, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.empty(90, 8).T,
    "every second column": lambda: torch.empty(8, 180)[:, ::2],
    "at an odd offset": lambda: torch.empty(721)[1:].view(8, 90),
    "in a flat buffer": lambda: torch.empty(5000)[1234 : 1234 + 720].view(8, 90),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "initializer",
    [init.normal(), init.trunc_normal(), init.uniform(), init.constant(3), init.orthogonal(), init.keep()],
    ids=str,
)
def test_memory_of_any_layout_gets_the_same_values(layout, initializer):
    """Strides and offsets change no value, and nothing beside the tensor is written."""
    made = LAYOUTS[layout]()
    whole = made._base if made._base is not None else made
    whole.fill_(-77)
    net, plain = nn.Module(), nn.Module()
    net.w, plain.w = nn.Parameter(made), nn.Parameter(torch.full(made.shape, -77.0))
    strides = net.w.stride()
    tk.initialize(net, {"w": initializer})
    tk.initialize(plain, {"w": initializer})
    assert torch.equal(net.w, plain.w)
    assert net.w.stride() == strides
    assert int((whole == -77).sum()) == whole.numel() - (0 if initializer == init.keep() else made.numel())


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.complex64],
)
@pytest.mark.parametrize("initializer", [init.normal(), init.uniform(-1, 1), init.custom(nn.init.ones_)], ids=str)
def test_every_dtype_is_filled_with_rounded_draws(dtype, initializer):
    """The parameter holds what the plan's values say, in its own dtype."""
    if initializer.title == "custom":
        initializer = init.custom(lambda tensor, generator: nn.init.uniform_(tensor, generator=generator))
    net = nn.Module()
    net.w = nn.Parameter(torch.empty(70, 1000, dtype=dtype), requires_grad=False)
    plan = tk.initialize(net, {"w": initializer})
    values = plan.values("w")
    assert values.dtype == dtype
    assert torch.equal(net.w.view(torch.uint8), values.view(torch.uint8))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert net.w.to(wide).isfinite().all()
    assert net.w.to(wide).std() > 0.2


def test_ties_are_kept_and_drawn_once():
    """A shared Parameter and a shared module stay shared, under one key each."""
    net = Tied()
    plan = tk.initialize(net, {"**": init.normal(), "**.bias": init.zeros()})
    assert net.head.weight is net.embed.weight
    assert net.again is net.block
    assert [row.name for row in plan] == ["embed.weight", "again.weight", "again.bias"]
    assert torch.equal(net.head.weight, plan.values("embed.weight"))


def test_parameters_over_one_storage_are_drawn_once():
    """Two Parameter objects on the same memory are a tie: one row, and both show the values."""
    net = nn.Module()
    net.a = nn.Parameter(torch.empty(4, 4))
    net.b = nn.Parameter(net.a.detach())
    plan = tk.initialize(net, {"**": init.normal()})
    assert len(plan) == 1
    assert torch.equal(net.b, plan.values("a"))


def test_a_meta_model_is_materialised():
    """Ties, buffers that can be rebuilt, dtype, requires_grad and the class of a Parameter come through."""
    with torch.device("meta"):
        net = nn.ModuleDict({"tied": Tied(), "norm": nn.BatchNorm1d(4)})
    net.norm.weight.requires_grad_(requires_grad=False)
    net.tied.block.bfloat16()
    rules = {"**": init.normal(), "norm.*": init.torch_default(), "**.block.*": init.torch_default()}
    plan = tk.initialize(net, rules, device="cpu")
    assert net["tied"].head.weight is net["tied"].embed.weight
    assert torch.equal(net["tied"].head.weight, plan.values("tied.embed.weight"))
    assert net["tied"].block.weight.dtype == torch.bfloat16
    assert (net.norm.running_var == 1).all()
    assert not net.norm.weight.requires_grad
    assert not any(value.is_meta or value.isnan().any() for value in net.state_dict().values())


def test_a_model_partly_on_the_meta_device_keeps_the_rest():
    """Only what has no values needs some; what is real may be kept, and is."""
    net = make_net()
    with torch.device("meta"):
        net.append(nn.Linear(4, 4))
    before = snapshot(net[0])
    tk.initialize(net, {"**": init.keep(), "3.*": init.uniform()})
    assert_unchanged(net[0], before)
    assert net[3].weight.device.type == "cpu"


def test_without_a_device_a_meta_model_goes_to_the_default_one():
    """The caller's default device, unless that is the meta device itself."""
    for context in (torch.device("cpu"), torch.device("meta")):
        with torch.device("meta"):
            net = make_net()
        with context:
            tk.initialize(net, {"**": init.torch_default()})
        assert {value.device.type for value in net.state_dict().values()} == {"cpu"}


def test_a_device_for_a_real_model_must_be_where_it_is():
    """`device` does not move a model that has values; the error says how to."""
    net = make_net()
    tk.initialize(net, {"**": init.zeros()}, device="cpu")
    before = snapshot(net)
    with pytest.raises(tk.errors.RuleError, match=r"is on cpu already; leave device away, or move the model"):
        tk.initialize(net, {"**": init.ones()}, device="meta")
    assert_unchanged(net, before)


def test_a_buffer_that_can_not_be_rebuilt_leaves_the_model_on_the_meta_device():
    """Materialising is all or nothing."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))
            self.w = nn.Parameter(torch.ones(4))

    with torch.device("meta"):
        net = Positions()
    with pytest.raises(tk.errors.MaterializeError, match="table"):
        tk.initialize(net, {"w": init.ones()})
    assert net.w.is_meta


BROKEN = {
    "raises": (lambda *_: 1 / 0, ZeroDivisionError, "division by zero"),
    "returns another shape": (
        lambda *_: torch.zeros(2),
        tk.errors.RuleError,
        r"returns one of shape \(4, 8\); it returned shape \(2,\)",
    ),
    "returns no tensor": (lambda *_: 5, tk.errors.RuleError, "it returned 5"),
    "does nothing": (lambda *_: None, tk.errors.RuleError, "left 32 of the 32 elements"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("meta", [False, True])
def test_a_failure_half_way_leaves_the_model_as_it_was(broken, meta):
    """A custom function that fails at the last parameter: nothing is written, and the error says where it was."""
    function, kind, sentence = BROKEN[broken]
    with torch.device("meta" if meta else "cpu"):
        net = make_net()
    before = snapshot(net)
    versions = [value._version for value in net.parameters()]
    with pytest.raises(kind, match=sentence) as caught:
        tk.initialize(
            net, {"**": init.torch_default(), "0.weight": init.normal(), "2.weight": init.custom(function)}
        )
    assert "while '2.weight' was drawn by the rule '2.weight'; nothing was changed" in caught.value.__notes__[0]
    assert [value._version for value in net.parameters()] == versions
    if not meta:
        assert_unchanged(net, before)
    assert all(value.is_meta == meta for value in net.parameters())
    assert torch.get_num_threads() == THREADS


THREADS = torch.get_num_threads()


def test_a_function_that_fills_a_part_is_refused():
    """Elements that nobody set are counted and named, not kept silently."""

    def first_row(tensor, generator):
        tensor[0].normal_(generator=generator)

    with pytest.raises(
        tk.errors.RuleError, match=r"custom\(.*first_row\) left 24 of the 32 elements of '2\.weight' NaN"
    ):
        tk.initialize(make_net(), {"**": init.zeros(), "2.weight": init.custom(first_row)})


def test_custom_gets_a_tensor_and_a_generator():
    """Global shape, CPU, float32 for bfloat16, no autograd; it may fill or return; integers may be filled too."""
    seen = []

    def fill(tensor, generator):
        seen.append((tuple(tensor.shape), tensor.dtype, tensor.requires_grad, torch.is_grad_enabled()))
        assert isinstance(generator, torch.Generator)
        return torch.rand(tensor.shape, generator=generator).double()

    net = nn.Module()
    net.w = nn.Parameter(torch.empty(3, 2, dtype=torch.bfloat16))
    net.n = nn.Parameter(torch.empty(3, dtype=torch.int64), requires_grad=False)
    plan = tk.initialize(
        net, {"w": init.custom(fill), "n": init.custom(lambda t, g: t.random_(5, 9, generator=g))}
    )
    assert seen == [((3, 2), torch.float32, False, False)]
    assert ((net.w >= 0) & (net.w <= 1)).all()
    assert torch.equal(net.w, plan.values("w"))
    assert net.n.min() >= 5


def test_custom_functions_that_use_global_generators_are_keyed_too():
    """nn.init without its generator argument, say: the same values every time, and nothing global consumed."""
    rule = init.custom(lambda tensor, _: nn.init.normal_(tensor))
    one, other = nn.Linear(5, 5), nn.Linear(5, 5)
    tk.initialize(one, {"bias": init.zeros(), "weight": rule})
    state = torch.get_rng_state()
    tk.initialize(other, {"bias": init.zeros(), "weight": rule})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.weight, other.weight)


def test_inference_mode_is_no_obstacle():
    """Drawing under torch.inference_mode, for a model made in it too, gives the same values, in threads too."""
    rules = {"**": init.trunc_normal(), "bias": init.torch_default()}
    net = nn.Linear(500, 600)
    plan = tk.initialize(net, rules)
    with torch.inference_mode():
        inside = nn.Linear(500, 600)
        tk.initialize(inside, rules)
        assert torch.equal(plan.values("weight"), net.weight)
        plan.apply()
    assert torch.equal(inside.weight, net.weight)
    assert torch.equal(inside.bias, net.bias)


def test_a_plan_can_be_applied_again_and_to_copies():
    """Applying twice gives the same; a deepcopy gets the same values by its own plan."""
    net = make_net()
    rules = {"**": init.torch_default(), "0.weight": init.normal()}
    plan = tk.initialize(net, rules, seed=4)
    first = snapshot(net)
    tk.initialize(net, {"**": init.zeros()})
    plan.apply()
    assert_unchanged(net, first)
    other = copy.deepcopy(net)
    tk.initialize(other, rules, seed=4)
    assert_unchanged(other, first)


def test_one_parameter_module_at_the_root():
    """A model that is one layer has names without dots."""
    net = nn.Linear(3, 2)
    plan = tk.initialize(net, {"weight": init.xavier_uniform(), "bias": init.torch_default()})
    assert torch.equal(net.weight, plan.values("weight"))
    assert torch.equal(net.bias, plan.values("bias"))


def test_a_parameter_subclass_stays_what_it_is():
    """Filling in place keeps class and attributes."""

    class Marked(nn.Parameter):
        pass

    net = nn.Module()
    net.w = Marked(torch.zeros(20))
    net.w.note = "kept"
    tk.initialize(net, {"w": init.normal()})
    assert type(net.w) is Marked
    assert net.w.note == "kept"
    assert net.w.std() > 0
