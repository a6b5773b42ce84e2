"""What files of torch.save are described as: names, ties, rows, byte ranges; torch is not needed for it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn

import torchkeep
from torch_files import FLOATS, OLD, legacy, named, proto, storage, tensor, text, zipped
from torchkeep.errors import FormatError
from torchkeep.formats.kinds import HEAD, is_pickled
from torchkeep.formats.pickles import open_pickled, pickled_listing
from torchkeep.formats.pickles.objects import Device, Dtype, Ordered, Size, TensorRef
from torchkeep.rows import Row

FORMATS = [True, False]


def save(value, path, new):
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_a_state_dict_lists_its_tensors_in_order(tmp_path, new):
    """The rows of a saved state_dict are its names, shapes and dtypes, in its own order."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    listing = pickled_listing(save(net.state_dict(), tmp_path / "net.pt", new))
    found = [(row.name, row.shape, row.dtype, row.device, row.kind, row.aliases) for row in listing.rows]
    assert found == [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), "cpu", None, ())
        for name, tensor in net.state_dict().items()
    ]
    assert listing.source == str(tmp_path / "net.pt")
    assert listing.modules is None


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_names_are_the_keys_on_the_way(tmp_path, new):
    """Nested containers give dotted names; what is no tensor is no row."""
    value = {"model": OrderedDict(w=torch.ones(2)), "steps": [1, {"exp_avg": torch.ones(1)}], 3: (torch.ones(3),)}
    listing = pickled_listing(save(value, tmp_path / "run.pt", new))
    assert [row.name for row in listing.rows] == ["model.w", "steps.1.exp_avg", "3.0"]


def test_names_that_collide_are_told_apart(tmp_path):
    """Two tensors never share a row because their keys join to one name."""
    value = {
        "a.b": torch.ones(1),
        "a": {"b": torch.ones(2)},
        "a.b#2": torch.ones(3),
        "__metadata__": torch.ones(4),
    }
    listing = pickled_listing(save(value, tmp_path / "a.pt", new=True))
    assert [row.shape for row in listing.rows] == [(1,), (2,), (3,), (4,)]
    torchkeep.save([value], tmp_path / "a.safetensors")
    kept = torchkeep.params(tmp_path / "a.safetensors").names()
    assert [f"0.{row.name}" for row in listing.rows[:3]] == list(kept[:3])
    torchkeep.save(value, tmp_path / "a.safetensors")
    assert [row.name for row in listing.rows] == list(torchkeep.params(tmp_path / "a.safetensors").names())


def test_a_single_tensor_is_named_as_save_names_it(tmp_path):
    """What has no key has the name that it would have in a file of this library's own."""
    path = save(torch.ones(2), tmp_path / "a.pt", new=True)
    torchkeep.save(torch.ones(2), tmp_path / "a.safetensors")
    assert [row.name for row in pickled_listing(path).rows] == list(
        torchkeep.params(tmp_path / "a.safetensors").names()
    )


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_ties_are_one_row_under_the_naturally_smallest_name(tmp_path, new):
    """Names of the same elements are one row; a view of other elements of the same storage is another."""
    weight = torch.arange(6.0).reshape(2, 3)
    value = {"head.10": weight, "head.9": weight.detach(), "part": weight[1], "turned": weight.t()}
    listing = pickled_listing(save(value, tmp_path / "tied.pt", new))
    assert [(row.name, row.aliases) for row in listing.rows] == [
        ("head.9", ("head.10",)),
        ("part", ()),
        ("turned", ()),
    ]


def test_names_of_very_many_digits_are_listed(tmp_path):
    """Python makes no number of more than 4300 digits; names of a tie are put in order all the same."""
    weight = torch.ones(2)
    value = {f"a.{digits}": weight.detach() for digits in ("9" * 5000, "10", "9", "8" * 5000)}
    (row,) = pickled_listing(save(value, tmp_path / "d.pt", new=True)).rows
    assert [len(name) for name in row.names] == [3, 4, 5002, 5002]


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_only_a_parameter_says_what_kind_it_is(tmp_path, new):
    """Kind and trainability are known of an nn.Parameter, and of nothing else."""
    value = {
        "w": nn.Parameter(torch.ones(2)),
        "f": nn.Parameter(torch.ones(2), requires_grad=False),
        "t": torch.ones(1),
    }
    rows = pickled_listing(save(value, tmp_path / "p.pt", new)).rows
    assert [(row.kind, row.trainable) for row in rows] == [("parameter", True), ("parameter", False), (None, None)]


def test_a_meta_tensor_is_listed_as_one(tmp_path):
    """A tensor without a storage has a shape and the device meta."""
    listing = pickled_listing(save({"m": torch.empty(2, 3, device="meta")}, tmp_path / "m.pt", new=True))
    assert listing.rows == [Row("m", (2, 3), "float32", "meta")]


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_extents_are_the_storages_bytes(tmp_path, new):
    """The byte range of each storage holds its elements: it can be read without this library."""
    values = {"a": torch.arange(5, dtype=torch.int16), "b": torch.arange(3.0)}
    path = save(values, tmp_path / "x.pt", new)
    pickled = open_pickled(path)
    data = path.read_bytes()
    for name, value in values.items():
        described = pickled.tensors[name]
        extent = pickled.extents[described.storage.key]
        assert data[extent.start : extent.start + extent.nbytes] == value.numpy().tobytes()
        assert (extent.crc is None) is not new


def test_plain_values_and_containers_are_what_they_were(tmp_path):
    """Everything that is no tensor comes out as itself, or as a description of torch's types."""
    value = {
        "none": None, "yes": True, "int": -(2**70), "float": 0.1, "complex": 1 - 2j, "text": "größer",
        "bytes": b"\0\xff",
        "empty": b"", "array": bytearray(b"ab"), "list": [1, [2]], "tuple": (), "set": {1, "a"},
        "frozen": frozenset({2}), "counter": Counter(a=3), ("k", 1): 1, None: 2, 2.5: 3,
    }  # fmt: skip
    root = open_pickled(save(value, tmp_path / "v.pt", new=True)).root
    assert root == value
    assert [type(found) for found in root.values()] == [type(wanted) for wanted in value.values()]


def test_torchs_own_types_are_descriptions(tmp_path):
    """torch.Size, torch.dtype and torch.device come out as names, without torch."""
    value = [torch.Size([2, 3]), torch.bfloat16, torch.device("cuda", 1), torch.device("cpu")]
    root = open_pickled(save(value, tmp_path / "t.pt", new=True)).root
    assert root == [Size((2, 3)), Dtype("bfloat16"), Device("cuda:1"), Device("cpu")]
    assert type(root[0]) is Size


def test_a_state_dicts_versions_are_kept(tmp_path):
    """The _metadata of a state_dict is described, not set as an attribute."""
    state = nn.BatchNorm1d(2).state_dict()
    root = open_pickled(save(state, tmp_path / "s.pt", new=True)).root
    assert type(root) is Ordered
    assert root.metadata == {"": {"version": 2}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_every_protocol_that_torch_can_write_is_read(tmp_path, new, protocol):
    """pickle_protocol of torch.save may be 2 to 5."""
    value = OrderedDict(
        w=torch.ones(2), values=[1, 2.5, "a", b"b", {1, 2}, frozenset({3}), bytearray(b"c"), 2**40]
    )
    path = tmp_path / "p.pt"
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    root = open_pickled(path).root
    assert type(root["w"]) is TensorRef
    assert root["values"] == value["values"]


def test_what_python_2_wrote_is_read(tmp_path):
    """Python 2's texts, its pairs as lists and its numbers in digits mean what they meant."""
    pairs = b"]](U\x01a" + tensor(OLD) + b"ea](U\x01bI4294967296\nea"
    path = tmp_path / "old.pth"
    path.write_bytes(legacy(proto(named("collections.OrderedDict") + pairs + b"\x85R"), {"0": (4, FLOATS)}))
    root = open_pickled(path).root
    assert list(root) == ["a", "b"]
    assert root["a"].shape == (4,)
    assert root["b"] == 2**32


def test_a_parameter_of_pytorch_0_3_is_read(tmp_path):
    """Before 0.4 a parameter was made by its class, and told afterwards whether it is trained."""
    made = named("torch.nn.parameter.Parameter") + tensor(OLD) + b"\x85"
    state = b"(" + b"\x89\x89" + named("collections.OrderedDict") + b")Rtb"
    for call in (b"R", b"\x81"):
        path = tmp_path / "old.pth"
        path.write_bytes(legacy(proto(made + call + b"q\x00" + state), {"0": (4, FLOATS)}))
        found = open_pickled(path).root
        assert (found.parameter, found.requires_grad) == (True, False)


def test_a_storages_view_is_read(tmp_path):
    """The old format can say that a storage is a part of another: elements count from there."""
    view = b"(" + text("v") + b"K\x01K\x02t"
    path = tmp_path / "view.pth"
    made = tensor(storage(view=view), shape=(2,))
    path.write_bytes(legacy(proto(made), {"0": (4, FLOATS)}))
    found = open_pickled(path).root
    assert (found.start, found.storage.numel) == (4, 2)


def test_numbers_of_numpy_are_plain_numbers(tmp_path):
    """A best score that was a numpy.float64 does not make a checkpoint unreadable; its value is exact."""
    numpy = pytest.importorskip("numpy")
    makers = ["float64", "float32", "float16", "int64", "uint8", "bool_", "complex64", "uint16"]
    values = [
        *(getattr(numpy, maker)(1) / 3 if "float" in maker else getattr(numpy, maker)(1) for maker in makers)
    ]
    root = open_pickled(save(values, tmp_path / "n.pt", new=True)).root
    assert root == [value.item() for value in values]
    assert [type(found) for found in root] == [float, float, float, int, int, bool, complex, int]


@pytest.mark.parametrize("new", FORMATS, ids=["zip", "legacy"])
def test_files_are_recognised_by_what_they_hold(tmp_path, new):
    """The name of a file says nothing."""
    path = save({"a": torch.ones(1)}, tmp_path / "weights.safetensors", new)
    assert is_pickled(path.read_bytes()[:HEAD])
    assert [row.name for row in pickled_listing(path).rows] == ["a"]


@pytest.mark.parametrize(
    "head", [b"", b"\x00" * 600, b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"GGUF", b"PK"]
)
def test_other_files_are_not_taken_for_pickles(tmp_path, head):
    """What is neither a zip archive nor a pickle is left to others, and refused here."""
    assert not is_pickled(head)
    path = tmp_path / "x.pt"
    path.write_bytes(head)
    with pytest.raises(FormatError, match=r"no file of torch\.save"):
        open_pickled(path)


def test_a_tar_archive_of_2017_is_named(tmp_path):
    """The format before 0.1.10 is not read; the error says what to do."""
    import tarfile

    path = tmp_path / "x.pth"
    (tmp_path / "storages").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(FormatError, match=r"before version 0\.1\.10 .* save it again"):
        open_pickled(path)


def test_a_file_saved_under_a_strange_name_is_read(tmp_path):
    """Torch names the folder in the archive after the file."""
    path = save({"a": torch.ones(1)}, tmp_path / "Größe 12:30 [ä].pt", new=True)
    assert [row.name for row in pickled_listing(path).rows] == ["a"]


def test_attributes_of_tensors_are_left_out_and_told(tmp_path):
    """An attribute that someone hung on a tensor does not come back, and its name is said."""
    weight = nn.Parameter(torch.ones(1))
    weight.partition_dim = 1
    buffer = nn.Buffer(torch.ones(1))
    pickled = open_pickled(save([weight, buffer], tmp_path / "a.pt", new=True))
    assert "partition_dim" in pickled.left_out
    assert [found.parameter for found in pickled.root] == [True, False]


def test_shared_parts_stay_shared(tmp_path):
    """One object under two keys is one object in the description."""
    inner = [torch.ones(1)]
    root = open_pickled(save({"a": inner, "b": inner}, tmp_path / "s.pt", new=True)).root
    assert root["a"] is root["b"]


def test_describing_needs_no_torch_and_no_pickle(tmp_path):
    """Listing a file imports neither torch nor Python's own unpickler."""
    path = save({"a": torch.ones(1)}, tmp_path / "a.pt", new=True)
    code = (
        "import sys; from torchkeep.formats.pickles import pickled_listing; "
        f"print([row.name for row in pickled_listing({str(path)!r}).rows]); "
        "print(sorted({'torch', 'numpy', 'pickle', '_pickle', 'zipfile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["['a']", "[]"]


def test_a_whole_program_by_hand_is_read(tmp_path):
    """The hand-made files of these tests are read when nothing is wrong with them."""
    for data in (zipped(proto(tensor()), {"0": FLOATS}),):
        path = tmp_path / "x.pt"
        path.write_bytes(data)
        assert open_pickled(path).root.shape == (4,)
