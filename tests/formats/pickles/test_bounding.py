"""Bombs: small files that stand for much memory, much time or no end are refused, or read without expanding."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from torch_files import FLOATS, OLD, legacy, named, number, proto, tensor, text, zipped
from torchkeep.errors import FormatError
from torchkeep.formats.pickles import machine, naming, open_pickled, program

STORAGES = {"0": FLOATS}


def describe(tmp_path, body, version=4):
    path = tmp_path / "bomb.pt"
    path.write_bytes(zipped(proto(body, version), STORAGES))
    return open_pickled(path)


def doubling(core, levels):
    """Return a program for ``(x, x)`` of ``(y, y)`` of ... of ``core``."""
    return core + b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(levels))


def chain(first, link, depth):
    """Return a program for a tuple of containers, each of which holds the one before."""
    links = (link % (b"j" + struct.pack("<I", level)) + b"\x94" for level in range(depth))
    return b"(" + first + b"\x94" + b"".join(links) + b"t"


def test_doubling_costs_nothing_until_it_is_written_out(tmp_path):
    """2**60 places of one list are 60 tuples, and the tensors in them can't be listed one by one."""
    pickled = describe(tmp_path, doubling(b"]", 60))
    assert not pickled.listing.rows
    pickled = describe(tmp_path, doubling(tensor(), 60))
    with pytest.raises(FormatError, match="shares its parts so often"):
        _ = pickled.listing


def test_a_little_sharing_is_listed(tmp_path):
    """The same part under several names is several names of one tensor."""
    pickled = describe(tmp_path, doubling(tensor(), 3))
    (row,) = pickled.listing.rows
    assert row.names == ("0.0.0", "0.0.1", "0.1.0", "0.1.1", "1.0.0", "1.0.1", "1.1.0", "1.1.1")


def test_sharing_is_bounded_by_what_there_is(tmp_path, monkeypatch):
    """Names are not made for places of which there are many more than values."""
    monkeypatch.setattr(naming, "_FREE", 0)
    assert len(describe(tmp_path, doubling(tensor(), 3)).tensors) == 8
    with pytest.raises(FormatError, match="shares its parts so often"):
        _ = describe(tmp_path, doubling(tensor(), 8)).listing


def test_names_that_take_too_much_memory_are_refused(tmp_path, monkeypatch):
    """A long key above many tensors is not copied without end."""
    monkeypatch.setattr(naming, "MAX_TEXT", 10_000)
    many = b"](" + tensor() + b"\x94" + b"h\x00" * 99 + b"e"
    pickled = describe(tmp_path, b"}" + text("k" * 200) + many + b"s")
    with pytest.raises(FormatError, match="would not end"):
        _ = pickled.listing


@pytest.mark.parametrize(
    "body",
    [
        b"]\x94h\x00a",
        b"]\x94h\x00\x85a",
        b"}\x94" + text("a") + b"h\x00s",
        b"]\x94]h\x00a\x85a",
        named("collections.OrderedDict") + b")R\x94}" + text("_metadata") + b"}" + text("a") + b"h\x00ssb",
    ],
    ids=["list", "tuple", "dict", "deeper", "metadata"],
)
def test_what_contains_itself_is_refused(tmp_path, body):
    """A circle is named as such."""
    with pytest.raises(FormatError, match="contains itself"):
        describe(tmp_path, body)


@pytest.mark.parametrize("depth", [101, 100_000])
@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_deep_nesting_is_refused(tmp_path, kind, depth):
    """Neither reading nor refusing nor throwing away what is deeply nested needs a deep stack."""
    body = {
        "tuple": b")" + b"\x85" * depth,
        "list": chain(b"]", b"]%sa", depth),
        "dict": chain(b"}", b"}" + text("a") + b"%ss", depth),
    }[kind]
    with pytest.raises(FormatError, match="nested more than 100 deep"):
        describe(tmp_path, body)


def test_a_hundred_levels_are_read(tmp_path):
    """The limit of depth is where it is said to be."""
    root = describe(tmp_path, b")" + b"\x85" * 99).root
    for _ in range(99):
        (root,) = root
    assert root == ()
    with pytest.raises(FormatError, match="nested more than 100 deep"):
        describe(tmp_path, b")" + b"\x85" * 100)


def test_marks_within_marks_are_bounded(tmp_path):
    """Beginnings without ends don't pile up."""
    with pytest.raises(FormatError, match="nests more than 1000 deep"):
        describe(tmp_path, b"(" * 2000)


def test_a_program_of_very_many_instructions_is_refused(tmp_path, monkeypatch):
    """Containers of one byte each don't fill the memory."""
    monkeypatch.setattr(program, "_FREE", 1000)
    with pytest.raises(FormatError, match=r"after \d+ instructions"):
        describe(tmp_path, b"](" + b"]" * 10_000 + b"e")


@pytest.mark.parametrize(
    ("kept", "again"),
    [
        (b"N", b"\x8f"),
        (b"N", b"(\x91"),
        (text("x" * 10_000), named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R"),
        (b"B\x10\x27\x00\x00" + bytes(10_000), named("builtins.bytearray") + b"h\x00\x85R"),
        (b"](" + number(0) * 100 + b"e", named("builtins.set") + b"h\x00\x85R"),
        (b"](" + number(0) * 100 + b"e", named("torch.Size") + b"h\x00\x85R"),
        (b"](" + b"NN\x86" * 100 + b"e", named("collections.OrderedDict") + b"h\x00\x85R"),
        (
            b"}(" + b"".join(text(str(n)) + b"N" for n in range(100)) + b"u",
            named("collections.Counter") + b"h\x00\x85R",
        ),
    ],
    ids=["set", "frozenset", "encode", "bytearray", "builtin-set", "Size", "OrderedDict", "Counter"],
)
def test_copies_without_end_are_refused(tmp_path, monkeypatch, kept, again):
    """What is made out of what the memo keeps, again and again, counts; so do sets, whose smallest is large."""
    monkeypatch.setattr(program, "_FREE", 0)
    body = b"(" + text("y" * 20_000) + kept + b"\x94%s" + b"t"
    assert len(describe(tmp_path, body % b"").root) == 2
    with pytest.raises(FormatError, match="copies so much"):
        describe(tmp_path, body % (again * 5000))


def test_numbers_in_the_memo_are_bounded(tmp_path):
    """A pickle can't make the memo long by counting from a large number."""
    for index in (2000, 4_000_000_000):
        with pytest.raises(FormatError, match=f"under the number {index}"):
            describe(tmp_path, b"Nr" + struct.pack("<I", index))
    assert describe(tmp_path, b"Nr" + struct.pack("<I", 200)).root is None


def test_whole_numbers_are_bounded(tmp_path):
    """A number has at most 4096 bytes."""
    assert describe(tmp_path, b"\x8b" + struct.pack("<I", 4096) + b"\x01" * 4096).root > 2**32000
    with pytest.raises(FormatError, match="whole number of 4097 bytes"):
        describe(tmp_path, b"\x8b" + struct.pack("<I", 4097) + b"\x01" * 4097)


def test_keys_are_not_nested_deeply(tmp_path):
    """A tuple may be a key, a tower of tuples may not."""
    assert describe(tmp_path, b"})" + b"\x85" * 7 + b"Ns").root == {((((((((),),),),),),),): None}
    for depth in (8, 100_000):
        with pytest.raises(FormatError, match="uses a tuple as a key"):
            describe(tmp_path, b"})" + b"\x85" * depth + b"Ns")


@pytest.mark.parametrize("wrap", [b"", b"\x85"], ids=["number", "tuple"])
def test_keys_that_collide_are_bounded(tmp_path, wrap):
    """Different keys of one hash make mappings slow, however many mappings they are in: only a few are taken."""

    def keys(count):
        return [number((2**61 - 1) * (index + 1)) + wrap + b"N" for index in range(count)]

    few, many = keys(machine.MAX_ALIKE), keys(machine.MAX_ALIKE + 1)
    mappings = b"(" + (b"}(" + b"".join(few) + b"u") * 100 + b"t"
    assert [len(mapping) for mapping in describe(tmp_path, mappings).root] == [machine.MAX_ALIKE] * 100
    for body in (b"}(" + b"".join(many) + b"u", b"(" + b"".join(b"}(" + key + b"u" for key in many) + b"t"):
        with pytest.raises(FormatError, match="of one hash"):
            describe(tmp_path, body)


def test_keys_that_do_not_count_up_are_bounded(tmp_path):
    """Of keys that might collide only so many are taken."""
    many = machine.MAX_ODD_KEYS + 1
    odd = b"".join(number(index * 2) + b"N" for index in range(many))
    with pytest.raises(FormatError, match="neither text nor counted up"):
        describe(tmp_path, b"}(" + odd + b"u")
    with pytest.raises(FormatError, match="neither text nor counted up"):
        describe(tmp_path, b"(" + (text("a") * many) + b"t\x94}h\x00Ns")


def test_many_keys_that_count_up_are_read(tmp_path):
    """Parameters by number, tokens by id: large mappings of that kind are not bombs."""
    keys = b"".join(b"J" + struct.pack("<i", index) + b"N" for index in range(200_000))
    assert len(describe(tmp_path, b"}(" + keys + b"u").root) == 200_000


@pytest.mark.parametrize("code", [b"\x8e", b"\x8d", b"\x96", b"B", b"X", b"T"])
def test_lengths_allocate_nothing(tmp_path, code):
    """A length of many bytes is compared with what there is before anything is made of it."""
    wide = code in {b"\x8e", b"\x8d", b"\x96"}
    body = code + (struct.pack("<Q", 1 << 40) if wide else struct.pack("<I", (1 << 32) - 1))
    for data in (zipped(proto(body)), legacy(proto(body))):
        path = tmp_path / "bomb.pt"
        path.write_bytes(data)
        tracemalloc.start()
        with pytest.raises(FormatError):
            open_pickled(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 22


def test_a_long_pickle_of_the_old_format_is_read_in_steps(tmp_path):
    """A pickle longer than the first megabyte is found whole, and the storages after it."""
    padding = b"](" + (b"C\xff" + bytes(255)) * 9000 + b"e"
    path = tmp_path / "long.pth"
    path.write_bytes(legacy(proto(b"(" + padding + tensor(OLD) + b"t", 4), {"0": (4, FLOATS)}))
    pickled = open_pickled(path)
    extent = pickled.extents["0"]
    assert path.read_bytes()[extent.start : extent.start + extent.nbytes] == FLOATS
    assert len(pickled.root[0]) == 9000


def test_a_pickle_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    """Data belongs into tensors: pickles beyond a size are not read into memory."""
    from torchkeep.formats.pickles import legacy as old
    from torchkeep.formats.pickles import zipped as new

    monkeypatch.setattr(old, "MAX_PROGRAM", 1 << 20)
    monkeypatch.setattr(new, "MAX_PROGRAM", 1 << 20)
    body = b"](" + (b"C\xff" + bytes(255)) * 9000 + b"e"
    for data in (zipped(proto(body, 4)), legacy(proto(body, 4))):
        path = tmp_path / "long.pt"
        path.write_bytes(data)
        with pytest.raises(FormatError, match="save large data as tensors"):
            open_pickled(path)
