"""Damage is found and named, whatever is damaged: header, data, length; and hostile metadata harms nothing."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

import torchkeep as tk
from saved_values import described
from torchkeep.errors import DamageError, FormatError, NewerFormatError
from torchkeep.formats import open_contents
from torchkeep.formats.digests import HEADER_KEY, ZERO_DIGITS, seal
from torchkeep.formats.document import DOCUMENT_KEY
from torchkeep.formats.safetensors import compose_header

SHARED = torch.arange(6.0)
OBJ = {
    "w": torch.arange(3.0),
    "list": [SHARED, SHARED[2:4], SHARED],
    "n": 5,
    "c": torch.ones(2, dtype=torch.complex128),
}


@pytest.fixture
def path(tmp_path):
    tk.save(OBJ, tmp_path / "file")
    return tmp_path / "file"


def test_every_flipped_bit_is_found(path):
    """Each single bit of the file is flipped in turn: loading never succeeds and never fails otherwise."""
    whole = path.read_bytes()
    header = open_contents(path).header
    text_end = len(header.raw.rstrip(b" "))
    # All of the data and the length; of the long header, every seventh bit of its text and a few of its padding.
    bits = [*range(64), *range(64, text_end * 8, 7), *range(text_end * 8, text_end * 8 + 16)]
    bits += range(header.data_start * 8, len(whole) * 8)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError) as caught:
            tk.load(path)
        if bit >= header.data_start * 8:
            assert isinstance(caught.value, DamageError)
            assert caught.value.start <= bit // 8 < caught.value.stop
            assert repr(caught.value.tensor) in str(caught.value)
            assert caught.value.file == str(path)


def test_every_cut_is_found(path):
    """The file cut at each length is refused; an empty one, one without a whole header, one without all data."""
    whole = path.read_bytes()
    for length in [*range(20), 100, 1000, *range(4090, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="file"):
            tk.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FormatError, match="after its last tensor"):
        tk.load(path)


def test_damage_is_read_over_only_when_asked_to(path):
    """``verify=False`` leaves out the data's digests, not the header's."""
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert set(tk.load(path, verify=False)) == set(OBJ)
    whole[200] ^= 1
    path.write_bytes(whole)
    with pytest.raises(FormatError):
        tk.load(path, verify=False)


def test_a_header_that_another_tool_rewrote_is_noticed(path, tmp_path):
    """A file written anew by safetensors with our metadata has not our header; without it, it is simply a file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as theirs:
        metadata = theirs.metadata()
    save_file({"w": torch.zeros(3)}, tmp_path / "other", metadata)
    with pytest.raises(DamageError, match=r"header.*another tool"):
        tk.load(tmp_path / "other")
    save_file(load_file(path), tmp_path / "other")
    assert torch.equal(tk.load(tmp_path / "other")["w"], OBJ["w"])


def rewritten(path, change):
    """Write the file again with other metadata and a right seal: what an attacker could make."""
    contents = open_contents(path)
    data = path.read_bytes()[contents.header.data_start :]
    document = msgspec.json.decode(contents.header.metadata[DOCUMENT_KEY])
    entries = dict(contents.header.entries)
    change(document, entries)
    metadata = {HEADER_KEY: ZERO_DIGITS, "format": "pt", DOCUMENT_KEY: msgspec.json.encode(document).decode()}
    header = compose_header(entries, metadata)
    seal(header)
    path.write_bytes(bytes(header) + data)


def view(base="list.0", dtype="float32", shape=(2,), stride=(1,), offset=2):
    return [base, dtype, list(shape), list(stride), offset]


def deep(levels):
    node = 1
    for _ in range(levels):
        node = [node]
    return node


HOSTILE = {
    "no chunk size": lambda d: d.pop("chunk"),
    "chunk of nothing": lambda d: d.update(chunk=0),
    "chunks that cut elements": lambda d: d.update(chunk=3),
    "huge chunks": lambda d: d.update(chunk=2**40),
    "digests are no text": lambda d: d.update(digests=5),
    "digests are no base64": lambda d: d.update(digests="%%%"),
    "too few digests": lambda d: d.update(digests=""),
    "too many digests": lambda d: d.update(digests=d["digests"] * 2),
    "unknown root": lambda d: d.update(root="exec"),
    "a module without classes": lambda d: d.update(root="module"),
    "no tree": lambda d: d.pop("tree") and d.update(tree={"tensor": "none"}),
    "tree names no text": lambda d: d.update(tree={"tensor": 5}),
    "tree of an unknown kind": lambda d: d.update(tree={"os.system": "true"}),
    "deep tree": lambda d: d.update(tree=deep(150)),
    "very deep tree": lambda d: d.update(tree=deep(800)),
    "alias of nothing": lambda d: d.update(aliases={"list.2": "none"}),
    "alias of itself": lambda d: d.update(aliases={"list.2": "list.2"}),
    "aliases in a circle": lambda d: d.update(aliases={"list.2": "x", "x": "list.2"}),
    "alias is a tensor": lambda d: d["aliases"].update({"w": "list.0"}),
    "alias is a view": lambda d: d["aliases"].update({"list.1": "list.0"}),
    "view is a tensor": lambda d: d["views"].update({"w": view()}),
    "view of nothing": lambda d: d["views"].update({"list.1": view(base="none")}),
    "view of itself": lambda d: d["views"].update({"list.1": view(base="list.1")}),
    "view beyond the end": lambda d: d["views"].update({"list.1": view(offset=5)}),
    "view with long steps": lambda d: d["views"].update({"list.1": view(stride=(9,))}),
    "view with negative steps": lambda d: d["views"].update({"list.1": view(stride=(-1,))}),
    "view before the start": lambda d: d["views"].update({"list.1": view(offset=-1)}),
    "view of larger elements": lambda d: d["views"].update({"list.1": view(dtype="float64")}),
    "view of no dtype": lambda d: d["views"].update({"list.1": view(dtype="object")}),
    "view of a quantized dtype": lambda d: d["views"].update({"list.1": view(dtype="qint32")}),
    "view of two minds": lambda d: d["views"].update({"list.1": view(stride=(1, 1))}),
    "view that overflows": lambda d: d["views"].update({"list.1": view(shape=(2**62, 2**62), stride=(0, 0))}),
    "order forgets one": lambda d: d.update(order=d["order"][1:]),
    "order repeats one": lambda d: d.update(order=[*d["order"], "w"]),
    "dtype of nothing": lambda d: d["dtypes"].update({"none": "complex128"}),
    "unknown dtype": lambda d: d["dtypes"].update({"c": "complex256"}),
    "dtype that has a code": lambda d: d["dtypes"].update({"c": "float64"}),
    "dtype of another size": lambda d: d["dtypes"].update({"c": "complex32"}),
    "dtype of what is no bytes": lambda d: d["dtypes"].update({"w": "complex128"}),
    "strides of nothing": lambda d: d.update(strides={"none": [1]}),
    "strides with gaps": lambda d: d.update(strides={"w": [2]}),
    "strides of another rank": lambda d: d.update(strides={"w": [1, 1]}),
    "hidden nothing": lambda d: d.update(hidden=["none"]),
    "hidden and visible": lambda d: d.update(hidden=["w"]),
    "parameter that is none": lambda d: d.update(parameters=["none"]),
    "gradient of nothing": lambda d: d.update(gradients=["none"]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_metadata_that_contradicts_itself_is_refused(path, change):
    """Sealed metadata may still lie; each lie is a FormatError, before any tensor is made."""
    rewritten(path, lambda document, _: change(document))
    with pytest.raises(FormatError, match="file"):
        tk.load(path)


def test_what_the_hostile_cases_start_from_is_fine(path):
    """Rewritten without a change, the file loads: the cases above fail for what they change."""
    rewritten(path, lambda *_: None)
    assert described(tk.load(path)) == described(OBJ)


def test_a_gradient_for_whole_numbers_is_refused(tmp_path):
    """No integer tensor can require a gradient, whatever the file says."""
    tk.save([torch.arange(3)], tmp_path / "file")
    rewritten(tmp_path / "file", lambda document, _: document.update(gradients=["0"]))
    with pytest.raises(FormatError, match="gradient"):
        tk.load(tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.update(modules={"": 7}),
        lambda module: module.update(lineages=[[]]),
        lambda module: module.update(buffers=["none"]),
        lambda module: module.update(frozen=["none"]),
        lambda module: module.update(plain={"none": ["x"]}),
    ],
)
def test_classes_that_contradict_the_tensors_are_refused(tmp_path, change):
    """What a module's file says of kinds and classes must be about its tensors."""
    tk.save(nn.Linear(2, 2), tmp_path / "file")
    rewritten(tmp_path / "file", lambda document, _: change(document["module"]))
    with pytest.raises(FormatError, match="file"):
        tk.params(tmp_path / "file")


def test_a_later_version_is_told_from_damage(path):
    """A newer torchkeep's file asks for a newer torchkeep; fields that are not known are ignored."""
    rewritten(path, lambda document, _: document.update(novelty=[1, 2]))
    assert described(tk.load(path)) == described(OBJ)
    rewritten(path, lambda document, _: document.update(version=2, chunk="another thing"))
    with pytest.raises(NewerFormatError, match=r"version 2.*newer torchkeep"):
        tk.load(path)


def test_a_dtype_that_this_torch_lacks_is_named(path, monkeypatch):
    """An older torch may not have a dtype; the tensor and the dtype are named."""
    monkeypatch.delattr(torch, "complex128")
    with pytest.raises(FormatError, match=r"'c'.*complex128"):
        tk.load(path)


def test_a_file_replaced_after_it_was_listed_is_noticed(path):
    """A table reads tensors later; another file under the same name is not taken for the one that was listed."""
    table = tk.params(path)
    tk.save({"w": torch.zeros(300)}, path)
    with pytest.raises(FormatError, match="changed"):
        table["w"]
