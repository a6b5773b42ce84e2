"""A value depends on seed, name, global shape and global index: on nothing else, and on all of these."""

import copy
import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from drawing_help import drawn
from torchkeep.init.distributions import Normal, Truncated, Uniform
from torchkeep.init.drawing import Job

DISTRIBUTIONS = [Normal(0, 1), Uniform(-1, 1), Truncated(0, 1, -2, 2), Truncated(0, 1, 6, 8)]

RULES = {
    "**.weight": tk.init.kaiming_normal(),
    "**.bias": tk.init.uniform(-1, 1),
    "norm.*": tk.init.torch_default(),
    "first.weight": tk.init.trunc_normal(),
    "last.weight": tk.init.orthogonal(),
    "last.bias": tk.init.custom(lambda tensor, generator: tensor.normal_(generator=generator)),
    "middle.bias": tk.init.torch_default(),
}


class Net(nn.Module):
    def __init__(self, names=("first", "norm", "middle", "extra", "last"), **options):
        super().__init__()
        for name in names:
            if name == "norm":
                self.norm = nn.LayerNorm(300, **options)
            else:
                self.add_module(name, nn.Linear(300, 301, **options))


def values(net):
    return {name: value.detach().clone() for name, value in net.named_parameters()}


@pytest.fixture(scope="module")
def reference():
    net = Net()
    tk.initialize(net, RULES, seed=11)
    return values(net)


@pytest.mark.parametrize(
    "names",
    [
        ("last", "extra", "middle", "norm", "first"),
        ("first", "norm", "middle", "last"),
        ("first", "new", "norm", "another", "middle", "extra", "last"),
    ],
    ids=["reordered", "removed", "added"],
)
def test_other_layers_do_not_matter(reference, names):
    """Layers added, removed or put in another order: what is still there has the same bits."""
    net = Net(names)
    tk.initialize(net, RULES, seed=11)
    shared = {name: value for name, value in values(net).items() if name in reference}
    assert len(shared) >= 6
    assert all(torch.equal(value, reference[name]) for name, value in shared.items())


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_do_not_matter(reference, threads):
    """One, two or four threads of torch: the same bits, and the number is what it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        net = Net()
        tk.initialize(net, RULES, seed=11)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, reference[name]) for name, value in values(net).items())


def test_the_callers_thread_does_not_matter(reference):
    """Two threads that initialise two models at once get the same bits as one alone."""
    # Only what is drawn element by element: reset methods share torch's one global generator.
    rules = {"**": tk.init.keep(), "*.bias": RULES["**.bias"], "{middle,first}.weight": RULES["**.weight"]}
    nets = [Net(), Net()]
    threads = [threading.Thread(target=tk.initialize, args=(net, rules), kwargs={"seed": 11}) for net in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net in nets:
        for name in ("middle.weight", "first.bias"):
            assert torch.equal(net.get_parameter(name), reference[name])


def test_the_meta_device_does_not_matter(reference):
    """A model built on the meta device gets the same bits when it is materialised."""
    net = Net(device="meta")
    plan = tk.init.plan(net, RULES, seed=11)
    assert all(value.is_meta for value in net.parameters())
    plan.apply("cpu")
    assert all(torch.equal(value, reference[name]) for name, value in values(net).items())


def test_what_was_there_before_does_not_matter(reference):
    """Garbage or NaN in the parameters, or a plan applied before, leaves no trace."""
    net = Net()
    with torch.no_grad():
        for value in net.parameters():
            value.fill_(float("nan"))
    for _ in range(2):
        tk.initialize(net, RULES, seed=11)
        assert all(torch.equal(value, reference[name]) for name, value in values(net).items())


def test_global_generators_do_not_matter_and_are_not_used(reference):
    """Whatever the global seed, the bits are the same; and the global generator is where it was."""
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    net = Net()
    torch.set_rng_state(state)
    tk.initialize(net, RULES, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, reference[name]) for name, value in values(net).items())


def test_a_default_device_or_dtype_does_not_matter(reference):
    """Initialising under `with torch.device("meta")` or another default dtype gives the same bits."""
    net, other = Net(), Net()
    with torch.device("meta"):
        tk.initialize(net, RULES, seed=11)
    torch.set_default_dtype(torch.float64)
    try:
        tk.initialize(other, RULES, seed=11)
    finally:
        torch.set_default_dtype(torch.float32)
    for one in (net, other):
        assert all(torch.equal(value, reference[name]) for name, value in values(one).items())


def test_where_the_model_sits_does_matter():
    """The canonical name is part of the key: the same layer under another name has other values."""
    inner = Net()
    outer = nn.ModuleDict({"inner": copy.deepcopy(inner)})
    tk.initialize(inner, {"**": tk.init.normal()})
    tk.initialize(outer, {"**": tk.init.normal()})
    assert not torch.equal(inner.first.weight, outer["inner"].first.weight)


def test_wrappers_are_no_part_of_the_key():
    """A wrapped model gets the bits of the bare one."""
    bare, wrapped = Net(), Net()
    tk.initialize(bare, {"**": tk.init.normal()})
    tk.initialize(nn.DataParallel(wrapped), {"**": tk.init.normal()})
    assert torch.equal(bare.first.weight, wrapped.first.weight)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_other_keys_give_independent_values(distribution):
    """Another seed, name or shape gives values that do not correlate: not even where only a high bit differs."""
    n = 40_000
    keys = [
        {"seed": 0, "name": "a"},
        {"seed": 1, "name": "a"},
        {"seed": 2**32, "name": "a"},
        {"seed": 2**64, "name": "a"},
        {"seed": -1, "name": "a"},
        {"seed": 0, "name": "b"},
        {"seed": 0, "name": "a.b"},
        {"seed": 0, "name": "a", "shape": (200, 200)},
        {"seed": 0, "name": "a", "shape": (1, 40_000)},
    ]
    rows = [drawn(distribution, **{"shape": n} | key, dtype=torch.float64).flatten() for key in keys]
    correlations = torch.corrcoef(torch.stack(rows)) - torch.eye(len(keys))
    assert correlations.abs().max() < 4.5 / n**0.5


@given(st.text(max_size=4), st.text(max_size=4), *[st.lists(st.integers(0, 300), max_size=3)] * 2)
@example("a\x01" + 7 * "\0", "a", [], [1])
@example("a", "a\x01" + 7 * "\0", [1], [])
def test_no_two_tensors_have_one_key(name, other, shape, others):
    """Names and shapes are spelled so that none runs into the next: not even a name of odd bytes into a shape."""
    jobs = [Job(None, b"", *facts, None, 0, 0) for facts in ((name, tuple(shape)), (other, tuple(others)))]
    assert (jobs[0].message == jobs[1].message) == (name == other and shape == others)


def test_small_tensors_do_not_depend_on_their_neighbours():
    """Sizes that are no multiple of anything, drawn one after another, equal each drawn alone."""
    net = nn.ParameterList([nn.Parameter(torch.empty(size)) for size in (700, *range(1, 40), 640, 17, 5000, 3)])
    for initializer in (tk.init.normal(), tk.init.uniform(), tk.init.trunc_normal(), tk.init.trunc_normal(high=9)):
        for dtype in (torch.float64, torch.float32):
            plan = tk.initialize(net.to(dtype), {"**": initializer})
            assert all(torch.equal(value, plan.values(str(place))) for place, value in enumerate(net))
        assert len({value[0].item() for value in net.parameters()}) == len(net)


def test_chunks_of_one_tensor_are_independent():
    """The chunks of a large tensor are not copies of each other, shifted or not."""
    chunks = drawn(Normal(0, 1), 1 << 19).view(8, 65536)
    correlations = torch.corrcoef(chunks) - torch.eye(8)
    assert correlations.abs().max() < 4.5 / 256


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_the_dtype_only_rounds():
    """bfloat16, float16 and float8 hold the float32 values, rounded; complex ones are pairs of them."""
    whole = drawn(Normal(0, 1), (300, 301))
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert torch.equal(drawn(Normal(0, 1), (300, 301), dtype=dtype).float(), whole.to(dtype).float())
    pairs = drawn(Normal(0, 1), (300, 301), dtype=torch.complex64)
    halves = drawn(Normal(0, 1), (300, 301), dtype=torch.complex32)
    assert torch.equal(torch.view_as_real(pairs).half(), torch.view_as_real(halves))


INDICES = st.one_of(
    st.integers(0, 2), st.builds(slice, *[st.one_of(st.none(), st.integers(-400, 400))] * 2, st.integers(1, 5))
)


@settings(max_examples=100, deadline=None)
@example(
    distribution=DISTRIBUTIONS[0],
    shape=(300, 301),
    index=[slice(5, 9), slice(2, None, 3)],
    dtype=torch.complex64,
    ellipsis=False,
)
@example(
    distribution=DISTRIBUTIONS[2],
    shape=(70_001,),
    index=[slice(65_530, 65_540)],
    dtype=torch.complex64,
    ellipsis=True,
)
@example(
    distribution=DISTRIBUTIONS[1],
    shape=(5, 40, 700),
    index=[2, slice(3, 30, 2)],
    dtype=torch.bfloat16,
    ellipsis=False,
)
@given(
    distribution=st.sampled_from(DISTRIBUTIONS),
    shape=st.sampled_from([(), (7,), (70_001,), (3, 5), (300, 301), (5, 40, 700), (3, 1, 2, 30_000), (3, 0, 4)]),
    index=st.lists(INDICES, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    ellipsis=st.booleans(),
)
def test_a_part_drawn_alone_equals_that_part_of_the_whole(distribution, shape, index, dtype, ellipsis):
    """Any basic index: rows, columns, single elements, steps, nothing at all; over several chunks."""
    index = (*((...,) if ellipsis else ()), *index[: len(shape)])
    whole = drawn(distribution, shape, dtype=dtype)
    try:
        expected = whole[index]
    except IndexError:
        with pytest.raises(IndexError):
            drawn(distribution, shape, dtype=dtype, index=index)
        return
    part = drawn(distribution, shape, dtype=dtype, index=index)
    assert part.dtype == dtype
    assert part.is_contiguous()
    assert torch.equal(part, expected)


@pytest.mark.parametrize(
    "index", [(slice(None), slice(3, 5)), (slice(2, 900, 7), 0), (slice(None), slice(0, 5000, 999))]
)
def test_a_column_of_a_large_tensor_is_drawn_piece_by_piece(index):
    """A part that is spread over more than is drawn at a time equals the same part of the whole."""
    shape = (1000, 5000)
    assert torch.equal(drawn(Uniform(0, 1), shape, index=index), drawn(Uniform(0, 1), shape)[index])


@pytest.mark.parametrize("rule", RULES.values(), ids=str)
def test_the_plan_gives_parts_of_every_initializer(rule):
    """`plan.values` of a part is that part of what is applied, for what is drawn whole too."""
    net = nn.Sequential(nn.Linear(300, 301), nn.Linear(300, 301, bias=False))
    plan = tk.init.plan(net, {"**": tk.init.zeros(), "0.weight": rule})
    plan.apply()
    assert torch.equal(plan.values("0.weight"), net[0].weight)
    assert torch.equal(plan.values("0.weight", (slice(5, 200), slice(None, None, 3))), net[0].weight[5:200, ::3])
    assert torch.equal(plan.values("0.bias", slice(3)), torch.zeros(3))
