"""A restore brings back exactly what was saved, the newest that is intact, and says what it did not do."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from stored_runs import a_run, bits, paused, train
from torchkeep.errors import (
    DamageError,
    LoadError,
    MissingCheckpointError,
    StorageError,
    StoreError,
    TorchkeepWarning,
)


@pytest.fixture
def saved(tmp_path):
    """A store of three checkpoints of a run, closed, and the bits of each by step."""
    state, wanted = a_run(), {}
    with tk.CheckpointStore(tmp_path / "run") as store:
        for step in (1, 2, 3):
            wanted[step] = bits(state)
            store.save(step, state)
            train(state)
    return tmp_path / "run", wanted


def newest_pack(store, step):
    return store._archive().pack_path(store[step].manifest.body.packs[0].id)


def flip(path, at):
    content = bytearray(Path(path).read_bytes())
    content[at] ^= 1
    Path(path).write_bytes(content)


def test_a_run_goes_on_with_the_same_bits(saved):
    """Into another model and optimizer, with other values, and one that has not stepped yet."""
    where, wanted = saved
    state = a_run(seed=5)
    store = tk.CheckpointStore(where)
    assert store.restore(state) == 3
    assert bits(state) == wanted[3]
    assert store.restore(state, step=1) == 1
    assert bits(state) == wanted[1]
    net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16))
    fresh = tk.TrainingState(model=net, optimizer=torch.optim.AdamW(net.parameters()), ema=state.ema)
    assert store.restore(fresh, step=2) == 2
    assert bits(fresh) == wanted[2]


def test_damage_falls_back_to_the_newest_that_is_intact_and_names_what_was_damaged(saved):
    """A bit in the newest checkpoint's tensors; asked for by its step it is an error."""
    where, wanted = saved
    store = tk.CheckpointStore(where)
    pack = newest_pack(store, 3)
    flip(pack, store[3].manifest.body.packs[0].data + 5)
    state = a_run(seed=5)
    with pytest.warns(TorchkeepWarning) as warned:
        assert store.restore(state) == 2
    told = r"restored step 2 instead: tensor '.*' in '.*' is damaged in bytes"
    assert [bool(re.match(told, str(one.message))) for one in warned] == [True]
    assert "the state" not in str(warned[0].message), "what was replaced in it, step 2 has mended"
    assert bits(state) == wanted[2]
    with pytest.raises(DamageError, match="is damaged in bytes") as caught:
        store.restore(state, step=3)
    assert caught.value.file == pack
    report = store.verify()
    assert {damage.step for damage in report.damage} == {3}
    assert not store.verify(3).ok
    assert store.verify(2).ok
    with pytest.warns(TorchkeepWarning, match="restored step 2"):
        store.restore(state)
    store.save(3, state, wait=True)
    store.close()
    assert tk.CheckpointStore(where).restore(state) == 3


def test_a_pack_that_is_missing_and_a_manifest_that_is_cut_are_damage(saved):
    """Both are named; the oldest is restored."""
    where, wanted = saved
    store = tk.CheckpointStore(where)
    shutil.move(newest_pack(store, 3), where / "elsewhere")
    manifest = where / "checkpoints" / store[2].manifest.path.rpartition("/")[2]
    manifest.write_bytes(manifest.read_bytes()[:-30])
    state = a_run(seed=5)
    with pytest.warns(TorchkeepWarning) as told:
        assert store.restore(state) == 1
    assert ["is missing" in str(told[0].message), "is damaged" in str(told[1].message)] == [True, True]
    assert bits(state) == wanted[1]


def test_where_all_are_damaged_the_newest_is_told(saved):
    """None of them comes back, and the error says so."""
    where, _ = saved
    store = tk.CheckpointStore(where)
    for pack in (where / "packs").iterdir():
        flip(pack, 100)
        pack.write_bytes(pack.read_bytes()[:5000])
    with pytest.raises(DamageError) as caught:
        store.restore(a_run())
    assert "None of the 3 checkpoints" in caught.value.__notes__[-1]


def test_only_damage_falls_back(saved, monkeypatch):
    """A state that does not fit is an error that touches nothing, and so is a disk that does not answer."""
    where, _ = saved
    store = tk.CheckpointStore(where)
    other = a_run(width=8)
    before = bits(other)
    with pytest.raises(LoadError, match="does not fit the state; nothing was changed"):
        store.restore(other)
    assert bits(other) == before
    archive = store._archive()

    def refuse(path):
        raise StorageError(f"can't read {path}")

    monkeypatch.setattr(type(archive.storage), "open", lambda _, path: refuse(path))
    with pytest.raises(StorageError, match="can't read"):
        store.restore(a_run())


def test_what_the_state_has_no_place_for_is_told(saved):
    """Without its average and optimizer."""
    where, wanted = saved
    model = a_run(seed=5).model
    state = tk.TrainingState(model=model)
    with pytest.warns(TorchkeepWarning, match="the part 'optimizer'; the part 'ema'"):
        assert tk.CheckpointStore(where).restore(state) == 3
    found = bits(state)
    assert {name: found[name] for name in found if name.startswith("model")} == {
        name: value for name, value in wanted[3].items() if name.startswith("model")
    }


def test_steps_and_words_that_are_not_there_are_told(saved):
    """With what there is."""
    store = tk.CheckpointStore(saved[0])
    with pytest.raises(MissingCheckpointError, match="no checkpoint of step 7; it has 1, 2, 3"):
        store.restore(a_run(), step=7)
    with pytest.raises(MissingCheckpointError, match="by its step"):
        store.restore(a_run(), step="newest")
    with pytest.raises(MissingCheckpointError, match="it has 1, 2, 3"):
        store[7]
    with pytest.raises(MissingCheckpointError, match="it has 1, 2, 3"):
        store.verify(7)


def test_who_restored_before_another_saved_has_to_restore_again(saved):
    """It would go on beside the other's line of history, and end it; an older step is gone on from at will."""
    where, _ = saved
    state, store = a_run(), tk.CheckpointStore(where)
    assert store.restore(state) == 3
    with tk.CheckpointStore(where) as other:
        other.save(9, a_run(), wait=True)
    with pytest.raises(StoreError, match=r"step 9 was saved to .* after step 3 was restored here; restore again"):
        store.save(4, state)
    assert store.restore(state, 3) == 3
    with store:
        assert store.save(4, state).result().step == 4


def test_a_restore_waits_for_the_save_in_flight(tmp_path):
    """Its copy would be torn otherwise; what was saved comes back."""
    state = a_run()
    with tk.CheckpointStore(tmp_path / "run") as store:
        with paused(store) as pause:
            want = bits(state)
            pending = store.save(1, state)
            pause.wait()
            threading.Thread(target=pause.go.set).start()
            assert store.restore(state) == 1
            assert pending.done()
        assert bits(state) == want
