"""`tk.Checkpoint`: a mapping from names to tensors, read when they are asked for, each byte verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from kept_states import commit, make_store
from saved_values import bits_of
from torchkeep.archive import Archive, Part, TensorBytes, Writer
from torchkeep.errors import DamageError, FormatError, MissingCheckpointError, NoMatchError
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.tensors.archived import fill_archived
from torchkeep.tensors.copying import copy_out

CHUNK = 64


class Net(nn.Module):
    """A tie and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.tensor(3))


def checkpoint_of(root):
    """Return the latest checkpoint of a store as stores give it out: with no more read than its first line."""
    archive = Archive.open(LOCAL_FOLDERS, str(root))
    listed = archive.listing()[-1]
    return tk.Checkpoint(archive, listed.name, listed.summary)


@pytest.fixture
def store(tmp_path):
    state = {"model": Net(), "more": {"noise": torch.arange(300, dtype=torch.float64)}}
    return make_store(tmp_path / "store", {3: state, 4: state}, chunk=CHUNK, metrics={4: {"loss": 0.5}})


def test_it_is_a_mapping_of_all_names(store):
    """Names, aliases too, in order; each leads to its bits, and a tie read at once is one object."""
    checkpoint, net = checkpoint_of(store), Net()
    expected = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    expected["more.noise"] = torch.arange(300, dtype=torch.float64)
    assert set(checkpoint) == set(expected)
    assert len(checkpoint) == len(expected) == 6
    assert {name: bits_of(tensor) for name, tensor in checkpoint.items()} == {
        name: bits_of(tensor) for name, tensor in expected.items()
    }
    assert "model.second.weight" in checkpoint
    assert "model" not in checkpoint
    assert 3 not in checkpoint
    read = checkpoint.read(["model.second.weight", "model.first.weight"])
    assert read["model.second.weight"] is read["model.first.weight"]


def test_what_it_tells_of_itself(store):
    """Step, commit, time, size, metrics, place, versions, recipe and rows."""
    checkpoint = checkpoint_of(store)
    assert (checkpoint.step, checkpoint.sequence, checkpoint.metrics) == (4, 2, {"loss": 0.5})
    assert checkpoint.location == f"{store}@4"
    assert checkpoint.nbytes == (25 + 5 + 5) * 4 + 8 + 300 * 8
    assert checkpoint.time > 0
    assert (checkpoint.versions, checkpoint.recipe) == ({}, None)
    assert [row.name for row in checkpoint.listing.rows][-1] == "more.noise"
    assert repr(checkpoint) == f"<Checkpoint {store}@4, loss=0.5>"


def test_only_the_first_line_is_read_at_first(store):
    """A damaged manifest does not disturb what its first line says; what needs more tells of the damage."""
    checkpoint = checkpoint_of(store)
    path = Path(checkpoint.archive.manifest_path("00000002-4.json"))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert (checkpoint.step, checkpoint.metrics["loss"], hash(checkpoint)) == (4, 0.5, hash(checkpoint_of(store)))
    with pytest.raises(DamageError, match=r"00000002-4\.json"):
        list(checkpoint)


def test_a_name_that_is_not_there_names_the_nearest(store):
    """It is a KeyError, as of every mapping."""
    checkpoint = checkpoint_of(store)
    with pytest.raises(NoMatchError, match=r"store@4 has no tensor named 'model\.first\.weigth'; did you"):
        checkpoint["model.first.weigth"]
    with pytest.raises(KeyError):
        checkpoint[3]
    with pytest.raises(NoMatchError, match="no tensor named 'nothing'"):
        checkpoint.read(["model.first.bias", "nothing"])
    assert checkpoint.get("nothing") is None


def test_two_are_equal_when_they_are_the_same_commit(store):
    """Comparing reads no tensor; a commit of another step is another checkpoint."""
    archive = Archive.open(LOCAL_FOLDERS, store)
    first, second = (tk.Checkpoint.of(archive, archive.manifest(name)) for name in archive.names())
    assert second == checkpoint_of(store)
    assert hash(second) == hash(checkpoint_of(store))
    assert first != second
    assert first != {}


def test_damage_is_found_when_the_tensor_is_read(store):
    """One flipped bit in a pack: its tensor is refused with file and bytes, the others are read."""
    checkpoint = checkpoint_of(store)
    piece = checkpoint.manifest.tensors["more.noise"].pieces[7]
    path = Path(checkpoint.archive.pack_path(checkpoint.manifest.body.packs[piece.pack].id))
    data = bytearray(path.read_bytes())
    data[piece.start + 5] ^= 16
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"'more\.noise'") as caught:
        checkpoint["more.noise"]
    assert (caught.value.file, caught.value.start, caught.value.stop) == (str(path), piece.start, piece.stop)
    assert bits_of(checkpoint["model.first.bias"]) == bits_of(Net().first.bias)


def test_what_was_pruned_says_so(store):
    """A checkpoint that another process removed: no damage, but an error that says what happened."""
    read, unread = checkpoint_of(store), checkpoint_of(store)
    assert len(read) == 6
    for path in [*Path(store).glob("checkpoints/*"), *Path(store).glob("packs/*")]:
        path.unlink()
    with pytest.raises(MissingCheckpointError, match="pruned"):
        read["more.noise"]
    with pytest.raises(MissingCheckpointError, match="pruned"):
        len(unread)


TARGETS = {
    "plain": torch.zeros,
    "transposed": lambda shape: torch.zeros(shape[::-1]).T,
    "with gaps": lambda shape: torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2],
    "another dtype": lambda shape: torch.zeros(shape, dtype=torch.float64),
    "another dtype, transposed": lambda shape: torch.zeros(shape[::-1], dtype=torch.bfloat16).T,
}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_targets_of_any_kind_are_filled(tmp_path, make):
    """Whatever strides and dtype a target has, pieces in any cut reach it as Tensor.copy_ would."""
    torch.manual_seed(0)
    source = torch.randn(9, 7)
    boxes = [((0, 0), (4, 3)), ((0, 3), (4, 4)), ((4, 0), (5, 7))]

    def part(offset, shape):
        box = source[offset[0] : offset[0] + shape[0], offset[1] : offset[1] + shape[1]].contiguous()
        return Part(offset, shape, lambda start, nbytes, address: copy_out(box, start, nbytes, address))

    with Writer(LOCAL_FOLDERS, str(tmp_path / "store"), chunk=CHUNK) as writer:
        kept = TensorBytes("float32", (9, 7), tuple(part(*box) for box in boxes))
        manifest = writer.commit(1, {"w": kept})
        target, other = make((9, 7)), torch.zeros(9, 7)
        begun = set()
        fill_archived(writer, manifest, [("w", target), ("w", other)], begun.add)
    assert bits_of(target) == bits_of(source.to(target.dtype))
    assert bits_of(other) == bits_of(source)
    assert begun == {0, 1}


def test_every_dtype_scalars_and_empty_tensors_come_back(tmp_path):
    """Bits are kept whatever the dtype is, NaNs' too; what has no element has none again."""
    names = ("float16", "bfloat16", "complex64", "complex128", "int8", "bool", "uint16", "float8_e4m3fn", "int64")
    state = {name: torch.arange(40).to(getattr(torch, name)) for name in names}
    state |= {"scalar": torch.tensor(float("nan")), "empty": torch.empty(0, 3), "none": torch.empty(2, 0, 2)}
    checkpoint = checkpoint_of(make_store(tmp_path / "store", {1: state}, chunk=CHUNK))
    for name, tensor in state.items():
        assert (checkpoint[name].dtype, checkpoint[name].shape) == (tensor.dtype, tensor.shape)
        assert bits_of(checkpoint[name]) == bits_of(tensor)


def test_a_dtype_that_this_torch_lacks_is_refused(tmp_path):
    """It is listed, but a tensor of it can't be made, and that is said."""
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store")) as writer:
        writer.commit(1, {"w": TensorBytes.of(b"abc", "quint8")})
        commit(writer, 2, {"v": torch.ones(1)})
    archive = Archive.open(LOCAL_FOLDERS, str(tmp_path / "store"))
    checkpoint = tk.Checkpoint.of(archive, archive.at(1))
    assert [row.dtype for row in checkpoint.listing.rows] == ["quint8"]
    with pytest.raises(FormatError, match=r"'w'.*quint8, which torch .* can't make"):
        checkpoint["w"]
