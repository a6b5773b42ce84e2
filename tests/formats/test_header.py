"""The header of a safetensors file: read as its own package reads it, and never trusted."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from torchkeep.errors import DamageError, FormatError, MissingFileError, StorageError
from torchkeep.formats import listing_of, open_contents
from torchkeep.formats.safetensors import MAX_HEADER, Entry, compose_header, read_header
from torchkeep.rows import Row


def write(path, header, data=b"", length=None):
    """Write a file whose header is ``header``: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_what_the_safetensors_package_writes_is_listed(path):
    """Names, shapes and dtypes come out as they went in, metadata too; classes are not known."""
    tensors = {"b.weight": torch.zeros(3, 4), "a": torch.ones((), dtype=torch.bfloat16), "é ": torch.zeros(0, 2)}
    save_file(tensors, path, metadata={"shape": "not a shape", "format": "pt"})
    listing = listing_of(path)
    assert {row.name: row for row in listing.rows} == {
        "b.weight": Row("b.weight", (3, 4), "float32"),
        "a": Row("a", (), "bfloat16"),
        "é ": Row("é ", (0, 2), "float32"),
    }
    assert listing.modules is None
    assert listing.source == str(path)
    assert read_header(path).metadata == {"shape": "not a shape", "format": "pt"}


def test_what_is_composed_is_read_back_and_aligned():
    """A composed header's data starts at a multiple of 4096, and its padding is spaces."""
    raw = compose_header({"a": Entry("F32", (2,), (0, 8))}, {"k": "v"})
    assert len(raw) == 4096
    assert int.from_bytes(raw[:8], "little") == 4096 - 8
    assert json.loads(raw[8:]) == {"__metadata__": {"k": "v"}, "a": entry("F32", [2], 0, 8)}


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [3], 8, 11)}
BAD = {
    "no JSON": (b"{x}", "no JSON"),
    "not UTF-8": (b'{"a\xff":1}', "no JSON"),
    "an array": (b"[]", "does not begin"),
    "leading space": (b" {}", "does not begin"),
    "cut JSON": (b'{"a":', "no JSON"),
    "something after": (b"{} {}", "no JSON"),
    "entry is a number": ({"a": 1}, "'a'"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "'a'"),
    "no dtype": ({"a": {"shape": [8], "data_offsets": [0, 8]}}, "'a'"),
    "unknown dtype": ({"a": entry("F33", [2], 0, 8)}, "'a'.*F33"),
    "negative size": ({"a": entry("F32", [-2], 0, 8)}, "'a'"),
    "negative offset": ({"a": entry("F32", [2], -8, 0)}, "'a'"),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, "'a'"),
    "reversed offsets": ({"a": entry("F32", [2], 8, 0)}, "'a'"),
    "fractional size": ({"a": entry("F32", [2.5], 0, 8)}, "'a'"),
    "size is text": ({"a": entry("F32", ["2"], 0, 8)}, "'a'"),
    "size too large": ({"a": entry("F32", [2**64], 0, 8)}, "'a'"),
    "product overflows": ({"a": entry("U8", [2**32, 2**32], 0, 0)}, "'a'.*more than any file"),
    "too many dimensions": ({"a": entry("U8", [1] * 2000, 0, 1)}, "'a'"),
    "wrong size": ({"a": entry("F32", [3], 0, 8)}, "'a'.*12 bytes"),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("U8", [7], 4, 11)}, "overlap"),
    "same range": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, "overlap"),
    "hole": ({"a": entry("F32", [2], 0, 8), "b": entry("U8", [2], 9, 11)}, "no tensor claims"),
    "hole at the start": ({"b": entry("U8", [10], 1, 11)}, "no tensor claims"),
    "data after the last": ({"a": entry("F32", [2], 0, 8)}, "3 bytes after its last"),
    "metadata is a list": ({"__metadata__": []}, "not as safetensors defines"),
    "metadata holds numbers": ({"__metadata__": {"a": 1}}, "not as safetensors defines"),
    "deep": (b'{"a":' * 50_000, "nested too deeply"),
    "deep inside an entry": (b'{"a":{"x":' + b"[" * 50_000, "nested too deeply|no JSON|wrongly"),
    "the same name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry("U8", [11], 0, 11)).encode(),) * 2), "twice"),
    "the same field twice": (b'{"a":{"dtype":"U8","shape":[11],"shape":[11],"data_offsets":[0,11]}}', "twice"),
    "the same name in two spellings": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":%b}'
        % json.dumps(entry("U8", [11], 0, 11)).encode(),
        "twice",
    ),
}


@pytest.mark.parametrize(("header", "sentence"), BAD.values(), ids=BAD)
def test_a_header_that_does_not_hold_is_refused(path, header, sentence):
    """Each lie a header can tell is a FormatError that names the file and what is wrong."""
    write(path, header, bytes(11))
    with pytest.raises(FormatError, match=sentence) as caught:
        listing_of(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused_before_anything_is_read(path, length):
    """A length that no header has means that the file is something else."""
    write(path, GOOD, bytes(11), length=length)
    with pytest.raises(FormatError, match="no safetensors file"):
        listing_of(path)


@pytest.mark.parametrize(
    ("head", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><head>", "download the file again"),
        (b"\n<HTML>\n<body>404</body>", "download the file again"),
        (b"GGUF\x03\x00\x00\x00\x00", "get the model as safetensors"),
        (b"\x89HDF\r\n\x1a\n\x00", "convert it with what wrote it"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "torch.from_numpy"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gunzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00\x00\x00\x00", "unzstd"),
        (b"PK\x05\x06" + bytes(18), "empty zip archive"),
    ],
)
def test_what_is_often_downloaded_instead_is_named(path, head, advice):
    """A pointer of Git LFS or a web page is told as such, with what to do, not as an absurd header."""
    path.write_bytes(head)
    with pytest.raises(FormatError, match=advice) as caught:
        listing_of(path)
    assert "first eight bytes" not in str(caught.value)


def test_odd_but_valid_headers_are_read(path):
    """Spaces, escapes and unknown fields are JSON too; only the slow way looks at them."""
    text = b'{ "\\u0061" : {"dtype": "U8", "shape": [2, 3], "data_offsets": [0, 6], "note": {"x": 1}} }\n'
    assert listing_of(write(path, text, bytes(6))).rows == [Row("a", (2, 3), "uint8")]


def test_an_empty_tensor_of_a_huge_shape_is_no_overflow(path):
    """Zero times anything is zero bytes."""
    assert listing_of(write(path, {"a": entry("F32", [2**62, 2**62, 0], 0, 0)})).rows[0].numel == 0


def test_a_file_cut_short_is_named_at_every_length(path):
    """Whatever is missing at the end, the error is the library's own and names the file."""
    whole = write(path, GOOD, bytes(11)).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"file\.safetensors") as caught:
            listing_of(path)
        assert isinstance(caught.value, DamageError) == (length > 0)
    assert caught.value.tensor == "b"
    assert caught.value.stop == len(whole)


@pytest.mark.parametrize("new", [True, False])
def test_other_kinds_of_files_are_taken_for_what_they_are(path, new):
    """What torch.save wrote is listed, whatever the file's name; as a header it is refused for what it is."""
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=new)
    assert [row.name for row in listing_of(path).rows] == ["a"]
    with pytest.raises(FormatError, match=r"(zip archive|pickle).*torch\.save"):
        read_header(path)


def test_what_can_not_be_opened_is_told(tmp_path):
    """A missing file, a missing folder, a folder and a NUL each have their error."""
    with pytest.raises(MissingFileError, match=r"none\.safetensors.*does not exist") as caught:
        listing_of(tmp_path / "none.safetensors")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(FormatError, match="holds no model"):
        listing_of(tmp_path)
    with pytest.raises(StorageError, match="directory") as refused:
        open_contents(tmp_path)
    assert refused.value.filename == str(tmp_path)
    with pytest.raises(StorageError, match="not a directory"):
        listing_of(write(tmp_path / "x", {}) / "y")
    with pytest.raises(StorageError, match="check the path"):
        listing_of("a\0b")


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    """Only regular files are read; a pipe nobody writes to would block for ever."""
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no regular file"):
        listing_of(tmp_path / "pipe")
