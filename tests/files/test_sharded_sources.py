"""Tables of, and loads from, a model that lies in several files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from sharded_files import LAYERS, state, write_sharded
from torchkeep.cli import main
from torchkeep.errors import DamageError, LoadError, MissingFileError, NoMatchError


def make_net():
    """Return the model whose state is in the files."""
    net = nn.ModuleDict(
        {"embed": nn.Embedding(10, 4), "layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))}
    )
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def save_torchkeep(tensors, path):
    tk.save(tensors, path)


@pytest.fixture(params=["safetensors", "torch.save", "torchkeep"])
def folder(tmp_path, request):
    """A model in three files of each kind."""
    kinds = {
        "safetensors": {},
        "torch.save": {"write": torch.save, "suffix": ".bin", "stem": "pytorch_model"},
        "torchkeep": {"write": save_torchkeep},
    }
    above = tmp_path / ("foreign" if request.param == "safetensors" else "digested")
    write_sharded(above / "model", state(), **kinds[request.param])
    return above / "model"


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_load_gives_a_flat_dict(folder):
    """All tensors, in the order of the index; a selection; a device; a str or the index itself as path."""
    found = tk.load(folder)
    assert list(found) == sorted(state())
    assert equal(found, state())
    assert equal(tk.load(str(next(folder.glob("*.index.json")))), state())
    assert list(tk.load(folder, select="layers[1].**", device="meta")) == ["layers.1.bias", "layers.1.weight"]
    with pytest.raises(NoMatchError, match=r"layers\.0\.weight|layers\.1\.weight"):
        tk.load(folder, select="layers.1.wieght")


def test_load_into_and_plan_load(folder):
    """A live model is filled from all parts; a plan touches nothing; a misfit names the tensor."""
    net = make_net()
    plan = tk.plan_load(net, folder)
    assert plan.ok
    assert len(plan.matched) == len(state())
    assert all(not parameter.any() for parameter in net.parameters())
    report = tk.load_into(net, folder)
    assert equal(net.state_dict(), state())
    assert report.verified == (folder.parent.name != "foreign")
    net = make_net()
    tk.load_into(net, folder, select="layers.**", atomic=True)
    assert not net["embed"].weight.any()
    assert torch.equal(net["layers"][3].bias, state()["layers.3.bias"])
    net["layers"].append(nn.Linear(4, 4))
    with pytest.raises(LoadError, match=r"layers\[?\.?4"):
        tk.load_into(net, folder)


def test_tables_read_tensor_by_tensor(folder):
    """Names, single tensors, all tensors in order, statistics, set algebra."""
    table = tk.params(folder)
    assert table.names() == sorted(state())
    assert torch.equal(table["layers.2.weight"], state()["layers.2.weight"])
    for name, tensor in zip(table.names(), table.tensors(), strict=True):
        assert torch.equal(tensor, state()[name])
    assert len(table.select("**.bias") | tk.params(folder, "embed.**")) == LAYERS + 1
    norms = {row.name: found for row, found in zip(table.rows, table.stats().to_json(), strict=True)}
    assert norms["embed.weight"]["norm"] == pytest.approx(state()["embed.weight"].norm().item())


def test_damage_in_one_part_names_it(tmp_path):
    """A flipped bit in a part is found, and what was replaced before is told."""
    write_sharded(tmp_path, state(), write=save_torchkeep)
    part = tmp_path / "model-00002-of-00003.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamageError) as caught:
        tk.load(tmp_path)
    assert caught.value.file == str(part)
    net = make_net()
    with pytest.raises(DamageError) as caught:
        tk.load_into(net, tmp_path)
    touched = {name for name, tensor in net.state_dict().items() if tensor.any()}
    assert touched <= set(caught.value.replaced)
    net = make_net()
    with pytest.raises(DamageError, match="the model is as it was"):
        tk.load_into(net, tmp_path, atomic=True)
    assert all(not tensor.any() for tensor in net.state_dict().values())


def test_a_missing_part_stops_every_reader(folder):
    """load, load_into and params name it, and the command line ends with 3."""
    part = next(folder.glob("*00002*"))
    part.unlink()
    net = make_net()
    for read in (tk.load, tk.params, lambda path: tk.load_into(net, path), lambda path: tk.plan_load(net, path)):
        with pytest.raises(MissingFileError, match=part.name):
            read(folder)
    assert main(["show", str(folder)]) == 3


def test_show_lists_a_folder(folder, capsys):
    """One listing of all parts, folded across them."""
    assert main(["show", str(folder)]) == 0
    assert "layers[0:4].weight     x4  4x4" in capsys.readouterr().out


def test_show_takes_statistics_of_a_folder(folder, capsys):
    """With --stats the tensors of all parts are read."""
    assert main(["show", str(folder), "embed.**", "--stats"]) == 0
    assert f"{state()['embed.weight'].norm().item():.3f}"[:4] in capsys.readouterr().out
