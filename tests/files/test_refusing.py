"""What can't be kept is refused before anything is written, all of it at once, each with its path and advice."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from saved_values import no_strays
from torchkeep.errors import SourceError, UnsavableError


class Marked(torch.Tensor):
    """A subclass whose class would be lost."""


def on_lazy():
    return nn.LazyLinear(3).weight


def nested():
    return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)


REFUSED = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"sparse_coo.*to_dense"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), r"sparse_csr.*to_dense"),
    "meta": (lambda: torch.empty(3, device="meta"), r"meta device.*materialize"),
    "lazy": (on_lazy, "no shape yet"),
    "nested": (nested, "nested"),
    "subclass": (lambda: torch.ones(2).as_subclass(Marked), r"Marked.*as_subclass"),
    "module": (lambda: nn.Linear(2, 2), r"Linear.*state_dict"),
    "optimizer": (lambda: torch.optim.SGD([torch.ones(1)], lr=1.0), r"SGD.*state_dict"),
    "array": (lambda: torch.ones(2).numpy(), r"numpy.*from_numpy"),
    "scalar": (lambda: np.longdouble(1), r"numpy.*item"),
    "generator": (torch.Generator, "Generator"),
    "function": (lambda: torch.nn.functional.relu, "code is never saved"),
    "namedtuple": (lambda: namedtuple("Pair", "a b")(1, 2), "_asdict"),  # noqa: PYI024
}


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|nested):UserWarning")
@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_kept_is_refused_with_its_path(tmp_path, make, sentence):
    """Nothing is written, not even beside the target, and the old file stays."""
    path = tmp_path / "file"
    tk.save([1], path)
    before = path.read_bytes()
    with pytest.raises(UnsavableError, match=rf"state\[1\]\['x'\].*{sentence}") as caught:
        tk.save({"state": [torch.ones(1), {"x": make()}]}, path)
    assert caught.value.path == "state[1]['x']"
    assert path.read_bytes() == before
    no_strays(tmp_path, "file")


def test_all_problems_of_an_object_are_told_at_once(tmp_path):
    """Tensors and plain values that can't be kept stand in one error."""
    with pytest.raises(UnsavableError, match=r"3 values(.|\n)*a: .*meta(.|\n)*b\[0\]: (.|\n)*c: ") as caught:
        tk.save({"a": torch.empty(1, device="meta"), "b": [len], "c": "\ud800", "fine": 1}, tmp_path / "file")
    assert isinstance(caught.value, TypeError)


def test_all_problems_of_a_module_are_told_at_once(tmp_path):
    """A model with lazy and meta parts names each of their tensors."""
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    with pytest.raises(UnsavableError, match=r"0\.weight: .*no shape(.|\n)*1\.bias: .*meta") as caught:
        tk.save(net, tmp_path / "file")
    assert "2.weight" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_many_problems_are_cut_in_the_text(tmp_path):
    """The sentence stays readable when thousands of values can't be kept."""
    with pytest.raises(UnsavableError, match="1000 values") as caught:
        tk.save([len] * 1000, tmp_path / "file")
    assert str(caught.value).count("\n") < 60
    assert "950 more" in str(caught.value)


class Packed(nn.Module):
    """Writes its state_dict itself, as torch's quantized layers do."""

    def __init__(self):
        super().__init__()
        self.packed = torch.ones(3)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}packed"] = self.packed


def test_state_that_no_survey_sees_is_refused(tmp_path):
    """What a module puts into its state_dict by code of its own would be lost; module and key are named."""
    with pytest.raises(UnsavableError, match=r"layer can't .*Packed.*'layer\.packed'.*state_dict"):
        tk.save(nn.ModuleDict({"layer": Packed()}), tmp_path / "file")
    tk.save(nn.ModuleDict({"layer": Packed()}).state_dict(), tmp_path / "file")
    assert list(tk.load(tmp_path / "file")) == ["layer.packed"]


class Extra(nn.Module):
    """Has extra state of any kind."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def get_extra_state(self):
        return self.value


def test_extra_state_that_can_not_be_kept_is_refused(tmp_path):
    """Extra state follows the rules for plain values; its key is the path."""
    with pytest.raises(UnsavableError, match=r"layer\._extra_state.*\['f'\].*code"):
        tk.save(nn.ModuleDict({"layer": Extra({"f": len})}), tmp_path / "file")


def test_a_module_that_contains_itself_is_refused(tmp_path):
    """Its names never end."""
    net = nn.Module()
    net.inner = nn.Module()
    net.inner.outer = net
    with pytest.raises(SourceError, match="contains itself"):
        tk.save(net, tmp_path / "file")


def test_a_parameter_called_metadata_is_refused(tmp_path):
    """Safetensors keeps that one name for itself; a module's tensor of that name can't be renamed silently."""
    net = nn.Module()
    net.register_parameter("__metadata__", nn.Parameter(torch.ones(1)))
    with pytest.raises(UnsavableError, match=r"__metadata__.*rename"):
        tk.save(net, tmp_path / "file")


def test_a_header_too_long_for_readers_is_refused(tmp_path):
    """Plain values beyond 100 MB would make a file that nobody opens."""
    with pytest.raises(UnsavableError, match="header of"):
        tk.save({"text": "x" * 101_000_000}, tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_a_name_with_a_lone_surrogate_is_refused(tmp_path):
    """No UTF-8 holds it, as a key or as a module's name."""
    with pytest.raises(UnsavableError, match="surrogate"):
        tk.save({"\ud800": torch.ones(1)}, tmp_path / "file")
    net = nn.Module()
    net.add_module("\ud800", nn.Module())
    with pytest.raises(UnsavableError, match="rename"):
        tk.save(net, tmp_path / "file")
