"""@tk.block: ids, remembered arguments, and what a decorated class must go on doing."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import torchkeep as tk
from recipe_blocks import Anything, Around, Copies, Many, Mode, Plain, UnregisteredChild
from torchkeep.errors import RecipeError
from torchkeep.recipes.registry import id_of, known_classes
from torchkeep.recipes.remembering import ARGUMENTS_ATTRIBUTE


def remembered(module):
    return vars(module)[ARGUMENTS_ATTRIBUTE]


def test_an_id_is_the_qualified_name_or_the_one_given():
    """Users' classes have module and qualified name, torch's the name that people write."""
    assert id_of(Plain) == "recipe_blocks.Plain"
    assert id_of(Mode) == "tests.Mode"
    assert id_of(nn.Linear) == "torch.nn.Linear"
    assert known_classes()["torch.nn.Linear"] is nn.Linear
    assert id_of(UnregisteredChild) is None


def test_the_class_stays_what_it_was():
    """The decorator returns the class; signature, name, docstring and errors of the constructor stay."""
    assert Plain.__init__.__qualname__ == "Plain.__init__"
    assert list(inspect.signature(Plain).parameters) == ["size", "width", "extra", "scale", "tags", "options"]
    assert inspect.signature(Around).parameters["act"].default is nn.ReLU
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        Plain()
    assert isinstance(Plain(2), nn.Module)


def test_arguments_are_remembered_as_they_were_at_the_call():
    """Every kind of parameter, with defaults; changing a list afterwards changes nothing."""
    tags = ["a", ["b"]]
    module = Plain(2, 3, "x", "y", scale=float("inf"), tags=tags, deep={"k": 1})
    tags[1].append("c")
    tags.append("d")
    assert remembered(module)["args"] == {
        "size": 2,
        "width": 3,
        "extra": {"tuple": ["x", "y"]},
        "scale": {"float": "7ff0000000000000"},
        "tags": ["a", ["b"]],
        "options": {"dict": {"deep": {"dict": {"k": 1}}}},
    }
    assert remembered(Plain(2))["args"]["width"] == 4


def test_a_constructor_may_use_up_what_it_is_given():
    """The recipe has the list as it was given, not as the constructor left it."""

    @tk.block(name="tests.test_registry.Popping")
    class Popping(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            self.layers = nn.ModuleList()
            while sizes:
                self.layers.append(nn.Linear(sizes.pop(), 1))

    module = Popping([1, 2, 3])
    assert remembered(module)["args"] == {"sizes": [1, 2, 3]}
    assert len(tk.build(tk.recipe(module)).layers) == 3


def test_remembering_adds_no_children_and_no_tensors():
    """Given modules are children once, under the constructor's names; state_dict and parameters are unchanged."""
    inner = nn.Linear(2, 2)
    module = Around(inner)
    assert [name for name, _ in module.named_modules()] == ["", "body", "body.0", "body.1"]
    assert list(module.state_dict()) == ["body.0.weight", "body.0.bias"]
    assert sum(p.numel() for p in module.parameters()) == 6
    assert remembered(module)["args"]["inner"] == {"module": {"child": "body.0"}}
    assert ARGUMENTS_ATTRIBUTE not in repr(module)


def test_modules_in_containers_are_found():
    """A list and a dict of modules are remembered by the paths that the modules got."""
    shared = nn.ReLU()
    module = Many([nn.Linear(1, 1), shared, shared], {"a": nn.Linear(2, 2)})
    assert remembered(module)["args"] == {
        "modules": [{"module": {"child": f"parts.{at}"}} for at in (0, 1, 1)],
        "named": {"dict": {"a": {"module": {"child": "named.a"}}}},
    }


def test_a_module_that_is_only_copied_is_not_kept_alive():
    """What the constructor copies is described then and there, and let go."""
    import gc
    import weakref

    pattern = nn.Linear(3, 3)
    alive = weakref.ref(pattern)
    module = Copies(pattern, 2)
    del pattern
    gc.collect()
    assert alive() is None
    assert remembered(module)["args"]["pattern"]["module"]["template"]["block"] == "torch.nn.Linear"


@pytest.mark.parametrize("value", [lambda: 0, torch.zeros(2), object(), iter(())])
def test_what_json_can_not_hold_is_no_error_at_construction(value):
    """The module is made; nothing of the value is kept but a sentence."""
    module = Anything(value)
    record = remembered(module)
    assert record["args"] == {"value": None}
    assert [path for path, _ in record["problems"]] == ["value"]
    pickle.dumps(record)


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save])
def test_copies_remember_too(copied):
    """Deepcopy, pickle and torch.save carry the arguments; a copy's recipe is the original's."""
    module = nn.Sequential(Around(Plain(4)), Copies(nn.Linear(2, 2), 3))
    other = copied(module)
    assert tk.recipe(other) == tk.recipe(module)
    assert remembered(other[0]) == remembered(module[0])


def test_a_subclass_remembers_its_own_arguments_or_none():
    """A decorated subclass has its own constructor's arguments, an undecorated one none of its parent's."""

    @tk.block(name="tests.test_registry.Sub")
    class Sub(Plain):
        def __init__(self, half):
            super().__init__(2 * half, half)

    assert remembered(Sub(3))["args"] == {"half": 3}
    assert ARGUMENTS_ATTRIBUTE not in vars(UnregisteredChild(2))
    assert remembered(Plain(2))["args"]["size"] == 2


def test_a_block_without_a_constructor_of_its_own():
    """The inherited constructor is remembered for the class that is registered, not for its base."""

    class Base(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.linear = nn.Linear(size, size)

    @tk.block(name="tests.test_registry.Bare")
    class Bare(Base):
        pass

    assert remembered(Bare(2))["args"] == {"size": 2}
    assert ARGUMENTS_ATTRIBUTE not in vars(Base(2))
    assert "__init__" in vars(Bare)


def test_a_constructor_that_raises_leaves_its_own_error():
    """Remembering neither hides nor changes it."""

    @tk.block(name="tests.test_registry.Raising")
    class Raising(nn.Module):
        def __init__(self, size):
            super().__init__()
            raise LookupError(size)

    with pytest.raises(LookupError, match="3"):
        Raising(3)


def test_one_id_is_one_class():
    """Another class under a used id is refused, and so are a second id and torch's ids."""

    @tk.block(name="tests.test_registry.Once")
    class Once(nn.Module):
        pass

    class Other(nn.Module):
        pass

    with pytest.raises(RecipeError, match=r"tests\.test_registry\.Once.*already"):
        tk.block(name="tests.test_registry.Once")(Other)
    with pytest.raises(RecipeError, match="one id"):
        tk.block(name="tests.test_registry.Twice")(Once)
    with pytest.raises(RecipeError, match="belongs to torch"):
        tk.block(name="torch.nn.Other")(Other)
    assert tk.block(name="tests.test_registry.Once")(Once) is Once


def make_local(size):
    """What a notebook does when a cell is run again: another class of the same module and name."""

    @tk.block
    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(size, size)

    return Local


def test_a_class_defined_again_replaces_the_one_before():
    """New instances have recipes; an instance of the old class says that it must be made anew."""
    first, second = make_local(2), make_local(3)
    assert id_of(first) == id_of(second)
    assert known_classes()[id_of(second)] is second
    assert tk.build(tk.recipe(second())).linear.in_features == 3
    with pytest.raises(RecipeError, match="defined again"):
        tk.recipe(first())


@pytest.mark.parametrize("thing", [int, Plain(2), lambda: 0, "name"])
def test_only_classes_that_models_are_made_of_are_registered(thing):
    """Anything but an nn.Module class, a dataclass or an Enum is refused."""
    with pytest.raises(RecipeError, match=r"@tk\.block registers"):
        tk.block(thing)


def test_the_device_is_not_remembered():
    """Where a block was made says nothing about where it will be."""

    @tk.block(name="tests.test_registry.Placed")
    class Placed(nn.Module):
        def __init__(self, size, device=None, dtype=None):
            super().__init__()
            self.linear = nn.Linear(size, size, device=device, dtype=dtype)

    module = Placed(2, device="meta", dtype=torch.float64)
    assert remembered(module)["args"] == {"size": 2, "dtype": {"dtype": "float64"}}
    assert tk.build(tk.recipe(module)).linear.weight.device.type == "cpu"
