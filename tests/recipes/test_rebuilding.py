"""tk.build: what a recipe says and nothing else; whatever is hostile or merely wrong is a RecipeError."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from recipe_blocks import Anything, Around, Config, Configured, Many, Mode, Plain
from torchkeep.errors import MissingFileError, RecipeError, TorchkeepError, UnknownBlockError


def recipe_of(root, **more):
    """The dict of a recipe around a root entry."""
    return {"format": "torchkeep-recipe", "version": 1, "root": root, **more}


def anything(value):
    """The entry of a block with one argument."""
    return {"block": "recipe_blocks.Anything", "args": {"value": value}}


def linear(size=2, **more):
    return {"block": "torch.nn.Linear", "args": {"in_features": size, "out_features": size}, **more}


def sequential(*children):
    return {"block": "torch.nn.Sequential", "children": {str(i): child for i, child in enumerate(children)}}


def test_a_recipe_is_built_from_every_form_of_it(tmp_path):
    """A Recipe, its dict, and the path of its JSON, as str and as Path, make the same model."""
    written = tk.recipe(nn.Sequential(nn.Linear(2, 3), Around(Plain(3, 3))))
    path = tmp_path / "recipe.json"
    path.write_text(written.to_json(), encoding="utf-8")
    for form in (written, written.to_dict(), path, str(path)):
        assert tk.recipe(tk.build(form)) == written


def test_values_are_fresh_and_unset_ones_show():
    """Constructors draw as always; what only a file knows is NaN until it is loaded."""
    net = nn.ModuleList([nn.Linear(3, 3), nn.ParameterList([torch.zeros(2)]), nn.CrossEntropyLoss(torch.ones(3))])
    torch.manual_seed(0)
    one = tk.build(tk.recipe(net))
    torch.manual_seed(0)
    assert torch.equal(one[0].weight, nn.Linear(3, 3).weight)
    assert one[1][0].isnan().all()
    assert one[2].weight.isnan().all()
    assert one.training


def test_the_default_device_is_where_it_is_built():
    """Under the meta device a recipe that nobody vouches for is looked at without cost."""
    with torch.device("meta"):
        net = tk.build(recipe_of(sequential(linear(10**7), linear(10**7))))
    assert net[1].weight.shape == (10**7, 10**7)
    assert net[1].weight.is_meta


def test_the_registry_adds_and_renames():
    """A class that has moved is built under its old id; registered ones are still known."""

    class Moved(Plain):
        pass

    net = tk.build(
        recipe_of(sequential({"block": "old.home.Net", "args": {"size": 2}}, linear())), {"old.home.Net": Moved}
    )
    assert type(net[0]) is Moved
    with pytest.raises(UnknownBlockError):
        tk.build(recipe_of({"block": "old.home.Net", "args": {"size": 2}}))
    with pytest.raises(RecipeError, match=r"registry\['x'\]"):
        tk.build(recipe_of(linear()), {"x": "not a class"})


def test_an_unknown_id_is_an_error_that_says_what_to_do():
    """Nearest ids, and that the module which defines it is to be imported; it is a KeyError too."""
    with pytest.raises(UnknownBlockError, match=r"recipe_blocks\.Plan.*recipe_blocks\.Plain.*import the module"):
        tk.build(recipe_of({"block": "recipe_blocks.Plan", "args": {"size": 2}}))
    with pytest.raises(KeyError, match=r"torch\.nn\.Linear"):
        tk.build(recipe_of({"block": "torch.nn.Linera"}))


def test_nothing_is_imported_or_called(tmp_path, monkeypatch):
    """An id that looks like an import path, or names code, is only an id: no module is loaded for it."""
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("canary.Net", "os.system", "builtins.eval", "torch.nn.modules.linear.Linear", "torch.load", ""):
        with pytest.raises(RecipeError):
            tk.build(recipe_of({"block": name}))
        with pytest.raises(RecipeError):
            tk.build(recipe_of(anything({"class": name})))
    assert "canary" not in sys.modules


def test_no_constructor_runs_until_everything_is_known():
    """An unknown id deep inside is found before the first block is made."""
    made = []

    @tk.block(name="tests.test_rebuilding.Noted")
    class Noted(nn.Module):
        def __init__(self, value=None):
            super().__init__()
            made.append(value)

    noted = {"block": "tests.test_rebuilding.Noted"}
    for bad in ({"block": "no.such"}, linear(nonsense=1), {"block": "torch.nn.Linear"}, {"same": "nowhere"}):
        with pytest.raises(RecipeError):
            tk.build(recipe_of(sequential(noted, {**noted, "args": {"value": {"module": bad}}})))
    assert made == []
    tk.build(recipe_of(sequential(noted)))
    assert made == [None]


NESTED = linear()
for _ in range(500):
    NESTED = sequential(NESTED)
CIRCULAR: dict = sequential(linear())
CIRCULAR["children"]["1"] = CIRCULAR
DEEP_LIST: list = []
for _ in range(5000):
    DEEP_LIST = [DEEP_LIST]


@pytest.mark.parametrize(
    ("root", "says"),
    [
        (None, "root"),
        ([], "root"),
        ({}, "either a block or a reference"),
        ({"block": 3}, "block"),
        ({"block": "torch.nn.Linear", "args": []}, "args"),
        (linear(extra=1), "extra"),
        (linear(children={"0": linear()}), "makes its children itself"),
        (linear(children={"0": 3}), "children"),
        ({"block": "torch.nn.Linear", "same": "x"}, "either a block or a reference"),
        ({"block": "torch.nn.Linear"}, "missing a required argument: 'in_features'"),
        (
            {"block": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2, "o": 1}},
            "takes no argument 'o'",
        ),
        (linear(-1), "could not be constructed|RuntimeError"),
        (linear("two"), "could not be constructed: TypeError"),
        (linear(10**15), "could not be constructed: RuntimeError"),
        (linear(2**80), "could not be constructed|not what it should"),
        (linear({"int": "0x" + "f" * 100}), "could not be constructed"),
        (linear({"int": "zz"}), "argument 'in_features'"),
        (linear({"nonsense": 1}), "kind that is not known here, 'nonsense'"),
        (linear({"a": 1, "b": 2}), "one with 2 found"),
        (
            {"block": "torch.nn.LSTM", "args": {"input_size": 1, "hidden_size": 1, "num_layers": 10**9}},
            "more than 10000",
        ),
        ({"block": "torch.nn.Transformer", "args": {"num_encoder_layers": 10**9}}, "more than 10000"),
        ({"block": "tests.Config"}, "no nn.Module"),
        (sequential({"same": "x"}), "not made before"),
        (sequential({"same": "x", "args": {"a": 1}}), "a reference has no arguments"),
        (sequential(linear(label="a"), linear(label="a")), "used twice"),
        (sequential(linear(label="a"), {"same": "a", "at": "nowhere"}), "no module 'nowhere'"),
        ({"block": "torch.nn.Sequential", "label": "a", "children": {"0": {"same": "a"}}}, "not made before"),
        ({"block": "torch.nn.Sequential", "children": {"a.b": linear()}}, "can't be a child's name"),
        ({"block": "torch.nn.Sequential", "children": {"": linear()}}, "can't be a child's name"),
        ({"block": "torch.nn.Sequential", "children": {"forward": linear()}}, "can't be a child's name"),
        (anything({"function": "os.system"}), "none of those"),
        (anything({"function": ["torch.tanh"]}), "value"),
        (
            anything({"class": "builtins.eval"}),
            "no class is registered",
        ),
        (anything({"class": {}}), "no class is registered"),
        (anything({"dtype": "load"}), "no dtype"),
        (anything({"memory_format": "load"}), "no memory format"),
        (anything({"device": "nowhere"}), "value"),
        (anything({"size": "ab"}), "value"),
        (
            anything({"member": ["tests.Mode", "NONE"]}),
            "no member 'NONE'",
        ),
        (anything({"member": ["tests.Config", "x"]}), "no member"),
        (
            anything({"dataclass": ["tests.Config", {"x": 1}]}),
            "no field 'x'",
        ),
        (
            anything({"dataclass": ["tests.Mode", {}]}),
            "no dataclass",
        ),
        (anything({"dataclass": 3}), "value"),
        (anything({"partial": [3, [], {"dict": {}}]}), "value"),
        (anything({"module": 3}), "value"),
        (
            anything({"tensor": {"shape": [-1], "dtype": "float32"}}),
            "value",
        ),
        (
            anything({"tensor": {"shape": [10**15], "dtype": "int8"}}),
            "value",
        ),
        (anything({"tensor": "x"}), "value"),
        ({"block": "recipe_blocks.Plain", "args": {"size": 2, "extra": 3}}, "extra takes a list"),
        ({"block": "recipe_blocks.Plain", "args": {"size": 2, "extra": [3]}}, "missing"),
        ({"block": "recipe_blocks.Plain", "args": {"size": 2, "options": [1]}}, "options takes a dict"),
        ({"block": "recipe_blocks.Plain", "args": {"size": 2, "options": {"dict": {"size": 1}}}}, "other names"),
        ({"block": "recipe_blocks.Plain", "args": {"size": 2, "options": {"dict": [[1, 2]]}}}, "Plain"),
        ({"block": "recipe_blocks.Plain", "args": {"width": 2}}, "size"),
        (anything(DEEP_LIST), "nested"),
        (NESTED, "nested"),
        (CIRCULAR, "nested"),
    ],
)
def test_a_wrong_root_is_a_recipe_error(root, says):
    """Whatever stands in an entry, the error is the library's own and says what is wrong where."""
    with pytest.raises(RecipeError, match=says):
        tk.build(recipe_of(root))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "positive integer"),
        ({"version": "1"}, "positive integer"),
        ({"format": "other"}, "no recipe"),
        ({"ties": [{"kind": "parameter", "names": ["0.weight"]}]}, "two or more names"),
        ({"ties": [{"kind": "parameter", "names": []}]}, "two or more names"),
        ({"ties": [{"kind": "parameter", "names": ["0.weight", "0.weight"]}]}, "each once"),
        ({"ties": [{"kind": "parameter", "names": ["0.weight", "nowhere"]}]}, "'nowhere'"),
        ({"ties": [{"kind": "parameter", "names": ["0.weight", "0.bias"]}]}, "agree"),
        ({"ties": [{"kind": "storage", "names": ["0.weight", "0.bias"]}]}, "agree"),
        ({"ties": [{"kind": "other", "names": ["0.weight", "1.weight"]}]}, "kind|enum"),
        ({"ties": [{"kind": "module", "names": ["", "0"]}]}, "''"),
        ({"ties": [{"kind": "module", "names": ["2", "2.0"]}]}, "part of it"),
        ({"ties": [{"kind": "module", "names": ["2.0", "2"]}]}, "part of it"),
        ({"ties": [{"kind": "module", "names": ["0", "nowhere"]}]}, "'nowhere'"),
        (
            {"ties": [{"kind": "module", "names": ["2", "3.0"]}, {"kind": "module", "names": ["3", "2.0"]}]},
            "contains itself",
        ),
        ({"dtypes": {"nonsense": ["0.weight"]}}, "no dtype"),
        ({"dtypes": {"float16": ["nowhere"]}}, "'nowhere'"),
        ({"dtypes": {"int8": ["0.weight"]}}, "finished"),
        ({"frozen": ["nowhere"]}, "'nowhere'"),
        ({"frozen": "**"}, "frozen"),
    ],
)
def test_a_wrong_finish_is_a_recipe_error(more, says):
    """Ties, dtypes and frozen names are checked against what was built."""
    root = sequential(linear(), linear(), sequential(linear()), sequential(linear()))
    with pytest.raises(RecipeError, match=says):
        tk.build(recipe_of(root, **more))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 10**5, '{"format": "other"}', b"\xff"])
def test_wrong_text_is_a_recipe_error(text, tmp_path):
    """So is a file of it, named."""
    with pytest.raises(RecipeError):
        tk.Recipe.from_json(text)
    path = tmp_path / "wrong.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=r"wrong\.json"):
        tk.build(path)


def test_a_file_that_is_not_there_or_can_not_be_read(tmp_path):
    """The operating system's answers, in torchkeep's tree."""
    with pytest.raises(MissingFileError, match=r"nowhere\.json"):
        tk.build(tmp_path / "nowhere.json")
    with pytest.raises(OSError, match="can't be read"):
        tk.build(tmp_path)


def test_a_recipe_that_can_not_be_built_can_be_looked_at():
    """Printing is for seeing what is wrong, so it raises nothing."""
    for node in (
        {"module": 3},
        {"dataclass": 3},
        {"dataclass": {}},
        {"member": 3},
        DEEP_LIST,
        {"dict": {"a": {"module": []}}},
    ):
        assert "not an argument" in str(tk.Recipe.from_dict(recipe_of(sequential(anything(node)))))
    deep = linear()
    for _ in range(100):
        deep = sequential(deep)
    assert str(tk.Recipe.from_dict(recipe_of(deep))).endswith("...")


def corrupted(data, draw):
    """Put something else somewhere into a recipe's JSON."""
    places = []

    def walk(node):
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(data)
    node, key = draw(st.sampled_from(places))
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.text(max_size=3), st.sampled_from([[], {}, [{}]]),
        st.sampled_from(["torch.nn.Linear", "torch.nn.Sequential", "tests.Config", "0.weight", "1"]),
        st.sampled_from(places).map(lambda place: copy.deepcopy(place[0][place[1]])),
    )  # fmt: skip
    if isinstance(node, dict) and draw(st.booleans()):
        node[draw(st.sampled_from(["block", "same", "label", "args", "tuple", "dict", "module", "0"]))] = node.pop(
            key
        )
    else:
        node[key] = draw(junk)


def everything():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, Around(shared), Many([Plain(2, 2)], {"a": nn.Linear(2, 2)}), Configured(Config(2)))
    net.append(Anything([Mode.SUM, torch.Size([1]), nn.ReLU, torch.float32]))
    net[2].parts[0].linear.weight = shared.weight
    shared.bias.requires_grad_(requires_grad=False)
    net[3].half()
    return json.loads(tk.recipe(net).to_json())


EVERYTHING = everything()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_corrupted_recipe_builds_or_is_one_of_torchkeeps_errors(data):
    """No corruption leads to a traceback of another kind."""
    damaged = copy.deepcopy(EVERYTHING)
    for _ in range(data.draw(st.integers(1, 3))):
        corrupted(damaged, data.draw)
    try:
        assert str(tk.Recipe.from_dict(damaged))
        with torch.device("meta"):
            net = tk.build(damaged)
    except TorchkeepError:
        return
    assert isinstance(net, nn.Module)


def test_torchkeeps_own_blocks_are_known_in_a_fresh_process(tmp_path):
    """Nobody has to import torchkeep.nn before a recipe that names its blocks is built."""
    path = tmp_path / "recipe.json"
    path.write_text(tk.recipe(tk.nn.MLP([2, 3, 1])).to_json(), encoding="utf-8")
    program = f"import torchkeep as tk\nprint(len(list(tk.build({str(path)!r}).parameters())))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (shown.stdout.strip(), shown.stderr) == ("4", "")
