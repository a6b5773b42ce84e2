"""Any part of a tensor's bytes is copied to and from memory, whatever its strides."""

from __future__ import annotations

from ctypes import string_at

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.tensors.copying import cast_in, copy_bits, copy_in, copy_out, plain_address, same_bits

DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@st.composite
def parts(draw):
    """Return a tensor of any strides and a range of its elements, both ends anywhere."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    numel = torch.Size(shape).numel()
    tensor = torch.arange(numel).view(shape).to(draw(st.sampled_from(DTYPES)))
    if shape:
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
        tensor = tensor[:: draw(st.integers(1, 2))]
        if draw(st.booleans()):
            tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    first = draw(st.integers(0, tensor.numel()))
    return tensor, first, draw(st.integers(first, tensor.numel()))


@given(parts())
def test_a_part_is_copied_out_in_row_major_order(part):
    """The bytes are those that the contiguous tensor has there, and nothing beyond is written."""
    tensor, first, last = part
    size = tensor.element_size()
    memory = torch.full(((last - first) * size + 8,), 171, dtype=torch.uint8)
    copy_out(tensor, first * size, (last - first) * size, memory.data_ptr())
    contiguous = tensor.contiguous()
    whole = string_at(contiguous.data_ptr(), tensor.numel() * size)
    assert string_at(memory.data_ptr(), (last - first) * size) == whole[first * size : last * size]
    assert memory[(last - first) * size :].tolist() == [171] * 8


@given(parts(), st.sampled_from([0, 1]))
def test_a_part_is_copied_in_where_it_belongs(part, shift):
    """Only the elements of the part change, also when the bytes lie at an odd address."""
    tensor, first, last = part
    if 0 in tensor.stride():
        return  # an expanded tensor is no target
    size = tensor.element_size()
    memory = torch.zeros(tensor.numel() * size + 8, dtype=torch.uint8)
    start = memory.data_ptr() + shift
    copy_out(tensor, 0, tensor.numel() * size, memory.data_ptr())
    memory[shift:] = memory[: len(memory) - shift].clone()
    target = torch.full_like(tensor, 77)
    copy_in(target, first * size, (last - first) * size, start + first * size)
    wanted = torch.full((tensor.numel(),), 77).to(tensor.dtype)
    wanted[first:last] = tensor.reshape(-1)[first:last]
    assert torch.equal(target.reshape(-1), wanted)


@given(parts())
def test_a_part_is_converted_as_it_is_copied_in(part):
    """Elements of another dtype are converted as ``Tensor.to`` does, at the places of the part."""
    tensor, first, last = part
    values = torch.arange(tensor.numel(), dtype=torch.float16)
    if 0 in tensor.stride():
        return
    target = torch.full_like(tensor, 77)
    cast_in(target, torch.float16, first * 2, (last - first) * 2, values.data_ptr() + first * 2)
    wanted = torch.full((tensor.numel(),), 77).to(tensor.dtype)
    wanted[first:last] = values[first:last].to(tensor.dtype)
    assert torch.equal(target.reshape(-1), wanted)


def test_bits_are_compared_and_copied_not_values():
    """NaNs with different payloads differ, equal ones are equal, and -0.0 is not 0.0."""
    quiet, loud = (
        torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001)
    )
    assert same_bits(quiet, quiet.clone())
    assert not same_bits(quiet, loud)
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    target = torch.zeros(1)
    copy_bits(target, loud)
    assert same_bits(target, loud)


def test_only_row_major_memory_of_the_cpu_has_an_address():
    """Everything else goes element by element."""
    tensor = torch.ones(3, 2)
    assert plain_address(tensor) == tensor.data_ptr()
    assert plain_address(tensor[1:]) == tensor.data_ptr() + 8
    assert plain_address(tensor.t()) is None
    assert plain_address(torch.ones(2, device="meta")) is None
    assert plain_address(torch.ones(2, dtype=torch.complex64).conj()) is None
