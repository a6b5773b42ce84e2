"""A model comes out of its file alone: built by the recipe that was saved with it, and filled."""

from __future__ import annotations

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from saved_values import bits_of
from torchkeep.errors import FormatError, LoadError, RecipeError, UnknownBlockError
from torchkeep.formats import open_contents
from torchkeep.formats.digests import HEADER_KEY, ZERO_DIGITS, seal
from torchkeep.formats.document import DOCUMENT_KEY
from torchkeep.formats.safetensors import compose_header


class Unknown(nn.Module):
    """A class that nobody registered."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.note = object()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net"


def test_a_model_of_registered_blocks_comes_back_whole(path):
    """Classes, bits, ties, what is frozen: all from the file, without building the model by hand."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[3].weight = net[0].weight
    net[1].weight.requires_grad = False
    with torch.no_grad():
        net[1].running_mean.fill_(3)
    report = tk.save(net, path)
    assert report.no_recipe is None
    state = torch.get_rng_state()
    back = tk.load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(back) == str(net)
    assert {k: bits_of(v) for k, v in back.state_dict().items()} == {
        k: bits_of(v) for k, v in net.state_dict().items()
    }
    assert back[3].weight is back[0].weight
    assert not back[1].weight.requires_grad
    x = torch.randn(3, 4)
    assert torch.equal(back.eval()(x), net.eval()(x))


def test_a_model_that_no_recipe_describes_is_saved_without_one_and_says_so(path):
    """Its state is in the file; the report tells why there is no recipe, and load_model what to do."""
    report = tk.save(Unknown(3), path)
    assert "Unknown" in report.no_recipe
    assert "without a recipe" in str(report)
    with pytest.raises(RecipeError, match=r"holds no recipe.*load_into"):
        tk.load_model(path)
    assert list(tk.load(path)) == ["weight"]


def test_a_file_that_is_no_model_has_no_recipe(path):
    """A dict of tensors, another writer's file and one of torch.save are no models."""
    for write in (tk.save, save_file, torch.save):
        write({"a": torch.ones(1)}, path)
        with pytest.raises(RecipeError, match="no recipe"):
            tk.load_model(path)


def rewritten(path, recipe):
    contents = open_contents(path)
    data = path.read_bytes()[contents.header.data_start :]
    document = msgspec.json.decode(contents.header.metadata[DOCUMENT_KEY]) | {"recipe": recipe}
    metadata = {HEADER_KEY: ZERO_DIGITS, "format": "pt", DOCUMENT_KEY: msgspec.json.encode(document).decode()}
    header = compose_header(contents.header.entries, metadata)
    seal(header)
    path.write_bytes(bytes(header) + data)


def test_a_hostile_recipe_builds_nothing(path):
    """Ids that are not registered and recipes that are none are refused by name; nothing is imported."""
    tk.save(nn.Linear(2, 2), path)
    good = msgspec.json.decode(open_contents(path).document.recipe)
    rewritten(path, good | {"root": {"block": "os.system", "args": {"command": "true"}}})
    with pytest.raises(UnknownBlockError, match=r"os\.system"):
        tk.load_model(path)
    rewritten(path, {"x": 1})
    with pytest.raises(FormatError, match="recipe in"):
        tk.load_model(path)


def test_a_recipe_that_does_not_fit_its_tensors_is_refused(path):
    """A class that changed since gives other names or shapes; the plan tells which."""
    tk.save(nn.Linear(2, 2), path)
    good = msgspec.json.decode(open_contents(path).document.recipe)
    good["root"]["args"]["in_features"] = 3
    rewritten(path, good)
    with pytest.raises(LoadError, match=r"weight.*\[2, 3\].*\[2, 2\]"):
        tk.load_model(path)
