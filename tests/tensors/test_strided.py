"""Tensors whose elements lie anyhow in a file of torch.save, read in parts and in little memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.errors import DamageError
from torchkeep.storage.local import LOCAL
from torchkeep.tensors import strided
from torchkeep.tensors.elements import opened_elements


@st.composite
def tensors(draw):
    """Draw a tensor: dense or with gaps, its dimensions in any order, one of any size."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex128]))
    steps = draw(st.lists(st.integers(1, 2), min_size=len(sizes), max_size=len(sizes)))
    large = [size * step for size, step in zip(sizes, steps, strict=True)]
    whole = torch.arange(torch.Size(large).numel()).to(dtype).view(large)
    part = whole[tuple(slice(0, None, step) for step in steps)]
    return part.permute(draw(st.permutations(range(len(sizes)))))


def as_bytes(tensor):
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(tensors(), st.integers(1, 600), st.integers(1, 64), st.data())
def test_any_part_of_any_tensor_is_what_it_is(tmp_path_factory, tensor, window, run, data):
    """Whatever the strides, the window and the shortest run: bytes in row-major order, in any order of asking."""
    path = tmp_path_factory.mktemp("strided") / "x.pt"
    torch.save({"x": tensor}, path)
    wanted = as_bytes(tensor)
    with pytest.MonkeyPatch.context() as patch, opened_elements(LOCAL, path) as elements:
        patch.setattr(strided, "_WINDOW", window)
        patch.setattr(strided, "_RUN", run)
        for _ in range(3):
            start = data.draw(st.integers(0, len(wanted) - 1))
            stop = data.draw(st.integers(start + 1, len(wanted)))
            assert torch.equal(elements.read("x", start, stop), wanted[start:stop])
        elements.finish()


def test_a_large_transposed_tensor_is_never_held_whole(tmp_path, monkeypatch):
    """Windows are read in turn, each once, and what is held is no larger than one."""
    tensor = torch.randn(2000, 3000).t()
    torch.save({"x": tensor}, tmp_path / "x.pt")
    monkeypatch.setattr(strided, "_WINDOW", 10_000_000)
    read, wanted = [], as_bytes(tensor)
    real = strided._box

    def box(*arguments):
        found = real(*arguments)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(strided, "_box", box)
    with opened_elements(LOCAL, tmp_path / "x.pt") as elements:
        for start in range(0, len(wanted), 1_000_000):
            assert torch.equal(elements.read("x", start, start + 1_000_000), wanted[start : start + 1_000_000])
        elements.finish()
    assert max(read) <= 10_000_000
    assert sum(read) == tensor.nbytes


def test_damage_in_it_is_found_at_the_end(tmp_path):
    """Its storage's checksum is compared, though it was not read in the storage's order."""
    tensor = torch.randn(1100, 1200).t()
    torch.save({"x": tensor}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[data.index(tensor.t().numpy().tobytes()) + 5] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with opened_elements(LOCAL, tmp_path / "x.pt") as elements:
        elements.read("x", 0, 100)
        with pytest.raises(DamageError, match="'x'"):
            elements.finish()
