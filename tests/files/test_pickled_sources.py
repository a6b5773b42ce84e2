"""Files of torch.save wherever a path is taken: params, load, load_into, plan_load, show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

import torchkeep as tk
from torch_files import named, proto, zipped
from torchkeep.errors import DamageError, FormatError, LoadError, NoMatchError, UnsafeFileError
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.pickled import PickledReader

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight = self.body[0].weight


class Counting(nn.Module):
    def __init__(self, seen=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.seen = seen

    def get_extra_state(self):
        return {"seen": self.seen, "scale": torch.ones(1) * self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def saved(value, path, new=True):
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def states(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@FORMATS
def test_a_table_of_such_a_file_is_read_like_any_other(tmp_path, new):
    """Names, ties, selections, values and statistics of a file that torch.save wrote."""
    net = Net()
    table = tk.params(saved(net.state_dict(), tmp_path / "net.pt", new))
    assert table.names() == tk.params(net.state_dict()).names()
    assert torch.equal(table["head.weight"], net.head.weight)
    assert [row.aliases for row in table.select("head.*").rows] == [("head.weight",)]
    assert [t.shape for t in table.select("body.*.running_*").tensors()] == [(3,), (3,)]
    assert len(table.stats().rows) == len(table)
    assert (table.select("head.*") | tk.params(tmp_path / "net.pt").select("*.1.bias")).names() == [
        "body.0.weight",
        "body.1.bias",
    ]


def test_a_table_notices_another_file_in_its_place(tmp_path):
    """What was listed is not looked for in a file that is another."""
    table = tk.params(saved({"a": torch.ones(2)}, tmp_path / "x.pt"))
    saved({"b": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="changed after it was opened"):
        _ = table["a"]


def test_a_table_says_which_attributes_are_left_out(tmp_path):
    """Attributes that someone hung on tensors are not read, and not silently."""
    weight = nn.Parameter(torch.ones(2))
    weight.partition = 1
    assert "partition" in str(tk.params(saved({"w": weight}, tmp_path / "x.pt")))


@FORMATS
def test_load_gives_what_was_saved(tmp_path, new):
    """Nested containers come back; with select, a flat dict of plain tensors, ties one object."""
    net = Net()
    value = {"model": net.state_dict(), "epoch": 3, "best": (0.5, None)}
    path = saved(value, tmp_path / "run.pt", new)
    found = tk.load(path)
    assert (found["epoch"], found["best"]) == (3, (0.5, None))
    assert type(found["model"]) is OrderedDict
    assert_equal(found["model"], net.state_dict())
    chosen = tk.load(path, select="model.head.weight")
    assert list(chosen) == ["model.body.0.weight", "model.head.weight"]
    assert chosen["model.body.0.weight"] is chosen["model.head.weight"]
    with pytest.raises(NoMatchError):
        tk.load(path, select="model.tail")


def test_load_with_select_gives_plain_tensors(tmp_path):
    """As from a safetensors file: no parameters, no gradients; the whole value has them."""
    path = saved({"w": nn.Parameter(torch.ones(2))}, tmp_path / "w.pt")
    chosen = tk.load(path, select="w")["w"]
    assert (type(chosen), chosen.requires_grad) == (torch.Tensor, False)
    assert isinstance(tk.load(path)["w"], nn.Parameter)


def test_load_of_what_load_gives_and_save_keeps_is_the_same(tmp_path):
    """A file of torch.save can be kept as safetensors, everything in it included."""
    value = {
        "model": OrderedDict(w=torch.ones(2)),
        "shape": torch.Size([1]),
        "kind": torch.float16,
        "n": {1: (2,)},
    }
    first = tk.load(saved(value, tmp_path / "a.pt"))
    tk.save(first, tmp_path / "a.safetensors")
    second = tk.load(tmp_path / "a.safetensors")
    assert torch.equal(second["model"].pop("w"), first["model"].pop("w"))
    assert second == first == {**value, "model": OrderedDict()}


@FORMATS
def test_load_into_fills_a_model(tmp_path, new):
    """Parameters, buffers and ties; the live tensors stay the objects that they are."""
    torch.manual_seed(1)
    wanted, net = Net(), Net()
    net.body[1].running_mean.fill_(7)
    before = net.head.weight
    report = tk.load_into(net, saved(wanted.state_dict(), tmp_path / "net.pt", new))
    assert_equal(net.state_dict(), wanted.state_dict())
    assert net.head.weight is before is net.body[0].weight
    assert report.verified is new


def test_load_into_restores_extra_state(tmp_path):
    """What get_extra_state gave is a value in the file, not a tensor of the model."""
    path = saved(Counting(5).state_dict(), tmp_path / "c.pt")
    net = Counting()
    report = tk.load_into(net, path)
    assert net.seen == 5
    assert [key for key, _ in report.plan.extra] == ["_extra_state"]


@FORMATS
def test_load_into_takes_a_part_of_a_checkpoint(tmp_path, new):
    """A rename and a policy take the model out of a training checkpoint; without them nothing is changed."""
    wanted, net = Net(), Net()
    optimizer = torch.optim.Adam(wanted.parameters())
    wanted.head(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {"state_dict": wanted.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    path = saved(value, tmp_path / "run.pt", new)
    before = states(net)
    with pytest.raises(LoadError, match="state_dict"):
        tk.load_into(net, path)
    assert_equal(net.state_dict(), before)
    tk.load_into(net, path, rename={"state_dict.": ""}, unexpected="ignore")
    assert_equal(net.state_dict(), wanted.state_dict())


def test_a_meta_tensor_in_a_file_has_no_values_to_load(tmp_path):
    """A model is not filled from what has no values."""
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    path = saved(empty.state_dict(), tmp_path / "meta.pt")
    with pytest.raises(LoadError, match="meta device, without values"):
        tk.load_into(nn.Linear(2, 2), path)


def test_damage_is_found_before_a_model_changes(tmp_path):
    """Checksums are compared before the first tensor is replaced."""
    wanted, net = Net(), Net()
    path = saved(wanted.state_dict(), tmp_path / "net.pt")
    file = LOCAL.open(str(path))
    pickled = PickledReader(file).pickled
    file.close()
    extent = pickled.extents[pickled.tensors["body.1.running_var"].storage.key]
    data = bytearray(path.read_bytes())
    data[extent.start] ^= 1
    path.write_bytes(data)
    before = states(net)
    with pytest.raises(DamageError, match=r"body\.1\.running_var.*the model is as it was") as caught:
        tk.load_into(net, path)
    assert caught.value.replaced == ()
    assert_equal(net.state_dict(), before)


def large_state():
    torch.manual_seed(3)
    shared = torch.randn(200, 1000)
    return {
        "plain": torch.randn(3_000_001),
        "cast": torch.randn(500, 1000),
        "transposed": torch.randn(500, 600).t(),
        "rows": shared[:150],
        "other rows": shared[50:],
        "slice": torch.randn(400_000)[100_000:],
        "conjugated": torch.randn(300, 300, dtype=torch.complex64).conj(),
        "small": torch.randn(7),
    }


@FORMATS
def test_large_tensors_reach_a_model_wherever_they_lie_in_their_storages(tmp_path, new):
    """Whole storages are read straight into the model, the others by way of memory; all values are right."""
    state = large_state()
    path = saved(state, tmp_path / "net.pt", new)
    net = nn.Module()
    for name, tensor in state.items():
        net.register_buffer(name.replace(" ", "_"), torch.zeros(tensor.shape, dtype=tensor.dtype))
    net.cast = net.cast.half()
    versions = {name: buffer._version for name, buffer in net.named_buffers()}
    tk.load_into(net, path, rename={"'other rows'": "other_rows"}, cast=True)
    for name, tensor in state.items():
        found = net.get_buffer(name.replace(" ", "_"))
        assert torch.equal(found, tensor.to(found.dtype)), name
    assert all(buffer._version > versions[name] for name, buffer in net.named_buffers())


def test_damage_in_a_large_tensor_names_what_was_replaced(tmp_path):
    """A checksum that fails once the bytes are in the model says so; with atomic=True the model is as it was."""
    torch.manual_seed(0)
    state = {"a": torch.randn(1_000_000), "b": torch.randn(1_000_000), "c": torch.randn(10)}
    path = saved(state, tmp_path / "net.pt")
    data = bytearray(path.read_bytes())
    data[data.index(state["b"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    for atomic in (False, True):
        net = nn.Module()
        for name, tensor in state.items():
            net.register_buffer(name, torch.zeros_like(tensor))
        with pytest.raises(DamageError, match="checksum") as caught:
            tk.load_into(net, path, atomic=atomic)
        changed = {name for name, buffer in net.named_buffers() if buffer.any()}
        assert caught.value.tensor == "b"
        assert set(caught.value.replaced) == changed == (set() if atomic else {"a", "b"})


@pytest.mark.parametrize("use", [tk.params, tk.load, lambda path: tk.load_into(nn.Linear(1, 1), path)])
def test_hostile_files_are_refused_everywhere(tmp_path, use):
    """Whatever takes a path runs nothing that is in the file."""
    path = tmp_path / "evil.pt"
    marker = tmp_path / "was here"
    command = f"touch '{marker}'".encode()
    call = named("os.system") + b"C" + bytes([len(command)]) + command + b"\x85R"
    path.write_bytes(zipped(proto(call, 4)))
    with pytest.raises(UnsafeFileError, match=r"'os\.system'"):
        use(path)
    assert not marker.exists()


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "torchkeep", *arguments], capture_output=True, text=True, check=False
    )


@FORMATS
def test_show_lists_such_a_file(tmp_path, new):
    """The command line takes it for what it is; JSON too; a hostile one is an error of one line."""
    path = saved(Net().state_dict(), tmp_path / "net.bin", new)
    assert "body.1.num_batches_tracked" in run("show", str(path)).stdout
    rows = json.loads(run("show", str(path), "head.*", "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["body.0.weight"]
    path.write_bytes(zipped(proto(named("os.system"))))
    done = run("show", str(path))
    assert done.returncode == 3
    assert "os.system" in done.stderr
    assert "Traceback" not in done.stderr
