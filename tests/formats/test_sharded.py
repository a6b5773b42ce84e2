"""Folders with an index: what is read, and every way in which an index can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import torchkeep as tk
from sharded_files import state, write_index, write_sharded
from torchkeep.errors import FormatError, MissingFileError, StorageError, TorchkeepError
from torchkeep.formats import listing_of
from torchkeep.formats.sharded import located


@pytest.fixture
def folder(tmp_path):
    """A model in three files."""
    write_sharded(tmp_path / "model", state())
    return tmp_path / "model"


def test_a_folder_is_listed_in_the_order_of_its_index_without_torch(folder):
    """Listing by folder and by index gives the same rows, and torch is not imported for it."""
    rows = listing_of(folder).rows
    assert [row.name for row in rows] == sorted(state())
    assert {row.name: row.shape for row in rows} == {name: tuple(t.shape) for name, t in state().items()}
    assert listing_of(folder / "model.safetensors.index.json").rows == rows
    script = (
        f"import sys; from torchkeep.formats import listing_of; listing_of({str(folder)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_folder_of_files_of_torch_save_is_listed(tmp_path):
    """The parts may be files of torch.save; a tie in one part is one row."""
    tensors = state()
    tensors["head.weight"] = tensors["embed.weight"]
    torch.save(tensors, tmp_path / "pytorch_model-00001-of-00001.bin")
    write_index(
        tmp_path, dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin"), "pytorch_model.bin.index.json"
    )
    found = {row.name: row.aliases for row in listing_of(tmp_path).rows}
    assert found["embed.weight"] == ("head.weight",)
    assert len(found) == len(tensors) - 1


def test_parts_of_torchkeep_keep_kinds_and_classes(tmp_path):
    """Where every part knows its classes, the whole does."""
    tk.save(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3)}), tmp_path / "1.safetensors")
    tk.save(torch.nn.ModuleDict({"b": torch.nn.BatchNorm1d(3)}), tmp_path / "2.safetensors")
    names = {
        row.name: f"{part}.safetensors"
        for part in "12"
        for row in listing_of(tmp_path / f"{part}.safetensors").rows
    }
    write_index(tmp_path, names)
    assert set(tk.params(tmp_path).select("@Linear").names()) == {"a.weight", "a.bias"}
    assert len(tk.params(tmp_path).select(":buffer")) == 3


@pytest.mark.parametrize("name", ["model.safetensors", "net.pt", "pytorch_model.bin"])
def test_a_folder_with_one_model_file_leads_to_it(tmp_path, name):
    """The trainer's other files and configurations don't count."""
    tensors = {"a": torch.ones(2)}
    save_file(tensors, tmp_path / name) if name.endswith("safetensors") else torch.save(tensors, tmp_path / name)
    for besides in ("config.json", "training_args.bin", "optimizer.pt", "rng_state_0.pth", ".hidden.safetensors"):
        (tmp_path / besides).touch()
    assert located(tmp_path) == str(tmp_path / name)
    assert [row.name for row in listing_of(tmp_path).rows] == ["a"]


def test_safetensors_go_before_files_of_torch_save(tmp_path):
    """Where a folder has both, the first are taken; the same with indexes."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "pytorch_model.bin").touch()
    assert located(tmp_path) == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], r"holds no model.*expected, and no other files found"),
        (["readme.md"], r"holds no model.*1 other file found"),
        (
            ["a.safetensors", "b.safetensors"],
            r"2 models: a\.safetensors, b\.safetensors.*no \*\.safetensors\.index\.json",
        ),
        (["a.pt", "b.bin"], r"2 models: a\.pt, b\.bin"),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "2 models"),
        (["model.safetensors", "model.safetensors.index.json"], "give the path of the one"),
    ],
)
def test_a_folder_without_one_model_is_refused(tmp_path, names, sentence):
    """No model, several models, a model beside an index of its parts: each is told."""
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FormatError, match=sentence):
        listing_of(tmp_path)


def test_all_missing_parts_are_named(folder):
    """Not only the first; the error is FileNotFoundError too."""
    for part in (1, 3):
        (folder / f"model-0000{part}-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"2 of the 3 files.*00001-of-00003.*00003-of-00003") as caught:
        listing_of(folder)
    assert isinstance(caught.value, FileNotFoundError)
    assert Path(caught.value.filename).name == "model-00001-of-00003.safetensors"


def test_an_index_that_contradicts_its_files_is_refused(folder):
    """All contradictions are told at once: what a part lacks, what it has besides, what two parts have."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    part = weight_map["embed.weight"]
    other = next(name for name in weight_map.values() if name != part)
    held = {name: torch.zeros(1) for name, file in weight_map.items() if file == part and name != "embed.weight"}
    doubled = next(name for name, file in weight_map.items() if file == other)
    save_file({**held, "stranger": torch.zeros(1), doubled: torch.zeros(1)}, folder / part)
    with pytest.raises(FormatError) as caught:
        listing_of(folder)
    sentence = str(caught.value)
    assert f"{part} lacks 'embed.weight'" in sentence
    assert f"{part} holds 'stranger'" in sentence
    assert f"{doubled!r} is in " in sentence


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "..",
        ".",
        "./a",
        "a//b",
        "a\\b",
        "a\0b",
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    """Nothing outside is looked at, not even whether it exists."""
    (tmp_path / "model").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    write_index(tmp_path / "model", {"a": name})
    with pytest.raises(FormatError, match="may lie outside its folder"):
        listing_of(tmp_path / "model")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_folder_are_refused(tmp_path, kind):
    """A link to a file or to a folder elsewhere is not followed."""
    model, outside = tmp_path / "model", tmp_path / "outside"
    model.mkdir()
    outside.mkdir()
    save_file({"a": torch.zeros(1)}, outside / "a.safetensors")
    if kind == "file":
        (model / "a.safetensors").symlink_to(outside / "a.safetensors")
        write_index(model, {"a": "a.safetensors"})
    else:
        (model / "parts").symlink_to(outside)
        write_index(model, {"a": "parts/a.safetensors"})
    with pytest.raises(FormatError, match="symbolic links lead out"):
        listing_of(model)


def test_folders_below_and_links_within_are_followed(tmp_path):
    """A name may lead into a folder below, and a link may stay inside; the folder may be a link itself."""
    (tmp_path / "model" / "parts").mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "parts" / "a.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "model" / "parts" / "b.safetensors")
    (tmp_path / "model" / "b.safetensors").symlink_to("parts/b.safetensors")
    write_index(tmp_path / "model", {"a": "parts/a.safetensors", "b": "b.safetensors"})
    (tmp_path / "link").symlink_to("model")
    assert [row.name for row in listing_of(tmp_path / "link").rows] == ["a", "b"]


def test_the_links_of_hugging_faces_cache_are_followed(tmp_path):
    """Its snapshots consist of links into the blobs beside them, and only those are followed."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.zeros(1)}, blobs / "0123")
    (snapshot / "a.safetensors").symlink_to("../../blobs/0123")
    write_index(snapshot, {"a": "a.safetensors"})
    assert [row.name for row in listing_of(snapshot).rows] == ["a"]
    (tmp_path / "other").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other" / "0123")
    (snapshot / "a.safetensors").unlink()
    (snapshot / "a.safetensors").symlink_to("../../../other/0123")
    with pytest.raises(FormatError, match="symbolic links lead out"):
        listing_of(snapshot)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "no index of a model"),
        ("{}", "no index of a model.*weight_map"),
        ('{"weight_map": []}', "no index of a model"),
        ('{"weight_map": {"a": 1}}', "no index of a model"),
        ('{"weight_map": {"a": ""}}', "no index of a model"),
        ('{"weight_map": {}}', "names no tensors"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "key 'a' twice"),
        ('{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}', "key 'weight_map' twice"),
        ('{"weight_map": {"a": "' + "x" * 5000 + '"}}', "no index of a model"),
        (
            '{"metadata": ' + "[" * 100_000 + "]" * 100_000 + ', "weight_map": {"a": "x"}}',
            "nested too deeply|no JSON",
        ),
        ('{"metadata": ' + "9" * 10_000 + ', "weight_map": {"a": "x"}}', "missing"),
        ('{"weight_map": {"a": "\ud800"}}'.encode("utf-8", "surrogatepass"), "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
    ],
    ids=range(15),
)
def test_an_index_that_is_none_is_refused(tmp_path, text, sentence):
    """Wrong types, doubled keys, deep nesting, odd text: an error of the library, whatever it is."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TorchkeepError, match=sentence) as caught:
        listing_of(tmp_path)
    assert isinstance(caught.value, FormatError | MissingFileError)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("part.safetensors"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("a"), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weight_map=_JSON, cut=st.integers(0, 400), junk=st.binary(max_size=3))
def test_whatever_an_index_holds_only_our_errors_come_out(tmp_path, weight_map, cut, junk):
    """Any JSON, cut anywhere, with any bytes behind: it is read rightly or refused by a TorchkeepError."""
    if not (tmp_path / "part.safetensors").exists():
        save_file({"a": torch.zeros(1)}, tmp_path / "part.safetensors")
    text = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()[:cut] + junk
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    try:
        rows = listing_of(tmp_path / "model.safetensors.index.json").rows
    except TorchkeepError:
        return
    assert weight_map == {"a": "part.safetensors"}
    assert [row.name for row in rows] == ["a"]


def test_an_index_that_is_too_large_is_not_read(tmp_path):
    """A sparse file of 200 MB is refused by its size."""
    path = tmp_path / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(FormatError, match="200000000 bytes"):
        listing_of(tmp_path)


def test_a_part_that_is_a_folder_or_damaged_is_told(folder):
    """What is wrong with a part names the part."""
    part = folder / "model-00002-of-00003.safetensors"
    data = part.read_bytes()
    part.write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"00002-of-00003.*cut short"):
        listing_of(folder)
    part.unlink()
    part.mkdir()
    with pytest.raises(StorageError, match=r"00002-of-00003.*directory"):
        listing_of(folder)
