"""tk.recipe: whatever it gives out builds the same model; whatever it can't describe is named."""

from __future__ import annotations

import functools
import random
import threading
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from recipe_blocks import (
    Anything,
    Around,
    Config,
    Configured,
    Copies,
    Many,
    Mode,
    Plain,
    Tied,
    Unregistered,
    UnregisteredChild,
)
from stable_ids import stable
from torchkeep.errors import RecipeError
from torchkeep.recipes import try_recipe
from torchkeep.tables.survey import survey


def assert_rebuilt(net):
    """The recipe survives JSON, and what it builds is like ``net`` in all that it promises."""
    written = tk.recipe(net)
    assert tk.Recipe.from_json(written.to_json()) == written
    other = tk.build(written.to_dict())
    mine, theirs = survey(net), survey(other)
    assert [(row.names, row.shape, row.dtype, row.kind, row.trainable) for row in mine.listing.rows] == [
        (row.names, row.shape, row.dtype, row.kind, row.trainable) for row in theirs.listing.rows
    ]
    assert mine.listing.modules == theirs.listing.modules
    assert mine.ties == theirs.ties
    assert tk.recipe(other) == written
    return other


def mixed():
    """Containers in containers, blocks around blocks."""
    return nn.Sequential(
        nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.ModuleList([nn.ReLU(), Around(nn.Linear(3, 3), nn.GELU)])}),
        Around(Around(Plain(4, 4, "x", scale=2.0, option=[1, (2, {"k": None})]))),
        Many([nn.Conv2d(1, 2, 3, padding="same"), nn.Identity()], {"norm": nn.GroupNorm(1, 2)}),
        Copies(nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True), 2),
    )


def test_a_whole_model_is_rebuilt():
    """Blocks, torch.nn's modules and containers, nested in every way."""
    other = assert_rebuilt(mixed())
    assert other[1].body[0].body[0].options == {"option": [1, (2, {"k": None})]}
    assert isinstance(other[0]["b"][1].body[1], nn.GELU)


def test_a_recipe_is_equal_to_itself_only():
    """Equality is about what is said; the text shows the tree and what was changed."""
    assert tk.recipe(mixed()) == tk.recipe(mixed())
    assert tk.recipe(nn.Linear(2, 3)) != tk.recipe(nn.Linear(2, 4))
    shown = str(tk.recipe(mixed()))
    assert "torch.nn.Linear(in_features=2, out_features=3)" in shown
    assert "recipe_blocks.Around" in shown
    assert "('x',)" in shown
    assert "named={'norm': ...}" in shown
    assert "named['norm']: torch.nn.GroupNorm(num_groups=1, num_channels=2)" in shown


def test_the_text_of_a_recipe_is_short_whatever_was_given():
    """Long arguments are cut; configurations are shown by class and field."""
    assert len(str(tk.recipe(Anything(list(range(10_000)))))) < 200
    shown = str(tk.recipe(Configured(Config(2, mode=Mode.MEAN))))
    assert "config=tests.Config(width=2, rates=(0.1, 0.2), mode=tests.Mode.MEAN)" in shown


def test_a_lazy_module_that_was_run_is_no_longer_lazy():
    """It became a plain one, and is described as that."""
    net = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    net(torch.rand(4, 2))
    assert_rebuilt(net)
    assert tk.recipe(net) == tk.recipe(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_containers_of_the_users_own():
    """A subclass of Sequential with the inherited constructor, and a dataclass that is a module."""

    @tk.block(name="tests.test_writing.MySequential")
    class MySequential(nn.Sequential):
        pass

    @tk.block(name="tests.test_writing.DataModule")
    @dataclass(eq=False)
    class DataModule(nn.Module):
        width: int

        def __post_init__(self):
            super().__init__()
            self.linear = nn.Linear(self.width, self.width)

    net = MySequential(nn.Linear(2, 2), nn.ReLU(), MySequential(OrderedDict(a=nn.Linear(2, 2))))
    assert list(assert_rebuilt(net).state_dict()) == list(net.state_dict())
    assert_rebuilt(nn.Sequential(DataModule(3)))


def test_names_with_blanks_and_empty_places_are_kept():
    """add_module takes any name without dots, and None."""
    net = nn.Sequential()
    net.add_module("block 0", nn.Linear(1, 1))
    net.add_module("nothing", None)
    net.add_module("7", nn.ReLU())
    assert list(assert_rebuilt(net)._modules) == ["block 0", "nothing", "7"]


def shared_module():
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.ModuleList([shared]))


def shared_argument():
    shared = Plain(4, 4)
    return nn.Sequential(Around(shared), Around(shared), Many([shared, shared]))


def part_of_another_block():
    first = Around(nn.Linear(4, 4))
    return nn.Sequential(first, Around(first.body[0]), first.body)


def part_of_a_later_block():
    later = Plain(4, 4)
    return nn.Sequential(Around(later.linear), later)


def shared_parameter():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    tk.tie(net, "1.weight", "0.weight")
    net[2].bias = net[0].bias
    return net


def shared_storage():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = nn.Parameter(net[0].weight.data, requires_grad=False)
    return net


def shared_buffer():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    net[1].running_mean = net[0].running_mean
    return net


def parts_of_shared_modules():
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, nn.Sequential(inner))
    return nn.Sequential(outer, outer)


def blocks_over_one_module_each():
    first, second = Plain(4, 4), Plain(4, 4)
    second.linear = first.linear
    return nn.ModuleDict({"a": first, "b": second})


@pytest.mark.parametrize(
    "make",
    [
        shared_module,
        shared_argument,
        part_of_another_block,
        part_of_a_later_block,
        shared_parameter,
        shared_storage,
        shared_buffer,
        parts_of_shared_modules,
        blocks_over_one_module_each,
        Tied,
        lambda: nn.Sequential(Tied(), Tied(8)),
    ],
)
def test_what_is_shared_is_shared_again(make):
    """Modules in several places, through arguments, containers or assignment, and tensors under several names."""
    net = make()
    other = assert_rebuilt(net)
    mine, theirs = (survey(n).modules for n in (net, other))
    assert all((mine[a] is mine[b]) == (theirs[a] is theirs[b]) for a in mine for b in mine)


def test_what_comes_with_a_shared_module_is_not_said_again():
    """One line for the module, none for its parts and their tensors."""
    net = nn.ModuleDict({"a": Around(Around(nn.Linear(2, 2))), "b": Around(Around(nn.Linear(2, 2)))})
    net["b"].body = net["a"].body
    assert [(tie.kind, tie.names) for tie in tk.recipe(net).ties] == [("module", ("a.body", "b.body"))]
    assert_rebuilt(net)


def test_ties_survive_in_the_text():
    """The recipe says which names are one, the owner first."""
    assert "tied: 1.weight = 0.weight" in str(tk.recipe(shared_parameter()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda net: net.requires_grad_(requires_grad=False), "frozen: **"),
        (lambda net: net[1].linear.weight.requires_grad_(requires_grad=False), "frozen: 1.linear.weight"),
        (lambda net: net.bfloat16(), "bfloat16: 1.linear.weight, 1.linear.bias"),
        (lambda net: net[1].double(), "float64: 1.linear.weight, 1.linear.bias"),
        (lambda net: net.eval(), ""),
        (lambda net: net.to("meta"), ""),
    ],
)
def test_what_is_done_after_construction_is_written_down(change, says):
    """Frozen parameters and converted dtypes are part of the recipe; training mode and device are not."""
    net = nn.Sequential(nn.Linear(4, 4), Plain(4, 4))
    change(net)
    assert says in str(tk.recipe(net))
    assert_rebuilt(net)


def test_a_block_converted_as_a_whole_is_said_in_two_letters():
    """A large model in bfloat16 has no list of all its names in its recipe; integer buffers stay integers."""

    @tk.block(name="tests.test_writing.Normed")
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

    net = Normed().bfloat16()
    assert tk.recipe(net).dtypes == {"bfloat16": ("**",)}
    assert_rebuilt(net)


def test_thawed_parameters_are_written_down_too():
    """A constructor may freeze what the model has trainable."""

    @tk.block(name="tests.test_writing.Frozen")
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.linear.weight.requires_grad_(requires_grad=False)

    net = Frozen()
    net.linear.weight.requires_grad_()
    assert tk.recipe(net).trainable == ("linear.weight",)
    assert_rebuilt(net)


def test_a_given_module_that_was_replaced_is_described_as_it_is():
    """A new head where the constructor put the given one is as good as given."""
    net = Around(nn.Linear(4, 4))
    net.body[0] = nn.Linear(4, 4, bias=False)
    assert assert_rebuilt(net).body[0].bias is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.0,
        float("nan"),
        1 + 2j,
        "text",
        b"bytes",
        (1, [2, {"k": (3,)}]),
        {1, 2},
        {"module": {"child": "x"}},
        {"module": "x"},
        [{"template": 1}],
        torch.float8_e5m2,
        torch.Size([1, 2]),
        torch.channels_last,
        torch.nn.functional.gelu,
        torch.tanh,
        torch.nn.init.xavier_uniform_,
        nn.LayerNorm,
        Plain,
        functools.partial(nn.LayerNorm, eps=1e-6),
        Mode.MEAN,
        Config(8, mode=Mode.MEAN),
        [Config(), {"inner": Config(1)}],
    ],
    ids=stable,
)
def test_arguments_of_every_kind_come_back(value):
    """Equal, and of the same type, also inside containers; nothing of the user's is taken for a module."""
    back = assert_rebuilt(Anything(value)).value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_a_device_given_in_other_words_comes_back():
    """Only an argument called `device` is about placement."""
    assert assert_rebuilt(Anything(torch.device("cpu"))).value == torch.device("cpu")


def test_dataclasses_and_enums_of_the_user_are_arguments():
    """A configuration object is rebuilt as the class that it was."""
    other = assert_rebuilt(Configured(Config(6, (0.5,), Mode.MEAN)))
    assert other.config == Config(6, (0.5,), Mode.MEAN)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: 0, "code"),
        (torch.zeros(2, 3), r"tensor of shape \(2, 3\)"),
        (Unregistered, "Unregistered is not registered"),
        (object(), "object"),
        ([1, {"deep": lambda: 0}], r"value\[1\]\['deep'\]"),
        (functools.partial(print), "code"),
        (Unregistered(), "became no child.*Unregistered"),
    ],
)
def test_an_argument_that_json_can_not_hold_is_named(value, says):
    """The error says where, which class, which argument, what it is and what to do."""
    net = nn.ModuleDict({"part": Anything(None)})
    if isinstance(value, nn.Module):
        value = [value]  # in a list, so that it becomes no child
    net["part"] = Anything(value)
    with pytest.raises(RecipeError, match=rf"(?s).*{says}") as caught:
        tk.recipe(net)
    assert "part: argument value" in str(caught.value)
    assert "of recipe_blocks.Anything: " in str(caught.value)
    assert try_recipe(net) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda net: net.update({"x": Unregistered()}), r"x: recipe_blocks\.Unregistered is not registered"),
        (lambda net: net.update({"x": UnregisteredChild(2)}), "its base Plain is registered does not count"),
        (lambda net: net.update({"x": nn.LazyLinear(2)}), "x: .*lazy; run the model once"),
        (
            lambda net: parametrizations.weight_norm(net["plain"].linear),
            r"plain\.linear.*ParametrizedLinear|after construction",
        ),
        (lambda net: parametrizations.weight_norm(net["torch"]), "torch: it is parametrized"),
        (
            lambda net: vars(net["plain"]).pop("_torchkeep_arguments"),
            "plain: this instance of .* does not know its arguments",
        ),
        (lambda net: net["plain"].add_module("more", nn.ReLU()), r"plain\.more: this module \(ReLU\) was added"),
        (
            lambda net: net["around"].body.append(nn.Linear(2, 2)),
            r"around\.body\.2\.weight: this parameter was added",
        ),
        (lambda net: net["around"].body.__delitem__(0), r"around\.body\.1: this module, .* is not in the model"),
        (
            lambda net: setattr(net["plain"], "linear", nn.Linear(2, 9)),
            r"plain\.linear\.weight: its shape is \(9, 2\)",
        ),
        (
            lambda net: setattr(net["plain"], "linear", nn.Bilinear(1, 1, 1)),
            "it is a Bilinear, and the constructor makes a Linear",
        ),
        (lambda net: net["plain"].register_buffer("b", torch.zeros(1)), r"plain\.b: this buffer was added"),
        (lambda net: setattr(net["plain"], "size", 5), r"plain\.size: it is 5, the constructor sets 2"),
        (lambda net: setattr(net["torch"], "note", 5), r"torch\.note: this attribute was set after"),
        (lambda net: delattr(net["plain"], "size"), r"plain\.size: .*is gone"),
        (lambda net: net["plain"].register_forward_hook(print), r"plain\._forward_hooks"),
        (
            lambda net: setattr(net["plain"], "forward", lambda x: x),
            r"plain\.forward: this attribute was set after",
        ),
        (
            lambda net: net["plain"].linear.__setattr__("weight", nn.Parameter(torch.zeros(3, 2))),
            r"plain\.linear\.weight: its shape",
        ),
        (
            lambda net: net["tied"].head.__setattr__("weight", nn.Parameter(torch.zeros(7, 4))),
            "constructor makes this tie",
        ),
        (
            lambda net: net["tied"].register_buffer("cache", torch.zeros(3)),
            r"tied\.cache: its persistence is True",
        ),
    ],
)
def test_what_a_rebuild_would_not_have_is_named(change, says):
    """Everything that was done to a model behind its constructors' backs is an error that names it."""
    net = nn.ModuleDict(
        {"plain": Plain(2, 4), "torch": nn.Linear(2, 2), "around": Around(nn.Linear(2, 2)), "tied": Tied()}
    )
    tk.recipe(net)
    change(net)
    with pytest.raises(RecipeError, match=rf"(?s).*{says}"):
        tk.recipe(net)


def test_everything_that_is_wrong_is_told_at_once():
    """One error for all parts that can't be described, but not more than a screen of it."""
    net = nn.Sequential(Unregistered(), nn.LazyLinear(1), Anything(print), *(Unregistered() for _ in range(40)))
    with pytest.raises(RecipeError) as caught:
        tk.recipe(net)
    lines = str(caught.value).splitlines()
    assert [line.strip().split(":")[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[-1].strip() == "... and 23 more"


def test_parametrizations_made_by_a_block_are_rebuilt():
    """What a constructor does, it does again, on the meta device or where that can't be on the CPU."""

    @tk.block(name="tests.test_writing.Normal")
    class Normal(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.linear = getattr(parametrizations, make)(nn.Linear(3, 3))

    for make in ("weight_norm", "spectral_norm", "orthogonal"):
        assert_rebuilt(Normal(make))


def test_a_constructor_that_computes_with_values_is_rebuilt_on_the_cpu():
    """Values and devices are others on the meta device; the recipe is verified all the same."""

    @tk.block(name="tests.test_writing.Computing")
    class Computing(nn.Module):
        def __init__(self):
            super().__init__()
            rates = torch.linspace(0, 1, 3)
            self.layers = nn.ModuleList(nn.Dropout(rate.item()) for rate in rates)
            self.where = rates.device
            self.words = f"made on {rates.device}"

    assert [layer.p for layer in assert_rebuilt(Computing()).layers] == [0, 0.5, 1]


def test_an_attribute_that_tells_the_device_is_compared_on_the_cpu():
    """Only a real rebuild sets what the model has."""

    @tk.block(name="tests.test_writing.Telling")
    class Telling(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = f"made on {torch.empty(0).device}"

    assert_rebuilt(Telling())


def test_a_tie_of_storage_survives_a_conversion():
    """What a constructor ties over one storage, and what was converted since, are one again after a rebuild."""

    @tk.block(name="tests.test_writing.OverOneStorage")
    class OverOneStorage(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
            self.other.weight = nn.Parameter(self.one.weight.data)

    net = OverOneStorage()
    with tk.keeping_ties(net):
        net.bfloat16()
    assert [tie.kind for tie in tk.ties(assert_rebuilt(net))] == ["storage"]


def test_an_attribute_that_a_constructor_draws_is_refused():
    """A rebuild would draw another value, and nobody would know."""

    @tk.block(name="tests.test_writing.Drawing")
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.number = random.random()  # noqa: S311 - any number that changes
            self.lock = threading.Lock()
            self.function = lambda: self.number

    with pytest.raises(RecipeError, match="number") as caught:
        tk.recipe(Drawing())
    assert "lock" not in str(caught.value)


def test_attributes_that_say_the_same_are_the_same():
    """Functions of one text, bound methods, tensors of one shape, and references to parts of the model itself."""

    @tk.block(name="tests.test_writing.Attributes")
    class Attributes(nn.Module):
        def __init__(self, factor=2.0):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.times = lambda x: x * factor
            self.bound = self.linear.forward
            self.parts = [self.linear, {"weight": self.linear.weight}]
            self.nan = (float("nan"), {1, 2}, range(3))
            self.table = torch.arange(4)
            self.config = Config()

    assert_rebuilt(Attributes(3.0))


def test_random_states_and_warnings_stay_as_they_were():
    """A recipe is asked for in the middle of training: the rebuild draws from nobody's generator."""
    numpy = pytest.importorskip("numpy")

    @tk.block(name="tests.test_writing.Noisy")
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.seen = torch.rand(2).tolist() is None
            random.shuffle([1, 2, 3]), numpy.random.random()

    net = Noisy()
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    tk.recipe(net)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]


def test_a_large_model_costs_no_memory():
    """The rebuild of a model on the meta device is on the meta device too: this one would take 4 TB."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(10**6, 10**6), Around(nn.Linear(10**6, 10**6)))
    assert tk.recipe(net).root.children["0"].args == {"in_features": 10**6, "out_features": 10**6}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_no_part_of_a_recipe(wrap):
    """A wrapped model has the recipe of the bare one."""
    net = nn.Sequential(nn.Linear(2, 2), Plain(2))
    assert tk.recipe(wrap(net)) == tk.recipe(net)


def test_another_default_dtype_changes_nothing():
    """A recipe says float32 by saying nothing; what else there is, it says."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        net = nn.Sequential(nn.Linear(2, 2), Plain(2))
        written = tk.recipe(net)
        assert torch.get_default_dtype() is torch.float64
        assert tk.build(written)[1].linear.weight.dtype is torch.float64
    finally:
        torch.set_default_dtype(before)
    assert tk.build(written)[1].linear.weight.dtype is torch.float64


def test_modules_nested_too_deep_are_refused():
    """Sixty deep is fine; seventy is told, and not a RecursionError."""

    def nested(depth):
        net = nn.Linear(1, 1)
        for _ in range(depth):
            net = nn.Sequential(net)
        return net

    assert_rebuilt(nested(60))
    with pytest.raises(RecipeError, match="nested more than 64 deep"):
        tk.recipe(nested(70))


def test_patterns_with_shared_parts_are_refused():
    """A module that is only copied can't hold one module twice."""
    shared = nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="one module in two places"):
        tk.recipe(Copies(nn.Sequential(shared, shared), 2))
