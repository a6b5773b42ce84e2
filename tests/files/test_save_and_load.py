"""What is saved comes back as it was: containers, values, tensors, what they share, what autograd knows."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from saved_values import bits_of, described, no_strays, tensors_in
from torchkeep.formats import open_contents


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def there_and_back(obj, path):
    tk.save(obj, path)
    return tk.load(path)


@pytest.mark.parametrize(
    "obj",
    [
        torch.arange(4),
        torch.tensor(3.5),
        torch.zeros(0, 3),
        [torch.arange(4), torch.zeros(4)],
        {"x": torch.arange(4), "y": torch.zeros(4)},
        OrderedDict(b=torch.zeros(1), a=torch.ones(1)),
        {},
        [],
        (),
        None,
        17,
        {"epoch": 3, "history": [0.5, float("nan"), -0.0], "rng": b"\x00\xff", "big": 2**100},
        {"size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cuda:1")},
        {0: torch.ones(1), "0": torch.zeros(1), 0.5: torch.ones(2), (1, 2): torch.ones(3), None: torch.ones(4)},
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        {"__metadata__": torch.ones(1), "x": {"__metadata__": {"__metadata__": torch.zeros(1)}}},
        {"": torch.ones(1), "name with 'quotes' and é": torch.zeros(1)},
        {"optimizer": {"state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}}, "groups": [{"lr": 1e-3}]}},
        {"seen": Counter(a=2), "done": {1, 2}, "nested": [[[(torch.ones(1),)]]]},
        [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)],
        [torch.ones(2, requires_grad=True), torch.ones(2)],
    ],
    ids=lambda obj: repr(obj)[:40].replace("\n", " "),
)
def test_what_is_saved_comes_back(path, obj):
    """Types, bits, order, keys, Parameters and gradients' flags are those that were saved."""
    assert described(there_and_back(obj, path)) == described(obj)


TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, tuple(shape), generator=torch.Generator().manual_seed(seed)).to(
        dtype
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bool, torch.int64, torch.complex128, torch.bfloat16]),
    st.integers(0, 1000),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.integers(-3, 3) | st.sampled_from([None])
LEAVES = TENSORS | st.none() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OBJECTS)
def test_any_nested_object_comes_back_and_other_readers_open_its_file(tmp_path, obj):
    """Random nested objects come back exactly, and safetensors' own reader accepts every file."""
    path = tmp_path / "file.safetensors"
    report = tk.save(obj, path)
    assert described(tk.load(path)) == described(obj)
    assert len(report.names) == len(tensors_in(obj)) == len(set(report.names))
    with safetensors.safe_open(path, "pt") as theirs:
        kept = {name: theirs.get_tensor(name) for name in theirs.keys()}  # noqa: SIM118 - it is no dict
    assert sum(len(bits_of(tensor)) for tensor in kept.values()) == sum(map(len, map(bits_of, tensors_in(obj))))


def test_saving_twice_gives_the_same_bytes(path, tmp_path):
    """Nothing in a file depends on time, place, hashes or the order of threads."""
    obj = {"tags": {"b", "a", "c"}, "w": torch.arange(9_000_000, dtype=torch.float32), "t": torch.ones(3, 4).t()}
    first = tk.save(obj, path)
    second = tk.save(obj, tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()
    assert first.digest == second.digest
    assert tk.save({**obj, "w": obj["w"] + 1}, path).digest != first.digest


def test_data_begins_at_a_page_and_every_tensor_is_aligned(path):
    """The header is padded to 4096 bytes, and each tensor's bytes begin at a multiple of its element's size."""
    tk.save(
        {"b": torch.ones(3, dtype=torch.bool), "d": torch.ones(1, dtype=torch.float64), "f": torch.ones(1)}, path
    )
    contents = open_contents(path)
    assert contents.header.data_start % 4096 == 0
    assert [row.name for row in contents.listing.rows] == ["b", "d", "f"]
    assert contents.stored("d").start % 8 == contents.stored("f").start % 4 == 0


def test_a_tie_comes_back_as_one_object(path):
    """One tensor in several places is kept once, and is one object again."""
    shared = torch.arange(3.0)
    report = tk.save({"a": shared, "deep": [shared, shared.view(3)], "other": shared.clone()}, path)
    assert report.ties == (("a", "deep.0", "deep.1"),)
    back = tk.load(path)
    assert back["a"] is back["deep"][0] is back["deep"][1]
    assert back["other"] is not back["a"]
    assert list(open_contents(path).header.entries) == ["a", "other"]


def test_views_share_memory_again(path):
    """A tensor that covers others is kept; they come back as views with their shapes, strides and offsets."""
    base = torch.arange(24.0)
    obj = {
        "row": base.view(4, 6)[1],
        "base": base,
        "t": base.view(4, 6).t(),
        "wide": base[:3].expand(2, 3),
        "bits": base.view(torch.int32)[4:6],
    }
    tk.save(obj, path)
    assert list(open_contents(path).header.entries) == ["base"]
    back = tk.load(path)
    assert list(back) == list(obj)
    for name, tensor in obj.items():
        assert described(back[name]) == described(tensor)
        assert back[name].stride() == tensor.stride()
        assert back[name].storage_offset() == tensor.storage_offset()
    back["base"].zero_()
    assert all(bool((tensor == 0).all()) for tensor in back.values())


def test_overlapping_tensors_that_none_covers_share_memory_again(path):
    """The memory in which they lie is kept under a name of its own, which is no row."""
    base = torch.arange(10.0)
    obj = {"left": base[1:6], "right": base[4:9], "apart": base[9:]}
    tk.save(obj, path)
    contents = open_contents(path)
    assert list(contents.header.entries) == ["apart", "left#storage"]
    assert contents.header.entries["left#storage"].shape == (8,)
    assert [row.name for row in contents.listing.rows] == ["left", "right", "apart"]
    back = tk.load(path)
    assert described(back) == described(obj)
    back["left"][3:] = -1
    assert back["right"].tolist() == [-1, -1, 6, 7, 8]


def test_overlapping_tensors_of_different_dtypes_share_memory_again(path):
    """Where elements differ in size, the shared memory is kept as bytes, at an offset that suits all."""
    raw = torch.arange(40, dtype=torch.uint8)
    obj = {"bytes": raw[3:13], "floats": raw[8:24].view(torch.float32)}
    back = there_and_back(obj, path)
    assert described(back) == described(obj)
    back["bytes"][5] = 255
    assert bits_of(back["floats"])[0] == 255


def test_an_overlap_of_one_byte_is_an_overlap(path):
    """Neighbours that share their last and first element share it again; those that only touch stay apart."""
    raw = torch.arange(9, dtype=torch.uint8)
    back = there_and_back({"left": raw[:5], "right": raw[4:], "touching": raw[:4]}, path)
    back["left"][4] = 99
    assert back["right"][0] == 99
    back = there_and_back({"left": raw[:5], "right": raw[5:]}, path)
    assert back["left"].untyped_storage().data_ptr() != back["right"].untyped_storage().data_ptr()


def test_disjoint_parts_of_one_storage_are_kept_apart(path):
    """Chunks of one buffer are ordinary tensors in the file, as safetensors' own users expect."""
    left, right = torch.arange(6.0).chunk(2)
    tk.save({"left": left, "right": right}, path)
    assert list(open_contents(path).header.entries) == ["left", "right"]


def test_a_lone_view_takes_only_its_own_bytes(path):
    """A slice of a large tensor, an expanded one and a strided one are written as their own elements."""
    big = torch.arange(1_000_000.0)
    obj = [big[5:8], big[10:11].expand(4), big[100:200:10]]
    report = tk.save(obj, path)
    assert report.nbytes < 10_000
    back = tk.load(path)
    assert described(back) == described(obj)
    assert all(tensor.is_contiguous() for tensor in back)


def test_memory_formats_come_back(path):
    """A dense tensor in another order has its strides again; its bytes in the file are row-major for others."""
    tensor = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = there_and_back({"x": tensor}, path)["x"]
    assert back.stride() == tensor.stride()
    assert torch.equal(back, tensor)
    with safetensors.safe_open(path, "pt") as theirs:
        assert torch.equal(theirs.get_tensor("x"), tensor)


def test_lazily_conjugated_and_negated_tensors_are_kept_as_what_they_show(path):
    """The values that are seen are written, not the memory behind them."""
    x = torch.randn(3, dtype=torch.complex64)
    obj = {"x": x, "conj": x.conj(), "neg": x.conj().imag}
    assert obj["conj"].is_conj()
    assert obj["neg"].is_neg()
    back = there_and_back(obj, path)
    assert all(torch.equal(back[name], tensor) for name, tensor in obj.items())


def test_a_parameter_and_its_data_stay_apart_but_share_memory(path):
    """They are two objects over one memory before, and so they are after."""
    parameter = nn.Parameter(torch.zeros(3))
    back = there_and_back([parameter, parameter.data], path)
    assert type(back[0]) is nn.Parameter
    assert type(back[1]) is torch.Tensor
    back[1].fill_(5)
    assert back[0].tolist() == [5, 5, 5]


def test_a_state_dict_comes_back_with_its_versions(path):
    """What ``state_dict`` gives keeps ``_metadata``, which some modules need to read old versions."""
    state = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
    back = there_and_back(state, path)
    assert described(back) == described(state)
    assert back._metadata == state._metadata


def test_a_selection_is_a_flat_dict_with_aliases(path):
    """``select`` gives names to tensors, a tied one under each of its names and one object."""
    shared = torch.ones(2)
    tk.save({"a": {"w": shared, "v": torch.zeros(1)}, "b": [shared]}, path)
    back = tk.load(path, select="a.w | a.v")
    assert list(back) == ["a.w", "b.0", "a.v"]
    assert back["a.w"] is back["b.0"]
    with pytest.raises(tk.errors.NoMatchError, match=r"a\.w"):
        tk.load(path, select="a.x")


def test_a_selection_reads_only_its_bytes(path):
    """Damage elsewhere in the file is not even seen."""
    tk.save({"good": torch.ones(5000), "bad": torch.ones(5000)}, path)
    start, _ = open_contents(path).header.span("bad")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff")
    assert torch.equal(tk.load(path, select="good")["good"], torch.ones(5000))
    with pytest.raises(tk.errors.DamageError):
        tk.load(path, select="bad")


def test_files_of_other_writers_load_as_they_load_them(path):
    """A file of safetensors' own, whose tensors lie at odd positions, gives the same tensors."""
    from safetensors.torch import load_file, save_file

    save_file({"odd": torch.ones(3, dtype=torch.bool), "x": torch.arange(5, dtype=torch.int16)}, path)
    raw = path.read_bytes()
    header = raw[8 : 8 + raw[0]].rstrip()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + raw[0] :])
    assert described(tk.load(path)) == described(load_file(path))
    assert tk.load(path, device="meta")["x"].device.type == "meta"


def test_a_load_goes_where_it_is_asked_to(path):
    """``device`` is where the tensors are; here only the meta device can stand for another."""
    tk.save([torch.ones(2)], path)
    assert tk.load(path, device="meta")[0].device.type == "meta"


def test_the_report_says_what_was_saved(path, tmp_path):
    """Names, size, ties, what was left out, and the digest of the header, all readable."""
    net = nn.Sequential(nn.Linear(2, 3))
    net.add_module("again", net[0])
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    report = tk.save(net, path)
    assert report.names == ("0.weight", "0.bias", "again.weight", "again.bias")
    assert report.ties == (("0.weight", "again.weight"), ("0.bias", "again.bias"))
    assert report.left_out == ("scratch",)
    assert report.nbytes == path.stat().st_size
    assert report.digest == open_contents(path).header.metadata["torchkeep.header"]
    for part in (str(path), "0.weight = again.weight", "scratch", report.digest):
        assert part in str(report)
    no_strays(tmp_path, path.name)


def test_a_path_object_and_text_mean_the_same_file(path):
    """Both are taken, and so is a path that is relative."""
    tk.save(torch.ones(1), str(path))
    previous = os.getcwd()  # noqa: PTH109
    os.chdir(path.parent)
    try:
        assert tk.load(path.name).item() == 1
        tk.save(torch.zeros(1), path.name)
    finally:
        os.chdir(previous)
    assert tk.load(path).item() == 0


def test_many_chunks_and_odd_sizes_come_back(path):
    """Tensors of several chunks, not multiples of a page, are digested chunk by chunk and put together again."""
    obj = {"a": torch.randn(9_000_001), "b": torch.randint(0, 255, (5_000_003,), dtype=torch.uint8).view(-1)}
    tk.save(obj, path)
    contents = open_contents(path)
    assert len(contents.digests.of("a", 2)) == 32
    back = tk.load(path)
    assert all(torch.equal(back[name], tensor) for name, tensor in obj.items())
    assert torch.equal(tk.load(path, verify=False)["a"], obj["a"])
