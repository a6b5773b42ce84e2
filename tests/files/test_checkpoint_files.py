"""Checkpoints compared, verified, and written as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from kept_states import Net, bits, bytes_of, commit, make_store, state_of
from saved_values import bits_of, described
from torchkeep.archive import Archive, Retention, Writer
from torchkeep.archive.locating import locate
from torchkeep.errors import DamageError, StorageError
from torchkeep.files.comparing import compare
from torchkeep.files.converting import convert
from torchkeep.files.rereading import verify_stored
from torchkeep.files.verifying import verify_source
from torchkeep.formats.locations import store_location
from torchkeep.storage.local import LOCAL
from torchkeep.storage.local_folders import LOCAL_FOLDERS

CHUNK = 64


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_store("runs", {4: state_of(Net(1))}, chunk=CHUNK)


# Files out of checkpoints -------------------------------------------------------------------------


def test_a_model_taken_out_is_the_file_that_save_makes(tmp_path):
    """Its tensors under their own names: kinds, classes, ties, extra state and recipe come along."""
    torch.manual_seed(0)
    saved = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    recipe = tk.recipe(saved).to_dict()
    root = make_store(tmp_path / "store", {1: state_of(saved), 2: saved}, recipe=recipe)
    tk.save(saved, tmp_path / "saved")
    convert(LOCAL, f"{root}@1", str(tmp_path / "part"), select="model.**", rename=[("model.", "")])
    report = convert(LOCAL, root, str(tmp_path / "alone"))
    assert report.left_out == ()
    for made in ("part", "alone"):
        assert tk.params(tmp_path / made).rows == tk.params(tmp_path / "saved").rows
        assert bits(tk.load_model(tmp_path / made)) == bits(saved)


def test_extra_state_and_ties_are_taken_out_too(store, tmp_path):
    """The file fills a model as the checkpoint does."""
    convert(LOCAL, f"{store}@4", str(tmp_path / "part"), select="model.**", rename=[("model.", "")])
    net = Net()
    tk.load_into(net, tmp_path / "part")
    assert bits(net) == bits(Net(1))
    assert described(net.counter.kept) == described({"seen": torch.arange(5), "count": 7})


def test_a_whole_state_becomes_a_file_that_loads_alike(store, tmp_path):
    """Containers, plain values, extra state: tk.load gives of the file what it gives of the checkpoint."""
    report = convert(LOCAL, f"{store}@4", str(tmp_path / "all"))
    assert described(tk.load(tmp_path / "all")) == described(tk.load(f"{store}@4"))
    assert report.left_out == ("kinds and classes, which a file has of one module alone (--select, --rename)",)
    assert compare(LOCAL, f"{store}@4", tmp_path / "all").differing == ()


def test_a_selection_says_what_it_leaves_behind(store, tmp_path):
    """Part of a module under its full names: kinds and classes come along, plain values and extra state do not."""
    report = convert(LOCAL, f"{store}@4", str(tmp_path / "some"), select="model.first.**", dtype="float16")
    assert report.left_out == ("the containers and plain values around the tensors", "extra state")
    table = tk.params(tmp_path / "some")
    assert table.select("@Linear & :param").names() == ["model.first.weight", "model.first.bias"]
    assert bits_of(table["model.first.weight"]) == bits_of(Net(1).first.weight.half())


@pytest.mark.parametrize("kind", [str, Path])
def test_no_file_is_saved_that_would_hide_a_checkpoint(store, kind):
    """A file called ``runs@4`` would be what that name means from then on; beside no store it is any file."""
    with pytest.raises(StorageError, match="can't write 'runs@4': that means a checkpoint in a store"):
        tk.save(torch.ones(2), kind(f"{store}@4"))
    assert tk.load(f"{store}@4")["step"] == 4
    tk.save(torch.ones(2), kind("other@4"))
    tk.save(torch.zeros(3), kind("other@4"))
    assert described(tk.load(kind("other@4"))) == described(torch.zeros(3))


# Comparing and verifying --------------------------------------------------------------------------


def test_what_digests_say_is_equal_is_not_read(tmp_path, monkeypatch):
    """Of two checkpoints, only tensors that differ are read; the answer is that of files with the same tensors."""
    first, second = {"a": torch.zeros(99), "b": torch.ones(99)}, {"a": torch.zeros(99), "b": torch.arange(99.0)}
    root = make_store(tmp_path / "store", {1: first, 2: second}, chunk=CHUNK)
    for step, state in ((1, first), (2, second)):
        tk.save(state, tmp_path / str(step))
    expected = compare(LOCAL, tmp_path / "1", tmp_path / "2")
    from torchkeep.tensors.piecewise import CheckpointElements

    read, names = CheckpointElements.read, set()
    monkeypatch.setattr(
        CheckpointElements, "read", lambda self, name, *span: names.add(name) or read(self, name, *span)
    )
    found = compare(LOCAL, f"{root}@1", f"{root}@2")
    assert names == {"b"}
    assert [(one.name, one.equal, one.difference) for one in found.common] == [
        (one.name, one.equal, one.difference) for one in expected.common
    ]
    assert compare(LOCAL, f"{root}@1", tmp_path / "1").same


def test_pieces_cut_in_two_dimensions_compare_and_convert(tmp_path):
    """A tensor of several boxes, as several ranks write it, is the same tensor."""
    tensor = torch.arange(48.0).view(6, 8)
    left, right = tensor[:, :3].contiguous(), tensor[:, 3:].contiguous()
    from torchkeep.archive import Part, TensorBytes

    halves = TensorBytes(
        "float32",
        (6, 8),
        (
            Part((0, 0), (6, 3), bytes_of(left).parts[0].source),
            Part((0, 3), (6, 5), bytes_of(right).parts[0].source),
        ),
    )
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store"), chunk=CHUNK) as writer:
        writer.commit(1, {"w": halves})
        writer.commit(2, {"w": bytes_of(tensor)})
    root = tmp_path / "store"
    assert bits_of(tk.params(f"{root}@1")["w"]) == bits_of(tensor)
    assert compare(LOCAL, f"{root}@1", f"{root}@2").same
    convert(LOCAL, f"{root}@1", str(tmp_path / "file"))
    assert bits_of(tk.load(tmp_path / "file")["w"]) == bits_of(tensor)


def test_damage_stops_a_comparison_and_a_conversion(store, tmp_path):
    """What is read is verified: nothing is written, and tensor, file and bytes are named."""
    located = locate(f"{store}@4")
    piece = located.manifest.tensors["model.first.bias"].pieces[0]
    path = Path(located.archive.pack_path(located.manifest.body.packs[piece.pack].id))
    tk.save(tk.load(f"{store}@4", select="model.first.bias"), tmp_path / "file")
    data = bytearray(path.read_bytes())
    data[piece.start] ^= 1
    path.write_bytes(data)
    for wrong in (
        lambda: compare(LOCAL, f"{store}@4", tmp_path / "file"),
        lambda: convert(LOCAL, f"{store}@4", str(tmp_path / "made")),
    ):
        with pytest.raises(DamageError, match=r"'model\.first\.bias'") as caught:
            wrong()
        assert (caught.value.file, caught.value.start) == (str(path), piece.start)
    assert not (tmp_path / "made").exists()


def test_a_store_is_verified_whole_and_each_byte_once(tmp_path):
    """All checkpoints; what they share counts once. One is named by @, and only it is read then."""
    shared = torch.arange(1000.0)
    root = make_store(tmp_path / "store", {step: {"a": shared, "b": torch.tensor(step)} for step in (1, 2, 3)})
    report = verify_source(LOCAL, root)
    assert (report.status, report.files, report.error) == ("sound", (), None)
    assert [(one.step, one.sequence, one.sound) for one in report.store.checkpoints] == [
        (1, 1, True),
        (2, 2, True),
        (3, 3, True),
    ]
    assert report.store.nbytes == 4000 + 3 * 8
    one = verify_source(LOCAL, f"{root}@2")
    assert ([kept.step for kept in one.store.checkpoints], one.store.nbytes) == ([2], 4008)


def test_damage_in_a_store_is_listed_once_with_the_checkpoints_that_have_it(tmp_path):
    """A flipped bit in a tensor that three share, and a missing pack: each file once, with tensors and bytes."""
    root = tmp_path / "store"
    with Writer(LOCAL_FOLDERS, str(root)) as writer:
        for step in (1, 2, 3):
            commit(writer, step, {"a": torch.arange(1000.0), "b": torch.tensor(step)})
        commit(writer, 4, {"c": torch.ones(3)})
        packs = {step: {pack.id for pack in writer.at(step).body.packs} for step in (1, 2, 3, 4)}
        piece = writer.at(1).tensors["a"].pieces[0]
        common = writer.at(1).body.packs[piece.pack].id
    path = root / "packs" / f"{common}.safetensors"
    data = bytearray(path.read_bytes())
    data[piece.start] ^= 1
    path.write_bytes(data)
    (lost,) = packs[4]
    (root / "packs" / f"{lost}.safetensors").unlink()
    report = verify_source(LOCAL, str(root))
    assert report.status == "damaged"
    assert {one.step: one.sound for one in report.store.checkpoints} == dict.fromkeys((1, 2, 3, 4), False)
    found = {Path(file.path).name: file.damage for file in report.files}
    assert set(found) == {path.name, f"{lost}.safetensors"}
    (damage,) = found[path.name]
    assert (damage.tensor, damage.start, damage.stop) == ("a", piece.start, piece.stop)


def test_one_manifest_that_can_not_be_understood_does_not_hide_the_others(tmp_path):
    """Of a store with a checkpoint of a later format, the rest is verified; the error names the one."""
    root = make_store(tmp_path / "store", {1: {"a": torch.ones(2)}, 2: {"a": torch.zeros(2)}})
    from torchkeep.archive.lines import sealed

    first = sealed(b'{"format":"torchkeep-checkpoint","version":9,"sequence":1,"step":1,"time":0}')
    (tmp_path / "store" / "checkpoints" / "00000001-1.json").write_bytes(first + sealed(b'{"tensors":{}}', first))
    report = verify_source(LOCAL, root)
    assert report.status == "unreadable"
    assert "00000001-1.json" in report.error
    assert [one.step for one in report.store.checkpoints] == [2]


def test_what_can_not_be_opened_is_reported(tmp_path):
    """No store, no such step: an error; a damaged marker or manifest: damage. Nothing is raised."""
    root = make_store(tmp_path / "store", {1: {"a": torch.ones(2)}})
    for source in (f"{tmp_path}/nowhere@1", f"{root}@7", f"{root}@best"):
        report = verify_source(LOCAL, source)
        assert (report.status, report.store) == ("unreadable", None)
    for name in ("checkpoints/00000001-1.json", "torchkeep.json"):
        path = tmp_path / "store" / name
        data = path.read_bytes()
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
        for source in (f"{root}@1", root):
            report = verify_source(LOCAL, source)
            assert (report.status, Path(report.files[0].path)) == ("damaged", path)
        path.write_bytes(data)
    assert verify_source(LOCAL, root).status == "sound"


@pytest.mark.parametrize("moment", ["manifest", "read_places"])
def test_a_checkpoint_pruned_while_it_is_verified_is_no_damage(tmp_path, monkeypatch, moment):
    """Its packs go with it, after its manifest was read or while tensors are; what is left is sound."""
    root = make_store(tmp_path / "store", {1: {"a": torch.ones(2)}, 2: {"a": torch.zeros(2)}})
    step, pruned = getattr(Archive, moment), []

    def vanishing(self, subject, *rest):
        found = step(self, subject, *rest) if moment == "manifest" else None
        if subject.step == 1 and not pruned:
            pruned.append(subject)
            with Writer(LOCAL_FOLDERS, root) as writer:
                writer.prune(Retention(last=1))
        return found if moment == "manifest" else step(self, subject, *rest)

    monkeypatch.setattr(Archive, moment, vanishing)
    report = verify_stored(store_location(root))
    assert (report.status, report.error) == ("sound", None)
    assert [one.step for one in report.store.checkpoints] == [2]
    assert len(pruned) == 1


def test_a_checkpoint_pruned_while_it_alone_is_verified_is_an_error(tmp_path, monkeypatch):
    """Nothing of it was verified, so nothing is called sound."""
    root = make_store(tmp_path / "store", {1: {"a": torch.ones(2)}, 2: {"a": torch.zeros(2)}})
    read = Archive.read_places

    def vanishing(self, manifest, *rest):
        if manifest.step == 1:
            with Writer(LOCAL_FOLDERS, root) as writer:
                writer.prune(Retention(last=1))
        return read(self, manifest, *rest)

    monkeypatch.setattr(Archive, "read_places", vanishing)
    report = verify_stored(store_location(f"{root}@1"))
    assert report.status == "unreadable"
    assert "store@1' was pruned while it was verified" in report.error
