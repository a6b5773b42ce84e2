"""Single numbers of NumPy come back with their type and bits, or as plain numbers where NumPy is not imported."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import torchkeep as tk
from torchkeep.errors import FormatError, UnsavableError
from torchkeep.formats.values import decode, encode
from torchkeep.tensors.plain import PLAIN_READERS, encode_plain
from torchkeep.tensors.scalars import encode_scalar, read_scalar

NUMBERS = [
    np.bool_(1),
    np.int8(-128),
    np.int16(-3),
    np.int32(2**31 - 1),
    np.int64(-(2**63)),
    np.uint8(255),
    np.uint16(7),
    np.uint32(2**32 - 1),
    np.uint64(2**64 - 1),
    np.float16(-0.0),
    np.float32(0.1),
    np.float64(0.1),
    np.float64("-inf"),
    np.uint32(0x7FA00001).view(np.float32),  # a signalling NaN with a payload
    np.complex64(1 - 2j),
    np.complex128(complex("nan-infj")),
]


def ids(value):
    return f"{type(value).__name__}-{value}"


@pytest.mark.parametrize("value", NUMBERS, ids=ids)
def test_a_number_comes_back_with_its_type_and_bits(value):
    """Through JSON's own types, and back."""
    tag, node = encode_scalar(value)
    back = read_scalar(node)
    assert tag == "numpy"
    assert type(back) is type(value)
    assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize("value", NUMBERS, ids=ids)
def test_without_numpy_the_plain_number_is_given(value, monkeypatch):
    """As on a machine that has no NumPy: it is not imported for that."""
    _, node = encode_scalar(value)
    monkeypatch.delitem(sys.modules, "numpy")
    back = read_scalar(node)
    assert "numpy" not in sys.modules
    assert type(back) is type(value.item())
    assert np.array(back, value.dtype).tobytes() == value.tobytes() or back != back  # noqa: PLR0124 - NaN


def test_bits_are_little_endian():
    """What a machine of the other order reads is the same number."""
    assert encode_scalar(np.int32(1)) == ("numpy", ["int32", "01000000"])
    assert read_scalar(["complex64", "0000803f000000c0"]) == 1 - 2j


class Own(np.float64):
    """More than its bits, perhaps."""


@pytest.mark.parametrize(
    "value",
    [np.zeros(1), np.datetime64(1, "s"), np.str_("x"), np.longdouble(1), Own(1)],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_number_of_a_fixed_size_is_refused_still(value):
    """With the advice that others of NumPy's values get."""
    assert encode_scalar(value) is None
    with pytest.raises(UnsavableError, match=r"it is an? "):
        encode(value, hook=lambda one, _: encode_plain(one))


@pytest.mark.parametrize(
    "node",
    [
        None,
        [],
        ["float64"],
        ["float64", 3],
        ["object", "00"],
        ["float64", "00"],
        ["float64", "zz" * 8],
        [["a"], "00"],
    ],
    ids=repr,
)
def test_what_is_not_the_bits_of_a_number_is_refused(node):
    """A file is not trusted."""
    with pytest.raises(FormatError, match="numpy"):
        decode({"numpy": node}, readers=PLAIN_READERS)


def test_a_file_and_a_state_keep_them(tmp_path):
    """Wherever plain values may be: in containers, as keys, among hyperparameters and parts of a state."""
    tk.save({"lr": np.float64(0.1), np.int64(3): [np.bool_(0)]}, tmp_path / "file")
    back = tk.load(tmp_path / "file")
    assert {type(key) for key in back} == {str, np.int64}
    assert type(back["lr"]) is np.float64
    assert type(back[3][0]) is np.bool_

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    state = tk.TrainingState(model=torch.nn.Linear(1, 1), optimizer=optimizer, best=None)
    optimizer.param_groups[0]["lr"] = np.interp(0.5, [0.0, 1.0], [0.0, 0.2])
    state.best = np.float32(0.25)
    with tk.CheckpointStore(tmp_path / "store") as store:
        store.save(1, state, wait=True)
        optimizer.param_groups[0]["lr"], state.best = 0.5, None
        assert store.restore(state) == 1
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    assert (optimizer.param_groups[0]["lr"], type(state.best), state.best) == (0.1, np.float32, 0.25)
