"""The garbage collector is as it was after a save, a load or a plan, however they end."""

from __future__ import annotations

import gc

import pytest
import torch

import torchkeep as tk
from torchkeep.tensors.pausing import without_collections


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was(tmp_path, on):
    """On stays on and off stays off, after success and after an error."""

    def unclaimed():
        tk.init.plan(torch.nn.Linear(1, 1), {"weight": tk.init.zeros()})

    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() is on
        tk.save([torch.ones(1)], tmp_path / "file")
        tk.load(tmp_path / "file")
        tk.init.plan(torch.nn.Linear(1, 1), {"**": tk.init.zeros()})
        for failing in (lambda: tk.save(len, tmp_path / "file"), lambda: tk.load(tmp_path / "none"), unclaimed):
            with pytest.raises(tk.TorchkeepError):
                failing()
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()
