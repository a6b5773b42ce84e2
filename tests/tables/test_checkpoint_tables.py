"""Tables of checkpoints: the same as of files, on ``STORE@STEP`` and on `tk.Checkpoint` objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from kept_states import commit, make_store
from saved_values import bits_of
from torchkeep.archive import Retention, Writer
from torchkeep.archive.locating import locate
from torchkeep.errors import DamageError, MissingCheckpointError, MissingFileError, SourceError, TableError
from torchkeep.storage.local_folders import LOCAL_FOLDERS


def net():
    """Return the same model each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with Writer(LOCAL_FOLDERS, "runs/digits", retention=Retention(best=("loss", "min"))) as writer:
        for step, loss in ((1000, 0.5), (2000, 0.1), (3000, 0.4)):
            model = net()
            with torch.no_grad():
                model[0].bias.fill_(step)
            momentum = {name: {"exp_avg": torch.full_like(one, step)} for name, one in model.named_parameters()}
            commit(writer, step, {"model": model, "optimizer": {"state": momentum}}, metrics={"loss": loss})
    return "runs/digits"


def test_every_way_to_name_a_checkpoint_gives_its_tensors(store):
    """Step, latest, best, the folder, a Checkpoint: the values are those of that step."""
    checkpoint = tk.Checkpoint.of(*locate(f"{store}@1000"))
    for source, step in (
        (f"{store}@1000", 1000),
        (f"{store}@best", 2000),
        (f"{store}@latest", 3000),
        (store, 3000),
        (Path(store), 3000),
        (checkpoint, 1000),
    ):
        table = tk.params(source)
        assert table["model.0.bias"].tolist() == [step] * 4
        assert table["optimizer.state.2.bias.exp_avg"].tolist() == [step] * 2


def test_it_is_a_table_like_any_other(store):
    """Selection, sums, classes, tensors, statistics, text that pastes back."""
    table = tk.params(f"{store}@best", "model.**")
    assert table.names() == [f"model.{row.name}" for row in tk.params(net()).rows]
    assert (table.numel, table.buffer_numel) == (4 * 4 + 4 + 4 + 4 + 8 + 2, 4 + 4 + 1)
    assert table.select("@Linear").names() == [
        f"model.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    assert (table - table.select(":buffer")).names() == table.select(":param").names()
    assert [bits_of(one) for one in table.select("@Linear & **.weight").tensors()] == [
        bits_of(net()[index].weight) for index in (0, 2)
    ]
    (bias,) = tk.params(f"{store}@best", "model.0.bias").stats().to_json()
    assert (bias["min"], bias["max"]) == (2000, 2000)
    shown = str(tk.params(store))
    assert "model.1.running_mean" in shown
    assert "4 parameters" not in shown
    assert "6 parameters" in shown


def test_tables_of_one_checkpoint_combine_and_of_two_do_not(store):
    """Two tables are of one source when they are of one commit, however it was named."""
    one, same, other = (tk.params(f"{store}@{which}") for which in ("best", 2000, 3000))
    assert len(one.select("model.**") | same.select("optimizer.**")) == len(one)
    with pytest.raises(TableError, match=r"digits@2000 and .*digits@3000"):
        one | other


def test_many_small_tensors_are_read_together(tmp_path):
    """More tensors than fit one batch come back in order."""
    state = {f"t{number}": torch.full((3,), number) for number in range(2_000)}
    table = tk.params(f"{make_store(tmp_path / 'store', {1: state})}@1", "re:'t1.*'")
    assert [int(tensor[0]) for tensor in table.tensors()] == [int(name[1:]) for name in table.names()]


def test_damage_and_pruning_are_told_when_a_tensor_is_asked_for(store):
    """A table is of the checkpoint as it was; what has gone since, or has rotted, is an error that says so."""
    damaged, pruned = tk.params(f"{store}@1000"), tk.params(f"{store}@2000")
    manifest = locate(f"{store}@1000").manifest
    piece = manifest.tensors["model.0.bias"].pieces[0]
    path = Path(store) / "packs" / f"{manifest.body.packs[piece.pack].id}.safetensors"
    data = bytearray(path.read_bytes())
    data[piece.start] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"'model\.0\.bias' in .*packs/.*safetensors' is damaged in bytes"):
        damaged["model.0.bias"]
    for found in [*Path(store).glob("checkpoints/*-2000.json"), *Path(store).glob("packs/*")]:
        found.unlink()
    with pytest.raises(MissingCheckpointError, match="was pruned"):
        pruned.tensors()


def test_what_is_no_checkpoint(store):
    """Text that names nothing, a store that is not there, a step that is not there, a path object with an @."""
    with pytest.raises(SourceError, match=r"there is no file 'runs/digit'.*STORE@STEP"):
        tk.params("runs/digit")
    with pytest.raises(MissingFileError, match="there is no store 'runs/digit'"):
        tk.params("runs/digit@5")
    with pytest.raises(MissingCheckpointError, match="no checkpoint of step 5"):
        tk.params(f"{store}@5")
    with pytest.raises(MissingFileError, match="'runs/digits@1000' does not exist"):
        tk.params(Path(f"{store}@1000"))
