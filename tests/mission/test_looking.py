"""Promises 5 to 9: any parameter is found by index, name, pattern or place, and the structure is printed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk


@pytest.fixture
def net():
    """Two linear layers around a ReLU."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def block_of_blocks():
    """Four blocks that a loop added under names with a blank, inside a net."""

    def block():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())

    blocks = nn.Sequential()
    for index in range(4):
        blocks.add_module(f"block {index}", block())
    return nn.Sequential(blocks, nn.Linear(4, 1))


def test_05_one_layers_state_by_index_and_a_bias_as_it_is(net):
    """The third layer's state is read by index; its bias is a Parameter with a value and no gradient yet."""
    state = tk.params(net).select("[2].*")
    assert state.names() == ["2.weight", "2.bias"]
    bias = state["2.bias"]
    assert type(bias) is nn.Parameter
    assert bias is net[2].bias
    assert torch.equal(bias.data, net.state_dict()["2.bias"])
    assert bias.grad is None


def test_06_every_name_and_shape_at_once(net):
    """One look gives all names and shapes, of one layer and of the whole net, and prints them."""
    assert [(row.name, row.shape) for row in tk.params(net[0])] == [("weight", (8, 4)), ("bias", (8,))]
    assert [(row.name, row.shape) for row in tk.params(net)] == [
        ("0.weight", (8, 4)),
        ("0.bias", (8,)),
        ("2.weight", (1, 8)),
        ("2.bias", (1,)),
    ]
    shown = str(tk.params(net))
    assert all(name in shown for name in ("0.weight", "0.bias", "2.weight", "2.bias"))


def test_07_a_value_by_name(net):
    """Indexing with a name gives the live tensor; a wrong name says which names are near."""
    assert tk.params(net)["2.bias"].data_ptr() == net[2].bias.data_ptr()
    with pytest.raises(tk.TorchkeepError, match=r"2\.bias"):
        tk.params(net)["2.bais"]


def test_08_blocks_collected_in_a_loop_are_reached_inside():
    """A quoted segment reaches into a block whose name holds a blank."""
    net = block_of_blocks()
    chosen = tk.params(net).select("0.'block 1'.0.bias")
    assert chosen.names() == ["0.block 1.0.bias"]
    assert chosen.tensors()[0] is net[0][1][0].bias
    assert tk.params(net)["0.'block 1'.0.bias"] is net[0][1][0].bias
    assert len(tk.params(net).select("0.*.*.weight")) == 8


def test_09_the_structure_is_printed():
    """The tree names every level with its type, and with an input the shapes that flow through."""
    shown = str(tk.tree(block_of_blocks(), torch.rand(2, 4)))
    for expected in ("Sequential", "block 0", "block 3", "Linear", "ReLU"):
        assert expected in shown
    assert "2x8" in shown or "(2, 8)" in shown or "[2, 8]" in shown
