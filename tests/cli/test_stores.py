"""The command line on checkpoints: wherever it takes a file, it takes STORE@STEP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import torchkeep as tk
from digit_stores import LOSSES, answer, damage, flip, make, net
from torchkeep.archive.locating import locate


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    return make("runs", LOSSES)


# Checkpoints where files are taken ----------------------------------------------------------------


def test_show_lists_a_checkpoint(store, capsys):
    """With kinds, folded as ever; by step, latest, best and the folder alone; as JSON and with statistics."""
    code, out, _ = answer(capsys, "show", f"{store}@1000", "model.**")
    assert code == 0
    assert "model.0.weight" in out
    assert "4 parameters: 18 elements, 72 B (all trainable)" in out
    for source, step in (
        (f"{store}@1000", 1000),
        (f"{store}@best", 1500),
        (f"{store}@latest", 2500),
        (store, 2500),
    ):
        document = json.loads(answer(capsys, "show", source, "**.bias", "--stats", "--json")[1])
        assert document["source"] == source
        assert [row["name"] for row in document["rows"]] == ["model.0.bias", "model.1.bias"]
        assert {row["stats"]["mean"] for row in document["rows"]} == {step}
        assert document["rows"][0]["module_type"] == "Linear"


def test_show_says_what_is_wrong(store, capsys):
    """No match: 1. A selector that asks what an optimizer does not know: 2. No such checkpoint: 3."""
    for arguments, expected, sentence in (
        ([f"{store}@1000", "decoder.**"], 1, "matches nothing"),
        ([f"{store}@1000", ":param"], 2, "ask `model.** & :param`"),
        ([f"{store}@1"], 3, "has no checkpoint of step 1; it has 1000, 1500, 2000, 2500"),
        ([f"{store}@1", "**", "--stats"], 3, "has no checkpoint of step 1"),
        (["nowhere@latest"], 3, "there is no store 'nowhere'"),
        (["nowhere"], 3, "'nowhere' does not exist"),
    ):
        code, out, err = answer(capsys, "show", *arguments)
        assert (code, out) == (expected, "")
        assert sentence in err
        assert "Traceback" not in err


def test_diff_compares_checkpoints(store, tmp_path, capsys):
    """Two steps, with a selector; a step with itself; a checkpoint with a file of the same state."""
    code, out, _ = answer(capsys, "diff", f"{store}@1000", f"{store}@2000", "model.0.**")
    assert code == 1
    assert "model.0.weight" in out
    assert "2 tensors in both: 0 equal bit for bit, 2 different" in out
    assert answer(capsys, "diff", f"{store}@1500", f"{store}@best")[0] == 0
    assert answer(capsys, "convert", f"{store}@1000", tmp_path / "file")[0] == 0
    document = json.loads(answer(capsys, "diff", f"{store}@1000", tmp_path / "file", "--json")[1])
    assert all(one["equal"] for one in document["common"])
    assert len(document["common"]) == 8


def test_convert_takes_a_model_out(store, tmp_path, capsys):
    """The best model as a file of its own, under its own names; a selection that matches nothing is refused."""
    made = tmp_path / "best.safetensors"
    code, out, _ = answer(capsys, "convert", f"{store}@best", made, "--select", "model.**", "--rename", "model.=")
    assert code == 0
    assert "7 names changed" in out
    filled = net(0)
    tk.load_into(filled, made)
    assert filled[0].bias.tolist() == [1500] * 3
    assert answer(capsys, "convert", f"{store}@best", tmp_path / "no", "--select", "decoder.**")[0] == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("target", ["runs@1000", "runs@77", "runs", "runs@best"])
def test_convert_writes_no_file_that_would_be_taken_for_a_checkpoint(store, capsys, target):
    """A file called like a checkpoint would hide it from then on."""
    code, _, err = answer(capsys, "convert", f"{store}@1000", target, "--force")
    assert code == 3
    assert f"can't write '{target}': that means a checkpoint in a store" in err
    assert answer(capsys, "show", f"{store}@1000")[0] == 0


def test_verify_of_a_store_and_of_one_checkpoint(store, capsys):
    """Sound: 0. Damaged: 1, with file, bytes, tensor and the steps that have it; the others are still sound."""
    code, out, _ = answer(capsys, "verify", store)
    assert code == 0
    assert out.startswith("runs: sound: 4 checkpoints, ")
    path, start = damage(store, 2000, "model.0.bias")
    code, out, _ = answer(capsys, "verify", store)
    assert code == 1
    assert f"{store}/packs/{path.name}: DAMAGED" in out
    assert f"  bytes {start} to {start + 12}: tensor 'model.0.bias': the digest of these bytes differs" in out
    assert "of which 1 damaged (step 2000)" in out
    assert [answer(capsys, "verify", f"{store}@{step}")[0] for step in (1500, 2000, 2500)] == [0, 1, 0]
    code, out, _ = answer(capsys, "verify", store, f"{store}@best", "--json")
    whole, best = json.loads(out)["sources"]
    assert (whole["status"], best["status"]) == ("damaged", "sound")
    assert [one["step"] for one in whole["store"]["checkpoints"] if not one["sound"]] == [2000]
    assert whole["files"][0]["damage"][0]["tensor"] == "model.0.bias"


def test_verify_tells_each_damage_in_one_line(store, capsys):
    """A manifest, a header and a missing pack: what is wrong is said once, and where."""
    needed = locate(f"{store}@2500").manifest.body.packs
    damaged, gone = (Path(f"runs/packs/{pack.id}.safetensors") for pack in needed[:2])
    flip(Path("runs/checkpoints/00000001-1000.json"), 120)
    flip(damaged, 20)
    gone.unlink()
    code, out, _ = answer(capsys, "verify", store)
    assert code == 1
    assert "runs/checkpoints/00000001-1000.json: DAMAGED\n  bytes 0 to " in out
    assert ": header: the digest of its first line differs\n" in out
    assert f"{damaged}: DAMAGED\n  bytes 0 to " in out
    assert ": header: the digest of its header differs\n" in out
    assert f"{gone}: DAMAGED\n  the file is missing, and a checkpoint needs it\n" in out
    assert "steps 1000, " in out.splitlines()[-1]


def test_verify_of_what_can_not_be_read(store, tmp_path, capsys):
    """No such step, no such store: 3, and what else was given is verified all the same."""
    code, out, err = answer(capsys, "verify", f"{store}@1", store, tmp_path / "nowhere@1")
    assert code == 3
    assert "runs: sound: 4 checkpoints" in out
    assert "has no checkpoint of step 1" in err
    assert "there is no store" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["log", "runs"],
        ["log", "runs", "--json"],
        ["show", "runs@best"],
        ["verify", "runs"],
        ["prune", "runs", "--last", "2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_torch_is_imported(store, arguments):
    """Listing, verifying and pruning a store start in no time."""
    assert store == "runs"
    script = f"import sys; from torchkeep.cli import main; sys.exit(main({arguments!r}) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)
