"""``torchkeep log`` and ``torchkeep prune``: what a store holds, and which of it stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import torchkeep as tk
from digit_stores import LOSSES, answer, damage, flip, make, steps
from torchkeep.archive import TensorBytes, Writer
from torchkeep.cli.pruning import prune
from torchkeep.errors import StoreLockedError
from torchkeep.storage.local_folders import LOCAL_FOLDERS


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    return make("runs", LOSSES)


# log ----------------------------------------------------------------------------------------------


def test_log_lists_checkpoints_with_metrics_and_marks(store, capsys):
    """Step, commit, time, sizes, a column for each metric; the latest and the best are marked; nan never wins."""
    code, out, _ = answer(capsys, "log", store)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["step", "commit", "saved", "size", "written", "loss", "note", "notes"]
    assert [line.split()[0] for line in lines[1:5]] == ["1000", "1500", "2000", "2500"]
    assert lines[2].endswith("best")
    assert (lines[4].endswith("latest"), "nan" in lines[4]) == (True, True)
    assert lines[6].startswith("4 checkpoints, ")


def test_log_json_has_all_fields(store, capsys):
    """One checkpoint a line; what JSON has no number for is text."""
    code, out, _ = answer(capsys, "log", store, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["store"], document["rule"], document["schema"]) == ("runs", ["loss", "min"], 1)
    found = document["checkpoints"]
    assert len(out.splitlines()) == len(found) + 2
    assert [(one["step"], one["sequence"]) for one in found] == [(1000, 1), (1500, 2), (2000, 3), (2500, 4)]
    assert [one["metrics"]["loss"] for one in found] == [0.5, 0.25, 0.75, "nan"]
    assert [(one["latest"], one["best"]) for one in found] == [
        (False, False),
        (False, True),
        (False, False),
        (True, False),
    ]
    assert {one["time"] for one in found} == {1.5e9}
    assert all(0 < one["nbytes"] < one["written"] for one in found[:1])
    assert all(one["tensors"] == 8 and one["error"] is None for one in found)


def test_log_shows_the_time_of_this_machine(store, capsys, monkeypatch):
    """Date and time as this machine's clock shows them."""
    import time

    assert "2017-07-14 02:40:00" in answer(capsys, "log", store)[1]
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert "2017-07-14 10:40:00" in answer(capsys, "log", store)[1]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_log_lists_what_can_not_be_read_with_the_reason(store, capsys):
    """A damaged checkpoint stands in its place; the others are listed as ever."""
    flip(Path("runs/checkpoints/00000002-1500.json"), 120)
    code, out, _ = answer(capsys, "log", store)
    line = out.splitlines()[2]
    assert code == 0
    assert line.split()[:2] == ["1500", "2"]
    assert "can't be read: " in line
    assert "the digest of its first line differs" in line
    assert "; 1 can't be read" in out
    found = json.loads(answer(capsys, "log", store, "--json")[1])["checkpoints"]
    assert [one["error"] is None for one in found] == [True, False, True, True]
    assert found[1]["metrics"] is None
    assert [one["step"] for one in found if one["best"]] == [1000]


def test_log_of_an_empty_store_and_of_many_metrics(tmp_path, capsys):
    """No checkpoint yet is an answer; more metrics than columns stand together in the last."""
    make(tmp_path / "empty", {})
    assert answer(capsys, "log", tmp_path / "empty")[:2] == (0, "no checkpoints yet\n")
    with Writer(LOCAL_FOLDERS, str(tmp_path / "many")) as writer:
        metrics = {f"m{number}": number for number in range(12)} | {"text": "y" * 500, "pair": (1, 2j)}
        metrics["huge"] = 1 << 100_000  # more digits than Python spells
        writer.commit(1, {"w": TensorBytes.of(b"abc")}, metrics=metrics)
    out = answer(capsys, "log", tmp_path / "many")[1]
    assert "m8=8, m9=9, m10=10, m11=11, text=yyyyyy" in out
    assert max(map(len, out.splitlines())) < 300
    found = json.loads(answer(capsys, "log", tmp_path / "many", "--json")[1])["checkpoints"][0]["metrics"]
    assert (found["text"], found["pair"], int(found["huge"], 16)) == ("y" * 500, [1, "2j"], 1 << 100_000)


def test_log_of_what_is_no_store(store, tmp_path, capsys):
    """A missing folder, another folder, one checkpoint of a store: exit code 3 and what to do."""
    (tmp_path / "folder").mkdir()
    for path, sentence in (
        ("nowhere", "there is no store 'nowhere': no such folder; check the path"),
        ("folder", "is no store of checkpoints: it has no torchkeep.json"),
        (f"{store}@1000", "give 'runs'"),
    ):
        code, out, err = answer(capsys, "log", path)
        assert (code, out) == (3, "")
        assert sentence in err


def test_escapes_in_a_metric_do_not_reach_the_terminal(tmp_path, capsys):
    """Whatever a hostile store holds in names and values is shown as escapes."""
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store")) as writer:
        writer.commit(1, {"w": TensorBytes.of(b"abc")}, metrics={"\x1b[2Jx\n": "\x1b[31m\u202e"})
    out = answer(capsys, "log", tmp_path / "store")[1]
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert len(out.splitlines()) == 4


# prune --------------------------------------------------------------------------------------------


def folder_size(root):
    return sum(path.stat().st_size for path in Path(root).glob("packs/*"))


def test_prune_removes_what_no_rule_keeps(store, capsys):
    """The last two, and the best by the store's own rule; it says what is removed and how much came free."""
    before = folder_size(store)
    code, out, err = answer(capsys, "prune", store, "--last", 2, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["removed"] == [{"step": 1000, "sequence": 1}]
    assert document["kept"] == steps(store) == [1500, 2000, 2500]
    assert document["freed"] == before - folder_size(store) > 0
    code, out, _ = answer(capsys, "prune", store, "--last", 1)
    assert out.startswith("removed 1 checkpoint (step 2000); ")
    assert "kept 2 checkpoints (steps 1500, 2500), the best by loss (min) among them" in out
    assert tk.load(f"{store}@best")["model"]["0.bias"].tolist() == [1500] * 3


def test_prune_by_every_and_by_another_metric(store, capsys):
    """Multiples of a step, and the best as asked for; the latest always stays."""
    code, _, _ = answer(capsys, "prune", store, "--every", 2000, "--best", "loss:max")
    assert (code, steps(store)) == (0, [2000, 2500])


@pytest.mark.parametrize("rules", [["--last", 1], ["--every", 1000], ["--best", "loss:max"], ["--last", 9]])
def test_a_dry_run_foresees_what_a_prune_does(store, capsys, rules):
    """It removes nothing and takes no lock; the prune after it removes just that."""
    with Writer(LOCAL_FOLDERS, store):
        code, out, _ = answer(capsys, "prune", store, *rules, "--dry-run", "--json")
    foreseen = json.loads(out)
    assert (code, foreseen.pop("dry_run"), steps(store)) == (0, True, list(LOSSES))
    assert answer(capsys, "prune", store, *rules, "--dry-run")[1].startswith("would remove ")
    done = json.loads(answer(capsys, "prune", store, *rules, "--json")[1])
    assert (done.pop("dry_run"), done) == (False, foreseen)


def test_prune_of_nothing_says_so(store, capsys):
    """Nothing to remove is done, too."""
    code, out, _ = answer(capsys, "prune", store, "--last", 100)
    assert code == 0
    assert out.startswith(
        "removed 0 checkpoints; 0 B came free\nkept 4 checkpoints (steps 1000, 1500, 2000, 2500)"
    )


def test_prune_keeps_the_newest_that_is_intact(store, capsys):
    """When the latest is damaged, the newest sound one stays, whatever the rules say."""
    damage(store, 2500, "model.0.weight")
    answer(capsys, "prune", store, "--last", 1, "--best", "loss:max")
    assert steps(store) == [2000, 2500]


def test_prune_stops_at_a_manifest_that_can_not_be_read(store, capsys):
    """What a damaged checkpoint needs is not known: nothing is removed, and that is said."""
    before = folder_size(store)
    flip(Path("runs/checkpoints/00000002-1500.json"), 120)
    for more in ([], ["--dry-run"]):
        code, out, err = answer(capsys, "prune", store, "--last", 1, *more)
        assert (code, out) == (3, "")
        assert "00000002-1500.json" in err
        assert "nothing was pruned in" in err
    assert (folder_size(store), len(steps(store))) == (before, 4)


def test_prune_while_another_writes_is_refused(store):
    """The sentence says who holds the store; nothing was removed."""
    script = f"""
import sys
from torchkeep.archive import Writer
from torchkeep.storage.local_folders import LOCAL_FOLDERS
writer = Writer(LOCAL_FOLDERS, {store!r})
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreLockedError, match=f"process {other.pid}"):
            prune(store, last=1, every=None, best=None, dry_run=False, as_json=False, wait=0)
        other.stdin.close()
    assert steps(store) == list(LOSSES)


def test_prune_never_makes_a_store(tmp_path, capsys):
    """Of a folder that is none, or is not there, nothing is made."""
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nowhere"):
        assert answer(capsys, "prune", tmp_path / name, "--last", 1)[0] == 3
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize(
    "rules", [[], ["--last", "0"], ["--every", "-1"], ["--best", "loss"], ["--best", ":min"], ["--best", "a:low"]]
)
def test_prune_without_a_rule_that_can_be_is_a_usage_error(store, capsys, rules):
    """Exit code 2, and nothing was removed."""
    assert answer(capsys, "prune", store, *rules)[0] == 2
    assert len(steps(store)) == 4


def test_thousands_of_checkpoints_are_listed_plainly(tmp_path, capsys):
    """Each on its line, nothing folded, nothing cut."""
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store")) as writer:
        first = writer.commit(0, {"w": TensorBytes.of(b"abc")}, metrics={"loss": 0.5})
    line = Path(first.path).read_bytes()
    from torchkeep.archive.lines import sealed

    body = line.split(b"\n")[1]
    for step in range(1, 3_000):
        summary = sealed(
            b'{"format":"torchkeep-checkpoint","version":1,"sequence":%d,"step":%d,"time":1.5e9,"metrics":{"loss":%d}}'
            % (step + 1, step, step)
        )
        (tmp_path / "store" / "checkpoints" / f"{step + 1:08d}-{step}.json").write_bytes(summary + body)
    out = answer(capsys, "log", tmp_path / "store")[1]
    lines = out.splitlines()
    assert len(lines) == 3_003
    assert [line.split()[0] for line in lines[1:3_001]] == list(map(str, range(3_000)))
