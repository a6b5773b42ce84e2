"""Damage of every kind: only this library's errors come out, whatever the bytes."""

from __future__ import annotations

import struct
from collections import OrderedDict
from io import BytesIO

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_files import FLOATS, OLD, legacy, named, number, proto, storage, tensor, text, tupled, watched, zipped
from torchkeep.errors import DamageError, TorchkeepError
from torchkeep.formats.pickles import pickled_of
from torchkeep.formats.pickles.constructors import _CALLED


class Memory:
    """A file that is in memory."""

    path = "memory"

    def __init__(self, data):
        self.data = data
        self.size = len(data)

    def read(self, start, length):
        piece = self.data[start : start + length]
        if len(piece) < length:
            raise DamageError("cut short")
        return piece


def outcome(data):
    """Return the names in a file, or None where it is refused; anything but this library's errors fails."""
    try:
        pickled = pickled_of(Memory(data))
        return [row.names for row in pickled.listing.rows]
    except TorchkeepError as error:
        sentence = str(error)
    assert 0 < len(sentence) < 2000
    return None


def saved(value, new):
    made = BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=new)
    return made.getvalue()


STATE = OrderedDict(
    a=nn.Parameter(torch.arange(3.0)), b=[torch.ones(2, 2).t(), (1, "x", {2: None})], c=torch.Size([1])
)
STATE._metadata = {"": {"version": 1}}
SMALL = b"}\x94(" + text("w") + tensor() + text("n") + number(3) + b"u"
OLD_SMALL = b"}\x94(" + text("w") + tensor(OLD) + text("n") + number(3) + b"u"


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(new):
    """No prefix of a file passes for a file."""
    data = saved(STATE, new)
    assert outcome(data) == [("a",), ("b.0",)]
    for length in range(len(data)):
        assert outcome(data[:length]) is None


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_byte_of_a_pickle_may_change(new):
    """Each byte of a small pickle, with other values: described or refused, nothing else."""
    program = proto(SMALL if new else OLD_SMALL, 4)
    found = set()
    for place in range(len(program)):
        # Making an archive takes longer than reading it.
        for value in range(0, 256, 8 if new else 1):
            changed = program[:place] + bytes([value]) + program[place + 1 :]
            data = zipped(changed, {"0": FLOATS}) if new else legacy(changed, {"0": (4, FLOATS)})
            found.add(str(outcome(data)))
    assert "None" in found
    assert "[('w',)]" in found


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_byte_of_a_file_may_change(new):
    """Headers, directories and sizes, too: each byte with several other values."""
    data = saved(STATE, new)
    for place in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            outcome(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])


FRAGMENTS = st.one_of(
    st.sampled_from(
        [bytes([code]) for code in range(256)]
        + [named(full) for full in (*_CALLED, "torch.FloatStorage", "torch.float32", "torch.Tensor", "os.system")]
        + [named("torch.nn.parameter.Parameter"), named("torch._tensor._rebuild_from_type_v2")]
        + [storage(), OLD, tensor(), tensor(OLD), text("storage"), text("0"), text("_metadata"), text("latin1")]
        + [
            b")R",
            b"\x85R",
            b"\x86R",
            b"\x94",
            b"(",
            b"t",
            b"u",
            b"e",
            b"s",
            b"a",
            b"b",
            b"Q",
            b"\x88",
            b"\x89",
            b"N",
        ]
        + [
            tupled(number(4)),
            tupled(number(1)),
            tupled(number(2), number(2)),
            number(0),
            number(-1),
            number(2**63),
        ]
    ),
    st.integers(0, 40).map(lambda index: b"h" + bytes([index])),
    st.integers(0, 40).map(lambda index: b"q" + bytes([index])),
    st.text(max_size=3).map(text),
    st.integers(-(2**70), 2**70).map(number),
    st.floats().map(lambda value: b"G" + struct.pack(">d", value)),
    st.binary(max_size=4).map(lambda data: b"C" + bytes([len(data)]) + data),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAGMENTS, max_size=40), st.integers(2, 5), st.booleans())
def test_any_program_is_described_or_refused(fragments, version, new):
    """Programs made of everything that means something, in any order, run nothing."""
    program = proto(b"".join(fragments), version)
    data = zipped(program, {"0": FLOATS}) if new else legacy(program, {"0": (4, FLOATS)})
    with watched() as seen:
        outcome(data)
    assert not seen


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.booleans())
def test_files_put_together_wrongly_are_described_or_refused(data, new):
    """Pieces of a file removed, doubled, moved or overwritten."""
    whole = SAVED[new]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, min(len(whole), start + 200)))
        piece = data.draw(
            st.sampled_from([b"", whole[start:stop] * 2, bytes(stop - start), b"\xff" * 8, b"PK\x05\x06"])
        )
        whole = whole[:start] + piece + whole[stop:]
    outcome(whole)


SAVED = {new: saved(STATE, new) for new in (True, False)}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", SAVED[False][:200]]),
)
def test_any_bytes_are_refused(tail, head):
    """Noise behind any beginning."""
    assert outcome(head + tail) is None
