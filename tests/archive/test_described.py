"""What a manifest says of its tensors is what the live modules knew, and nothing in it is trusted."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torchkeep as tk
from kept_states import make_store
from torchkeep.archive import Archive, TensorBytes, Writer
from torchkeep.archive.described import Described, listing_of
from torchkeep.errors import FormatError, MissingFieldError, NewerFormatError
from torchkeep.formats import listing_of as listing_of_file
from torchkeep.selectors import select
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.storage.memory import MemoryStorage


class Extra(nn.Module):
    """Keeps a tensor and a number where no survey sees them."""

    def __init__(self):
        super().__init__()
        self.kept = {"seen": torch.arange(3), "count": 7}

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state


class Net(nn.Module):
    """A tie, buffers, a frozen parameter, a parametrized weight, extra state."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.BatchNorm1d(3)])
        self.head = nn.Linear(3, 3)
        self.head.weight = self.inner[0].weight
        self.normed = weight_norm(nn.Linear(3, 2))
        self.extra = Extra()
        self.head.bias.requires_grad_(requires_grad=False)


def latest(root):
    """Return the latest manifest of a store."""
    return Archive.open(LOCAL_FOLDERS, str(root)).latest()


def moved(row, prefix):
    """Return a row as it is when its module is kept under a prefix."""
    return msgspec.structs.replace(
        row,
        name=f"{prefix}.{row.name}",
        aliases=tuple(f"{prefix}.{name}" for name in row.aliases),
        plain=tuple(f"{prefix}.{name}" for name in row.plain),
    )


def test_a_module_alone_is_listed_as_its_file_is(tmp_path):
    """Names, kinds, classes, ties and plain names are those of the file that tk.save makes of it."""
    net = Net()
    tk.save(net, tmp_path / "net.safetensors")
    listing = listing_of(latest(make_store(tmp_path / "store", {4: net})))
    of_file = listing_of_file(tmp_path / "net.safetensors")
    assert list(listing.rows) == list(of_file.rows)
    assert listing.modules == of_file.modules
    assert listing.source == f"{tmp_path}/store@4"


def test_a_part_is_listed_as_its_file_is_under_its_prefix(tmp_path):
    """A module kept as a part has the same rows under its prefix; classes stand under the parts' paths."""
    net = Net()
    tk.save(net, tmp_path / "net.safetensors")
    of_file = listing_of_file(tmp_path / "net.safetensors")
    state = {"model": net, "optimizer": {"state": {"head.bias": {"exp_avg": torch.ones(3)}}, "lr": 0.1}}
    listing = listing_of(latest(make_store(tmp_path / "store", {4: state})))
    assert list(listing.rows)[:-1] == [moved(row, "model") for row in of_file.rows]
    assert listing.rows[-1].name == "optimizer.state.head.bias.exp_avg"
    assert (listing.rows[-1].kind, listing.rows[-1].trainable, listing.rows[-1].module_type) == (None, None, None)
    assert set(listing.modules) == {f"model.{path}" if path else "model" for path in of_file.modules}


def test_selectors_mean_the_same_and_say_what_no_part_knows(tmp_path):
    """Classes and kinds select in modules; asked of other parts too, a state names the parts to ask."""
    state = {"model": Net(), "ema": {"head.bias": torch.ones(3)}}
    listing = listing_of(latest(make_store(tmp_path / "store", {4: state})))

    def names(selector):
        return [listing.rows[position].name for position in select(selector).indices(listing)]

    assert "model.head.weight" in {name for row in listing.rows for name in row.names}
    assert names("@BatchNorm1d & :buffer") == [
        f"model.inner.1.{leaf}" for leaf in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert names("@Net > head.bias") == names("model.** & :frozen") == ["model.head.bias"]
    assert names("ema.**") == ["ema.head.bias"]
    with pytest.raises(MissingFieldError, match=r"does not know of ema\.head\.bias; .*`model\.\*\* & :param`"):
        names(":param")


def test_state_without_modules_knows_no_classes(tmp_path):
    """Nested containers of tensors are rows without kinds, and of classes nothing is known."""
    manifest = latest(make_store(tmp_path / "store", {4: {"a": torch.ones(2), "b": {"c": torch.ones(3)}}}))
    listing = listing_of(manifest)
    assert [(row.name, row.shape, row.kind) for row in listing.rows] == [("a", (2,), None), ("b.c", (3,), None)]
    assert listing.modules is None


def test_tensors_of_extra_state_are_hidden(tmp_path):
    """They are no parameters, so no listing has them; they are there to be read."""
    described = Described(latest(make_store(tmp_path / "store", {4: {"model": Net()}})))
    assert described.hidden == {"model.extra._extra_state.seen"}
    assert described.hidden.isdisjoint(described.names)
    assert described.hidden.isdisjoint(row.name for row in described.listing.rows)


def test_a_tie_across_parts_is_listed_with_what_the_module_knows():
    """Where the owner lies in no module but an alias does, the row has the module's kind and class."""
    facts = {"lineages": [[["m", "Net"]]], "modules": {"": 0}, "buffers": ["w"]}
    tree = {"modules": {"model": facts}, "order": ["ema.w", "model.w"]}
    (row,) = listing_of(manifest_of(tree, aliases={"model.w": "ema.w"}, names=["ema.w"])).rows
    assert (row.names, row.kind, row.module_type) == (("ema.w", "model.w"), "buffer", "Net")


def manifest_of(tree, *, names=("model.w",), aliases=None):
    """Commit a tree as it stands, and return the manifest."""
    storage = MemoryStorage({"/runs": None})
    with Writer(storage, "/runs/store", wait=0) as writer:
        return writer.commit(1, {name: TensorBytes.of(b"abc") for name in names}, tree=tree, aliases=aliases)


def deep(levels):
    """Return a list in a list, and so on."""
    made = []
    for _ in range(levels):
        made = [made]
    return made


FACTS = {"lineages": [[["m", "Net"]]], "modules": {"": 0}}
HOSTILE = {
    "an order that leaves one out": ({"order": ["x"]}, "order does not name every tensor once"),
    "an order with one twice": ({"order": ["model.w", "model.w"]}, "order does not name every tensor once"),
    "a class that is not there": ({"modules": {"model": {**FACTS, "modules": {"": 9}}}}, "not among the lineages"),
    "a buffer that is no tensor": ({"modules": {"model": {**FACTS, "buffers": ["x"]}}}, "buffers names 'x'"),
    "a frozen one that is none": ({"modules": {"model": {**FACTS, "frozen": ["x"]}}}, "frozen names 'x'"),
    "a plain name of none": ({"modules": {"model": {**FACTS, "plain": {"x": ["y"]}}}}, "plain names 'x'"),
    "no lineage": ({"modules": {"model": {"lineages": [[]]}}}, "no state that can be read"),
    "no object": ([1], "no state that can be read"),
    "a deep tree": ({"modules": {"model": {"extra": {"k": deep(300)}}}}, None),
}


@pytest.mark.parametrize(("tree", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_tree_that_contradicts_itself_is_refused(tree, problem):
    """Every contradiction is a FormatError that names the manifest, or harmless; nothing else escapes."""
    manifest = manifest_of(tree)
    if problem is None:
        assert [row.name for row in listing_of(manifest).rows] == ["model.w"]
        return
    with pytest.raises(FormatError, match=problem) as caught:
        listing_of(manifest)
    assert manifest.path in str(caught.value)


def test_a_later_version_is_refused():
    """A state that a later torchkeep described is not guessed at."""
    with pytest.raises(NewerFormatError, match="install a newer torchkeep"):
        listing_of(manifest_of({"version": 2}))


def test_thousands_of_modules_are_listed_without_delay():
    """What each name lies in is found by its prefix, not by trying every module."""
    names = [f"m{number}.w" for number in range(2_000)]
    tree = {"modules": {f"m{number}": FACTS for number in range(2_000)}}
    rows = listing_of(manifest_of(tree, names=names)).rows
    assert [row.module_type for row in rows] == ["Net"] * 2_000
