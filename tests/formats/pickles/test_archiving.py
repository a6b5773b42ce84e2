"""Zip archives that lie: each trick by which readers of one file see different things is an error."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import pytest
import torch

from torch_files import FLOATS, proto, tensor, zipped
from torchkeep.errors import DamageError, FormatError, UnsafeFileError
from torchkeep.formats.pickles import open_pickled

PROGRAM = proto(tensor())
STORAGES = {"0": FLOATS}
CENTRAL = {"flags": 8, "method": 10, "crc": 16, "packed": 20, "size": 24, "names": 28, "disk": 34, "header": 42}


def describe(tmp_path, data):
    path = tmp_path / "trick.pt"
    path.write_bytes(data)
    return open_pickled(path)


def refused(tmp_path, data, match):
    with pytest.raises(FormatError, match=match) as caught:
        describe(tmp_path, data)
    return caught.value


def patched(data, record, field, value, width="<I"):
    """Return the archive with one field of a record's entry in the directory changed."""
    name = record.encode()
    at = data.index(b"PK\x01\x02")
    while not data[at + 46 :].startswith(name):
        at = data.index(b"PK\x01\x02", at + 1)
    changed = bytearray(data)
    struct.pack_into(width, changed, at + CENTRAL[field], value)
    return bytes(changed)


def packed(records):
    """Return an archive of (name, data) pairs, some of which may have one name."""
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in records:
            archive.writestr(name, data)
    return made.getvalue()


GOOD = zipped(PROGRAM, STORAGES)


def test_the_archive_of_these_tests_is_read(tmp_path):
    """What is changed below is fine when it is not changed."""
    assert describe(tmp_path, GOOD).root.shape == (4,)


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0", "archive/version"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, name):
    """One reader takes the first, another the last: neither is taken."""
    records = [
        ("archive/data.pkl", PROGRAM),
        ("archive/data/0", FLOATS),
        ("archive/version", "3"),
        (name, b"other"),
    ]
    refused(tmp_path, packed(records), "twice")


@pytest.mark.parametrize("name", ["../evil", "archive/../../evil", "/etc/passwd", "archive\\..\\evil"])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    """Nothing is unpacked, but no honest archive has such names."""
    refused(
        tmp_path, packed([("archive/data.pkl", PROGRAM), ("archive/data/0", FLOATS), (name, b"x")]), "leads out"
    )


@pytest.mark.parametrize("record", ["archive/data.pkl", "archive/data/0", "archive/other"])
def test_compressed_records_are_refused_whatever_their_size(tmp_path, record):
    """A bomb of zeros is never unpacked."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in {
            "archive/data.pkl": PROGRAM,
            "archive/data/0": FLOATS,
            "archive/other": b"\0" * 10**6,
        }.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if name == record else zipfile.ZIP_STORED)
    assert "zip -0" in str(refused(tmp_path, made.getvalue(), f"compressed record '{record}'"))


def test_sizes_that_differ_are_refused(tmp_path):
    """A size that is not the packed size means compression, whatever the method says."""
    refused(tmp_path, patched(GOOD, "archive/data/0", "size", 1 << 30), "compressed")


def test_records_that_overlap_are_refused(tmp_path):
    """Bytes belong to one record: quines and bombs of shared bytes are errors."""
    longer = len(FLOATS) + 100
    data = GOOD
    for field in ("size", "packed"):
        data = patched(data, "archive/data/0", field, longer)
    at = data.index(b"archive/data/0") - 30
    data = bytearray(data)
    struct.pack_into("<2I", data, at + 18, longer, longer)
    refused(tmp_path, bytes(data), "overlap")


def test_a_record_over_the_directory_is_refused(tmp_path):
    """The last record ends before the directory."""
    data = bytearray(GOOD)
    at = data.index(b"archive/version") - 30
    for place in (at + 18, at + 22):
        struct.pack_into("<I", data, place, 20)
    for field in ("size", "packed"):
        data = bytearray(patched(bytes(data), "archive/version", field, 20))
    refused(tmp_path, bytes(data), "overlap.*the directory")


@pytest.mark.parametrize("header", [1 << 31, 5, 0])
def test_a_record_elsewhere_is_refused(tmp_path, header):
    """An entry that leads outside the file, into the middle of something, or to another record."""
    refused(tmp_path, patched(GOOD, "archive/data/0", "header", header), "outside|something else|overlap")


def test_a_record_that_reaches_beyond_the_file_is_refused(tmp_path):
    """Sizes are compared with the file's."""
    data = patched(patched(GOOD, "archive/data/0", "size", 1 << 30), "archive/data/0", "packed", 1 << 30)
    refused(tmp_path, data, "two different things")
    at = data.index(b"archive/data/0") - 30
    later = data[: at + 6] + b"\x08\x00" + data[at + 8 : at + 14] + bytes(12) + data[at + 26 :]
    refused(tmp_path, later, "overlap")


@pytest.mark.parametrize(("field", "value"), [("flags", 1), ("flags", 0x41), ("flags", 0x2000), ("method", 99)])
def test_encrypted_and_unknown_records_are_refused(tmp_path, field, value):
    """Flags and methods that torch.save never writes."""
    refused(tmp_path, patched(GOOD, "archive/data/0", field, value, "<H"), "encrypted|compressed")


@pytest.mark.parametrize("place", [6, 8, 14, 18, 22, 26, 30, 35])
def test_headers_that_contradict_the_directory_are_refused(tmp_path, place):
    """Flags, method, checksum, sizes, length of the name and name of a record are said twice."""
    data = bytearray(GOOD)
    at = data.index(b"archive/data/0") - 30
    data[at + place] ^= 0x01
    with pytest.raises(FormatError):
        describe(tmp_path, bytes(data))


@pytest.mark.parametrize("disk", [1, 0xFFFF])
def test_archives_in_parts_are_refused(tmp_path, disk):
    """A record on another disk is not in this file."""
    refused(tmp_path, patched(GOOD, "archive/data/0", "disk", disk, "<H"), "damaged")


@pytest.mark.parametrize("place", [4, 6, 8, 10, 12, 16, 20])
def test_a_wrong_end_is_refused(tmp_path, place):
    """Counts, size and place of the directory are all checked."""
    data = bytearray(GOOD)
    data[-22 + place] ^= 0x01
    with pytest.raises(FormatError):
        describe(tmp_path, bytes(data))


def test_bytes_before_and_after_the_archive_are_refused(tmp_path):
    """A second file in front, or anything behind that is no comment, is not skipped over."""
    refused(tmp_path, GOOD + b"x", "no directory at its end")
    refused(tmp_path, GOOD[:4] + b"x" + GOOD[4:], "not where it says")
    refused(tmp_path, GOOD + GOOD, "not where it says")


def test_a_comment_is_skipped_and_can_not_hide_a_directory(tmp_path):
    """The end of the directory is the last that reaches exactly to the end of the file."""
    comment = b"made by hand"
    with_comment = GOOD[:-2] + struct.pack("<H", len(comment)) + comment
    assert describe(tmp_path, with_comment).root.shape == (4,)
    fake = b"PK\x05\x06" + bytes(18)
    hidden = GOOD[:-2] + struct.pack("<H", len(fake)) + fake
    refused(tmp_path, hidden, "not where it says|no file|pickles")


def wide(data, *, size=None, start=None, end=None):
    """Return the archive with a directory as for more than 4 GiB, whose numbers may be wrong."""
    at = data.rindex(b"PK\x05\x06")
    here, count, length, place = struct.unpack_from("<2H2I", data, at + 8)
    numbers = here, count, length if size is None else size, place if start is None else start
    big = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *numbers)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at if end is None else end, 1)
    narrow = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, here, count, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:at] + big + locator + narrow


def test_a_wide_directory_is_read_and_checked(tmp_path):
    """The directory of an archive of more than 4 GiB: each of its numbers must fit."""
    assert describe(tmp_path, wide(GOOD)).root.shape == (4,)
    for wrong in ({"size": 1}, {"size": 2**63}, {"start": 0}, {"start": 2**63}, {"end": 0}, {"end": 2**63}):
        refused(tmp_path, wide(GOOD, **wrong), "not where it says")


def test_directories_that_contradict_each_other_are_refused(tmp_path):
    """A number that is not saturated in the narrow end must be the one in the wide end."""
    for place in (8, 10, 12, 16):
        data = bytearray(wide(GOOD))
        struct.pack_into("<H" if place < 12 else "<I", data, len(data) - 22 + place, 7)
        refused(tmp_path, bytes(data), "contradict each other")


def test_bytes_between_the_directory_and_its_end_are_refused(tmp_path):
    """A directory holds its entries and nothing else."""
    at = GOOD.rindex(b"PK\x05\x06")
    (size,) = struct.unpack_from("<I", GOOD, at + 12)
    longer = GOOD[:at] + bytes(46) + GOOD[at : at + 12] + struct.pack("<I", size + 46) + GOOD[at + 16 :]
    refused(tmp_path, longer, "longer than its records")


def test_wide_sizes_are_read_and_checked(tmp_path):
    """A record's sizes and place may stand in its extra field; they are checked like others."""
    data = GOOD
    at = data.index(b"PK\x01\x02")
    while not data[at + 46 :].startswith(b"archive/data/0"):
        at = data.index(b"PK\x01\x02", at + 1)
    header = struct.unpack_from("<I", data, at + 42)[0]
    for extra, fine in [
        (struct.pack("<2H3Q", 1, 24, 16, 16, header), True),
        (struct.pack("<2HI", 9, 4, 0) + struct.pack("<2H3Q", 1, 24, 16, 16, header), True),
        (struct.pack("<2H3Q", 1, 24, 17, 17, header), False),
        (struct.pack("<2H3Q", 1, 24, 2**63, 2**63, header), False),
        (struct.pack("<2H3Q", 1, 24, 16, 16, 2**63), False),
        (struct.pack("<2HQ", 1, 8, 16), False),
        (struct.pack("<2H", 1, 500), False),
        (b"", False),
    ]:
        entry = bytearray(data[at : at + 46])
        struct.pack_into("<2I", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", entry, 30, len(extra))
        struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
        changed = data[:at] + entry + data[at + 46 : at + 60] + extra + data[at + 60 :]
        end = len(changed) - 22
        longer = struct.unpack_from("<I", changed, end + 12)[0] + len(extra)
        changed = changed[: end + 12] + struct.pack("<I", longer) + changed[end + 16 :]
        if fine:
            assert describe(tmp_path, changed).extents["0"].nbytes == 16
        else:
            refused(tmp_path, changed, "zip archive")


def test_a_file_of_more_than_4_gib_is_read(tmp_path):
    """Places and sizes beyond 32 bits, as torch itself writes them; the file has holes instead of zeros."""
    small = tmp_path / "small.pt"
    torch.save({"a": torch.zeros(16), "b": torch.arange(4.0)}, small)
    gap = 5 * 2**30
    data = small.read_bytes()
    first = open_pickled(small)
    extent = first.extents[first.tensors["a"].storage.key]
    cut, directory = extent.start + extent.nbytes, data.index(b"PK\x01\x02")
    large = tmp_path / "large.pt"
    try:
        with large.open("wb") as file:
            file.write(data[:cut])
            file.seek(cut + gap)
            file.write(data[cut:directory])
            file.write(_widened(data, directory, cut, gap))
    except OSError:
        pytest.skip("the file system holds no file of that size")
    pickled = open_pickled(large)
    assert pickled.extents[pickled.tensors["a"].storage.key].nbytes == 64 + gap
    place = pickled.extents[pickled.tensors["b"].storage.key]
    assert place.start > gap
    with large.open("rb") as file:
        file.seek(place.start)
        assert file.read(place.nbytes) == struct.pack("<4f", 0, 1, 2, 3)
    assert large.stat().st_blocks * 512 < 2**24


def _widened(data, directory, cut, gap):
    """Return a directory in which everything after ``cut`` is further away, and the record before it longer."""
    entries = b""
    at, count = directory, 0
    while data[at : at + 4] == b"PK\x01\x02":
        entry = bytearray(data[at : at + 46])
        size, name, extra, comment = *struct.unpack_from("<I", entry, 24), *struct.unpack_from("<3H", entry, 28)
        (header,) = struct.unpack_from("<I", entry, 42)
        moved = header + gap if header >= cut else header
        length = size + gap if data[at + 46 : at + 46 + name].endswith(b"/data/0") else size
        struct.pack_into("<3I", entry, 16, 0, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<2H", entry, 30, 28, 0)
        struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
        entries += entry + data[at + 46 : at + 46 + name] + struct.pack("<2H3Q", 1, 24, length, length, moved)
        at += 46 + name + extra + comment
        count += 1
    start = directory + gap
    end = start + len(entries)
    big = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    return (
        entries + big + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, *[0xFFFFFFFF] * 2, 0)
    )


def test_a_damaged_pickle_is_not_looked_at(tmp_path):
    """The pickle's checksum comes first; the error names its byte range."""
    at = GOOD.index(b"FloatStorage")
    data = GOOD[:at] + b"f" + GOOD[at + 1 :]
    with pytest.raises(DamageError, match="checksum differs") as caught:
        describe(tmp_path, data)
    assert GOOD[caught.value.start : caught.value.stop] == PROGRAM


def test_a_pickle_without_a_checksum_is_read(tmp_path):
    """Torch can be told to write none: zeros."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "n.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    pickled = open_pickled(tmp_path / "n.pt")
    assert [row.name for row in pickled.listing.rows] == ["a"]
    assert {extent.crc for extent in pickled.extents.values()} == {None}


def test_torchscript_and_packages_are_named(tmp_path):
    """Archives of other kinds that torch writes hold programs; the error says which and what to do."""
    code = {"code/__torch__.py": b"def forward(self): ...", "constants.pkl": proto(b")")}
    assert "torch.jit.load" in str(refused(tmp_path, zipped(PROGRAM, STORAGES, records=code), "TorchScript"))
    package = {".data/extern_modules": b"os"}
    refused(tmp_path, zipped(PROGRAM, STORAGES, records=package), r"torch\.package")


def test_a_real_torchscript_archive_is_named(tmp_path):
    """What torch.jit.save writes, compressed records included, is recognised before it is complained about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "net.pt")
    with pytest.raises(FormatError, match="TorchScript"):
        open_pickled(tmp_path / "net.pt")


@pytest.mark.parametrize("records", [[], [("a.txt", b"x")], [("data.pkl", PROGRAM)], [("a/b/data.pkl", PROGRAM)]])
def test_other_archives_are_refused(tmp_path, records):
    """A zip archive without <folder>/data.pkl is no file of torch.save."""
    refused(tmp_path, packed(records), r"none that torch\.save writes|no file of torch\.save")


def test_two_pickles_are_refused(tmp_path):
    """There is one value in a file."""
    records = [("a/data.pkl", PROGRAM), ("b/data.pkl", PROGRAM)]
    refused(tmp_path, packed(records), "2 pickles")


@pytest.mark.parametrize("version", [b"0", b"11", b"x", b"", b"1" * 100, b"-1"])
def test_other_versions_are_refused(tmp_path, version):
    """The layout has a version, and only known ones are read."""
    refused(tmp_path, zipped(PROGRAM, STORAGES, records={"version": version}), "version")


def test_an_unknown_byte_order_is_refused(tmp_path):
    """Numbers are little-endian or big-endian."""
    refused(tmp_path, zipped(PROGRAM, STORAGES, records={"byteorder": b"middle"}), "byte order")
    assert describe(tmp_path, zipped(PROGRAM, STORAGES, records={"byteorder": b"big"})).byte_order == "big"


def test_a_storage_that_is_too_short_is_refused(tmp_path):
    """A record must hold as many bytes as the pickle says."""
    refused(tmp_path, zipped(PROGRAM, {"0": FLOATS[:-1]}), "15 bytes of storage '0', where 16 are needed")
    refused(tmp_path, zipped(PROGRAM, {}), "which the file does not hold")


def test_a_hostile_pickle_in_an_honest_archive_is_named(tmp_path):
    """The archive's checks come first, the pickle's do too."""
    with pytest.raises(UnsafeFileError, match=r"os\.system"):
        describe(tmp_path, zipped(proto(b"cos\nsystem\n"), STORAGES))
