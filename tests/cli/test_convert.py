"""``torchkeep convert``: everything that is read becomes a file of torchkeep, with all that the source knew."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchkeep as tk
from failing_storage import FailingStorage
from sharded_files import state, write_sharded
from torchkeep.cli import main
from torchkeep.errors import SelectorError, StorageError, TorchkeepError
from torchkeep.files.converting import convert
from torchkeep.formats import open_contents
from torchkeep.storage.local import LOCAL


def run(*arguments):
    """Run ``convert``; return its exit code."""
    return main(["convert", *map(str, arguments)])


def equal(found, expected):
    return list(found) == list(expected) and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@pytest.fixture
def target(tmp_path):
    """A path in an empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "new.safetensors"


@pytest.mark.parametrize("form", ["torchkeep", "safetensors", "zip", "legacy", "folder", "bins"])
def test_every_form_becomes_a_file_of_torchkeep(tmp_path, target, capsys, form):
    """The same tensors in the same order, with digests; other readers open it too."""
    source = tmp_path / form
    if form == "torchkeep":
        tk.save(state(), source)
    elif form == "safetensors":
        save_file(state(), source)
    elif form == "folder":
        write_sharded(source, state())
    elif form == "bins":
        write_sharded(source, state(), write=torch.save, suffix=".bin", stem="pytorch_model")
    else:
        torch.save(state(), source, _use_new_zipfile_serialization=form == "zip")
    assert run(source, target) == 0
    assert "wrote 9 tensors" in capsys.readouterr().out
    assert equal(tk.load(target), tk.load(source))
    assert set(load_file(target)) == set(state())
    assert main(["verify", str(target)]) == 0
    assert main(["diff", str(source), str(target)]) == 0
    assert "sound: 9 tensors" in capsys.readouterr().out


def test_a_file_of_torchkeep_converts_into_itself(tmp_path, target):
    """Nested values, ties, extra state, classes, odd dtypes: the copy loads as the original does."""
    shared = torch.ones(3, requires_grad=True)
    saved = {
        "epoch": 3,
        "nested": [shared, (shared, float("inf")), OrderedDict(a=nn.Parameter(torch.zeros(2)))],
        "odd": torch.ones(2, dtype=torch.complex128),
        "t": torch.arange(6).reshape(2, 3).t(),
    }
    tk.save(saved, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", target) == 0
    found = tk.load(target)
    assert found["epoch"] == 3
    assert found["nested"][0] is found["nested"][1][0]
    assert found["nested"][0].requires_grad
    assert type(found["nested"][2]) is OrderedDict
    assert isinstance(found["nested"][2]["a"], nn.Parameter)
    assert found["nested"][1][1] == float("inf")
    assert found["odd"].dtype == torch.complex128
    assert torch.equal(found["t"], saved["t"])


class WithExtra(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.seen = {"steps": 7, "mean": torch.ones(2)}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, found):
        self.seen = found


def test_what_a_module_knew_is_kept(tmp_path, target, capsys):
    """Kinds, what is frozen, classes, extra state; after a rename too, but for extra state, which is said."""
    net = WithExtra()
    net.layer.weight.requires_grad_(requires_grad=False)
    tk.save(net, tmp_path / "net.safetensors")
    assert run(tmp_path / "net.safetensors", target) == 0
    for expression in (":buffer", ":frozen", "@Linear", "@BatchNorm1d > **"):
        assert tk.params(target, expression).names() == tk.params(net, expression).names()
    fresh = WithExtra()
    fresh.seen = None
    tk.load_into(fresh, target)
    assert fresh.seen["steps"] == 7
    assert torch.equal(fresh.seen["mean"], torch.ones(2))
    capsys.readouterr()
    assert run(tmp_path / "net.safetensors", target, "--force", "--rename", "layer.=deep.er.") == 0
    assert "left out: extra state" in capsys.readouterr().out
    assert tk.params(target, "@Linear").names() == ["deep.er.weight", "deep.er.bias"]
    assert tk.params(target, ":frozen").names() == ["deep.er.weight"]
    assert len(tk.params(target, ":buffer")) == 3


def test_a_training_checkpoint_of_torch_save_keeps_its_values(tmp_path, target):
    """Nested containers and plain values come along; ties stay one tensor; a state_dict stays an OrderedDict."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    shared = net[0].weight.detach()
    saved = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 5, "twice": [shared, shared]}
    torch.save(saved, tmp_path / "run.pt")
    assert run(tmp_path / "run.pt", target) == 0
    found = tk.load(target)
    assert found["epoch"] == 5
    assert found["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])
    assert found["twice"][0] is found["twice"][1]
    assert type(found["model"]) is OrderedDict
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert run(tmp_path / "net.pt", target, "--force") == 0
    again = tk.load(target)
    assert equal(again, net.state_dict())
    assert again._metadata == net.state_dict()._metadata


def test_a_selection_is_a_flat_mapping(tmp_path, target, capsys):
    """Only what is selected; that plain values are left out is said."""
    torch.save({"model": state(), "epoch": 5}, tmp_path / "run.pt")
    assert run(tmp_path / "run.pt", target, "--select", "model.layers[0:2].**", "--rename", "model.=") == 0
    assert "left out: the containers and plain values" in capsys.readouterr().out
    assert equal(
        tk.load(target), {name: t for name, t in state().items() if name.startswith(("layers.0", "layers.1"))}
    )
    assert run(tmp_path / "run.pt", target, "--force", "--select", "modle.**") == 1
    assert "did you mean" in capsys.readouterr().err


def test_renames(tmp_path, target, capsys):
    """Patterns with wildcards; the last that matches wins; aliases are renamed too."""
    tensors = state()
    tensors["head.weight"] = tensors["embed.weight"]
    tk.save(tensors, tmp_path / "a.safetensors")
    renames = ["--rename", "layers.*.=h.*.", "--rename", "layers[1:2].=one[0:1].", "--rename", "head.=top."]
    assert run(tmp_path / "a.safetensors", target, *renames) == 0
    assert "9 names changed" in capsys.readouterr().out
    found = tk.load(target)
    assert found["top.weight"] is found["embed.weight"]
    assert torch.equal(found["one.0.bias"], tensors["layers.1.bias"])
    assert torch.equal(found["h.3.bias"], tensors["layers.3.bias"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--rename", "layers[0:2].**=x.**"], (2, "wildcards")),
        (["--rename", "nothing"], (2, "expected FROM=TO")),
        (["--rename", "layer.=x."], (1, "'layer.' matches no name")),
        (["--rename", "layers.*.weight=x.weight"], (2, "wildcards")),
        (["--rename", "layers.0.bias=layers.1.bias"], (2, "one name to several tensors: 'layers.1.bias' to")),
        (["--rename", "embed.weight=__metadata__"], (3, "can't be a name")),
        (["--dtype", "int8"], (2, "is none of")),
        (["--dtype", "complex64"], (2, "is none of")),
        (["--dtype", "nonsense"], (2, "is none of")),
        (["--select", "["], (2, "[")),
    ],
)
def test_what_is_asked_wrongly_is_refused(tmp_path, target, capsys, arguments, answer):
    """A usage error is 2, what matches nothing is 1, what can't be written is 3; nothing is written."""
    tk.save(state(), tmp_path / "a.safetensors")
    code, sentence = answer
    assert run(tmp_path / "a.safetensors", target, *arguments) == code
    assert sentence in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("spelling", ["bfloat16", "bf16", "torch.bfloat16"])
def test_floating_tensors_are_cast_and_others_are_not(tmp_path, target, capsys, spelling):
    """As `Tensor.to` does; integers, booleans and complex numbers stay; how many were cast is said."""
    tensors = {
        **state(),
        "n": torch.arange(3),
        "b": torch.ones(2).bool(),
        "c": torch.ones(2) * 1j,
        "h": torch.ones(1).bfloat16(),
    }
    tk.save(tensors, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", target, "--dtype", spelling) == 0
    assert "9 converted to bfloat16" in capsys.readouterr().out
    expected = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    assert equal(tk.load(target), expected)


def test_a_number_that_does_not_fit_is_refused(tmp_path, target, capsys):
    """It would become infinite in silence; infinities and NaNs themselves stay what they are."""
    tk.save({"a": torch.tensor([1.0, 1e6])}, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", target, "--dtype", "float16") == 3
    assert "'a' can't be kept as float16: it holds 1e+06" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []
    tk.save({"a": torch.tensor([float("inf"), float("nan")])}, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", target, "--dtype", "float16") == 0
    assert str(tk.load(target)["a"].tolist()) == "[inf, nan]"


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_large_tensors_are_cast_across_chunks(tmp_path, target, dtype):
    """A tensor of several chunks, cast to a wider and to a narrower dtype, is bit for bit what `to` gives."""
    big = torch.rand(9_000_001)
    save_file({"small": torch.ones(1), "big": big}, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", target, "--dtype", dtype) == 0
    assert torch.equal(tk.load(target)["big"], big.to(getattr(torch, dtype)))


def test_an_existing_target_stands_unless_it_is_forced(tmp_path, capsys):
    """Exit code 3 and not a byte changed; with --force it is replaced, even when it is the source."""
    source, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state(), source)
    other.write_bytes(b"precious")
    assert run(source, other) == 3
    assert "--force" in capsys.readouterr().err
    assert other.read_bytes() == b"precious"
    assert run(source, source) == 3
    assert run(source, source, "--force", "--dtype", "float64") == 0
    assert open_contents(source).document is not None
    assert equal(tk.load(source), {name: state()[name].double() for name in tk.load(source)})
    assert run(source, other, "--force") == 0
    assert tk.load(other).keys() == state().keys()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert run(source, tmp_path / "dangling") == 3


def test_a_part_of_the_source_is_no_target(tmp_path, capsys):
    """A sharded model would be destroyed by it."""
    write_sharded(tmp_path, state())
    for part in (*tmp_path.glob("*00002*"), *tmp_path.glob("*.index.json")):
        before = part.read_bytes()
        assert run(tmp_path, part, "--force") == 3
        assert "is a part of" in capsys.readouterr().err
        assert part.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("target", ["missing/new.safetensors", "."])
def test_a_target_that_cannot_be_written(tmp_path, capsys, target):
    """No such folder, a folder: exit code 3, a sentence."""
    tk.save(state(), tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", tmp_path / target, "--force") == 3
    assert "can't" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_damage_in_the_source_leaves_the_target(tmp_path, target, capsys, name):
    """A digest or a checksum that differs is found before the target is replaced; no other file stays."""
    source = tmp_path / name
    tk.save(state(), source) if name.endswith("s") else torch.save(state(), source)
    data = bytearray(source.read_bytes())
    data[data.index(state()["layers.2.weight"].numpy().tobytes()) + 3] ^= 1
    source.write_bytes(data)
    target.write_bytes(b"precious")
    assert run(source, target, "--force") == 3
    assert "'layers.2.weight'" in capsys.readouterr().err
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_bytes() == b"precious"


def test_whatever_call_fails_the_target_is_whole(tmp_path, target):
    """Each call of the storage fails once: the target is the old file or the new one, and nothing else stays."""
    tk.save(state(), tmp_path / "a.safetensors")
    target.write_bytes(b"precious")
    counting = FailingStorage()
    convert(counting, tmp_path / "a.safetensors", str(target), force=True)
    new = target.read_bytes()
    for call in range(len(counting.calls)):
        target.write_bytes(b"precious")
        with pytest.raises(StorageError):
            convert(FailingStorage(fail_at=call), tmp_path / "a.safetensors", str(target), force=True)
        assert target.read_bytes() in {b"precious", new}
        if counting.calls[call] != "sync_directory":
            assert target.read_bytes() == b"precious"
        # A file that the system refuses to remove stays.
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_meta_tensors_are_refused_by_name(tmp_path, target):
    """They have no values to write; the rest converts when they are left out."""
    torch.save({"a": torch.ones(2), "m": torch.ones(2, device="meta")}, tmp_path / "a.pt")
    with pytest.raises(TorchkeepError, match="'m' was saved from the meta device"):
        convert(LOCAL, tmp_path / "a.pt", str(target))
    assert list(target.parent.iterdir()) == []
    convert(LOCAL, tmp_path / "a.pt", str(target), select="a")
    assert list(tk.load(target)) == ["a"]


def test_two_names_of_one_tensor_may_become_one(tmp_path, target):
    """Aliases that are given one name are one; two tensors are not."""
    shared = torch.ones(2)
    tk.save({"a": shared, "b": shared, "c": torch.zeros(2)}, tmp_path / "a.safetensors")
    convert(LOCAL, tmp_path / "a.safetensors", str(target), rename=[("b", "a")])
    assert list(tk.load(target)) == ["a", "c"]
    with pytest.raises(SelectorError, match="'c' to 'a' and 'c'"):
        convert(LOCAL, tmp_path / "a.safetensors", str(target), rename=[("b", "c")], force=True)


def test_large_files_need_little_memory(tmp_path, target):
    """320 MB are converted, with a cast, within 100 MB above what torch itself takes."""
    torch.save({f"{i}": torch.arange(20_000_000, dtype=torch.float32) + i for i in range(4)}, tmp_path / "a.pt")
    script = (
        "import resource, sys, torch; from torchkeep.cli import main; import torchkeep.files.converting\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 0\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "sys.exit(f'{grown} KiB' if grown > 100_000 else 0)\n"
    )
    arguments = ["convert", str(tmp_path / "a.pt"), str(target), "--dtype", "bfloat16"]
    run = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert target.stat().st_size < 170_000_000


@pytest.mark.parametrize("kind", ["torch", "torchkeep"])
def test_memory_that_tensors_share_without_being_tied_is_said(tmp_path, target, capsys, kind):
    """Views are written on their own, each with its values, and the report names them; ties and neighbours not."""
    whole = torch.randn(10)
    state = {"whole": whole, "tied": whole, "end": whole[6:], "apart": torch.ones(2), "half": torch.arange(4)[:2]}
    state["other"] = torch.from_numpy(state["apart"].numpy())[1:] if kind == "torchkeep" else torch.zeros(3)
    source = tmp_path / "source"
    (torch.save if kind == "torch" else tk.save)(state, source)
    assert main(["convert", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "overlap" in line]
    shared = {"end", "tied"} | ({"apart", "other"} if kind == "torchkeep" else set())
    assert set(line[line.index("(") + 1 : -1].split(", ")) == shared
    found = tk.load(target)
    assert found["whole"] is found["tied"]
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
    assert main(["convert", str(source), str(target), "--force", "--select", "{whole,apart}"]) == 0
    assert "overlap" not in capsys.readouterr().out


def test_what_was_written_as_json(tmp_path, target, capsys):
    """Programs get the report whole: sizes, ties, what was renamed, converted and left out."""
    shared = torch.ones(3)
    tk.save({"a": shared, "b": shared, "c": torch.zeros(2, dtype=torch.int8)}, tmp_path / "a.safetensors")
    source = str(tmp_path / "a.safetensors")
    assert run(source, target, "--rename", "a=x", "--dtype", "float16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == source
    assert (found["path"], found["nbytes"]) == (str(target), target.stat().st_size)
    assert (found["tensors"], found["renamed"], found["cast"]) == (2, 1, 1)
    assert [set(names) for names in found["ties"]] == [{"x", "b"}]
    assert len(found["digest"]) == 64
