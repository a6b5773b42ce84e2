"""``torchkeep verify``: every damaged range is found, and what can't be verified is said."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import torchkeep as tk
from sharded_files import state, write_sharded
from torchkeep.cli import main
from torchkeep.formats import open_contents
from torchkeep.formats.pickles import open_pickled


def flip(path, *positions):
    """Flip a bit in each of some bytes."""
    data = bytearray(path.read_bytes())
    for position in positions:
        data[position] ^= 1
    path.write_bytes(data)


def report(capsys, *sources):
    """Run ``verify --json``; return its exit code and its document."""
    code = main(["verify", *map(str, sources), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def path(tmp_path):
    """A file of torchkeep with a tensor of several chunks, small ones and a tie."""
    big = torch.arange(10 << 20, dtype=torch.float32)
    tensors = {"a": torch.ones(100), "big": big, "z": torch.zeros(3), "empty": torch.zeros(0)}
    tk.save({**tensors, "tied": tensors["a"]}, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_sound_file(path, capsys):
    """Exit code 0; it says that every byte was compared."""
    assert main(["verify", str(path)]) == 0
    assert "sound: 4 tensors" in capsys.readouterr().out
    code, document = report(capsys, path)
    assert code == 0
    (source,) = document["sources"]
    assert source["status"] == "sound"
    assert source["files"][0]["checked"] == source["files"][0]["nbytes"] == 4 * (10 << 20) + 412


def test_all_damaged_ranges_are_listed(path, capsys):
    """Each damaged chunk of each tensor, neighbouring ones of one tensor as one range; exit code 1."""
    contents = open_contents(path)
    start, stop = contents.header.span("big")
    assert stop - start > 2 * contents.document.chunk
    chunk = contents.document.chunk
    small = contents.header.span("a")
    flip(path, start, start + chunk, small[0])
    code, document = report(capsys, path)
    assert code == 1
    (file,) = document["sources"][0]["files"]
    assert {(found["tensor"], found["start"], found["stop"]) for found in file["damage"]} == {
        ("big", start, start + 2 * chunk),
        ("a", *small),
    }
    assert main(["verify", str(path)]) == 1
    shown = capsys.readouterr()
    assert f"bytes {small[0]} to {small[1]}: tensor 'a'" in shown.out
    assert "DAMAGED" in shown.out
    flip(path, start + chunk, stop - 1)
    _, document = report(capsys, path)
    ranges = [(found["start"], found["stop"]) for found in document["sources"][0]["files"][0]["damage"]]
    assert ranges == sorted([small, (start, start + chunk), (start + 2 * chunk, stop)])


@pytest.mark.parametrize("seed", range(20))
def test_no_flipped_bit_stays_unseen(tmp_path, capsys, seed):
    """Wherever a bit of a file of torchkeep flips, verify does not end with 0."""
    path = tmp_path / "net.safetensors"
    tk.save(state(), path)
    generator = torch.Generator().manual_seed(seed)
    flip(path, int(torch.randint(path.stat().st_size, (), generator=generator)))
    assert main(["verify", str(path)]) in {1, 3}
    capsys.readouterr()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_save_that_is_cut_short_is_damage(tmp_path, capsys, zipped):
    """A download that ended early is the commonest damage of all: exit code 1, whatever the format."""
    torch.save(state(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "whole.pt").read_bytes()
    for length in (len(data) - 1, len(data) // 2, 600):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        code, document = report(capsys, tmp_path / "cut.pt")
        assert (code, document["sources"][0]["status"]) == (1, "damaged")
        (found,) = document["sources"][0]["files"][0]["damage"]
        assert "cut short" in found["problem"]
        with pytest.raises(tk.errors.DamageError, match="cut short"):
            tk.load(tmp_path / "cut.pt")


def test_a_damaged_header_and_a_cut_file_are_damage(path, capsys):
    """Both are "no" (1), not "can't be read"."""
    data = path.read_bytes()
    flip(path, data.index(b'"digests') + 15)
    code, document = report(capsys, path)
    assert code == 1
    assert document["sources"][0]["files"][0]["format"] is None
    path.write_bytes(data[:-5])
    code, document = report(capsys, path)
    assert code == 1
    assert "cut short" in document["sources"][0]["files"][0]["damage"][0]["problem"]


def test_files_without_digests_are_checked_for_structure_only(tmp_path, capsys):
    """Of other writers' files, and of torch.save's old format, this is said; exit code 0 all the same."""
    save_file(state(), tmp_path / "foreign.safetensors")
    torch.save(state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("foreign.safetensors", "old.pt"):
        assert main(["verify", str(tmp_path / name)]) == 0
        assert "structure only" in capsys.readouterr().out
        assert report(capsys, tmp_path / name)[1]["sources"][0]["status"] == "structure only"


def test_checksums_of_torch_save_are_compared(tmp_path, capsys):
    """A flipped bit in a storage names a tensor that lies in it; a large storage is read in pieces."""
    path = tmp_path / "net.pt"
    torch.save({"a": torch.ones(100), "b": {"c": torch.arange(5 << 20)}}, path)
    code, document = report(capsys, path)
    assert (code, document["sources"][0]["status"]) == (0, "sound")
    pickled = open_pickled(path)
    extent = pickled.extents[pickled.tensors["b.c"].storage.key]
    flip(path, extent.start + extent.nbytes // 2)
    code, document = report(capsys, path)
    assert code == 1
    (found,) = document["sources"][0]["files"][0]["damage"]
    assert (found["tensor"], found["start"], found["stop"]) == ("b.c", extent.start, extent.start + extent.nbytes)


def test_every_part_of_a_folder_is_verified(tmp_path, capsys):
    """Damage in two parts is found in both; without damage, the index is compared with the parts."""
    write_sharded(tmp_path, state(), write=lambda tensors, path: tk.save(tensors, path) and None)
    code, document = report(capsys, tmp_path)
    assert (code, len(document["sources"][0]["files"])) == (0, 3)
    assert main(["verify", str(tmp_path)]) == 0
    assert "3 files, none damaged" in capsys.readouterr().out
    parts = sorted(tmp_path.glob("*.safetensors"))
    flip(parts[0], -1)
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    code, document = report(capsys, tmp_path)
    assert code == 1
    assert [bool(file["damage"]) for file in document["sources"][0]["files"]] == [
        file["path"] in {str(parts[0]), str(parts[2])} for file in document["sources"][0]["files"]
    ]
    tk.save({"stranger": torch.zeros(1)}, parts[0])
    tk.save({"strangest": torch.zeros(1)}, parts[2])
    code, document = report(capsys, tmp_path)
    assert code == 3
    assert "contradict each other" in document["sources"][0]["error"]


def test_a_missing_part_is_told_and_the_others_are_verified(tmp_path, capsys):
    """One file that is not there does not keep the damage in another from being found."""
    write_sharded(tmp_path, state(), write=lambda tensors, path: tk.save(tensors, path) and None)
    first, second, third = sorted(tmp_path.glob("*.safetensors"))
    second.unlink()
    code, document = report(capsys, tmp_path)
    (source,) = document["sources"]
    assert (code, source["status"]) == (3, "unreadable")
    assert second.name in source["error"]
    assert {file["path"] for file in source["files"]} == {str(first), str(third)}
    flip(third, -1)
    code, document = report(capsys, tmp_path)
    (source,) = document["sources"]
    assert (code, source["status"]) == (1, "damaged")
    assert second.name in source["error"]


def test_what_cannot_be_read_ends_with_3_and_the_rest_is_verified(path, tmp_path, capsys):
    """Each such source is told on stderr; damage elsewhere goes before."""
    (tmp_path / "odd.safetensors").write_bytes(b"nonsense" * 10)
    sources = [str(tmp_path / "missing.safetensors"), str(path), str(tmp_path / "odd.safetensors")]
    assert main(["verify", *sources]) == 3
    shown = capsys.readouterr()
    assert shown.out.count("sound") == 1
    assert len(shown.err.splitlines()) == 2
    assert "missing.safetensors" in shown.err
    code, document = report(capsys, *sources)
    assert code == 3
    assert [source["status"] for source in document["sources"]] == ["unreadable", "sound", "unreadable"]
    flip(path, -1)
    assert main(["verify", *sources]) == 1
    capsys.readouterr()


def test_no_source_is_a_usage_error(capsys):
    """Nothing given is not "all is well"."""
    assert main(["verify"]) == 2
    assert "SOURCE" in capsys.readouterr().err


def test_verify_needs_no_torch(path):
    """Of any format, torch is not imported."""
    torch.save(state(), path.with_suffix(".pt"))
    arguments = ["verify", str(path), str(path.with_suffix(".pt"))]
    script = f"import sys; from torchkeep.cli import main; sys.exit(main({arguments!r}) or 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
