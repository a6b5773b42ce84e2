"""Storage identity: which tensors are one, and which overlap, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchkeep.tensors.identity import overlapping, span, storage_key, tensor_key


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_share_a_storage_and_strangers_do_not(device):
    """Views of one tensor have one storage key and strangers do not, also where every address is 0."""
    first, second = torch.empty(3, 4, device=device), torch.empty(3, 4, device=device)
    assert storage_key(first) == storage_key(first.view(-1)) == storage_key(first[1:])
    assert storage_key(first) != storage_key(second)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_tensor_is_same_bytes_seen_in_the_same_way(device):
    """A Parameter over a tensor is that tensor; the same bytes in another shape or dtype are not."""
    base = torch.empty(4, 4, device=device)
    assert tensor_key(nn.Parameter(base)) == tensor_key(base)
    others = [base.view(2, 8), base.t(), base[1:], base.view(torch.int32)]
    assert all(tensor_key(other) != tensor_key(base) for other in others)


def test_strides_of_size_one_dimensions_do_not_matter():
    """They are never used, so they tell nothing apart."""
    base = torch.empty(4)
    assert tensor_key(base.view(1, 4)) == tensor_key(base.as_strided((1, 4), (99, 1)))


def test_two_wraps_of_one_numpy_array_are_one_tensor():
    """Torch makes a new storage object for each wrap; the address tells that they are the same memory."""
    array = np.zeros(4, dtype=np.float32)
    first, second = torch.from_numpy(array), torch.from_numpy(array)
    assert tensor_key(first) == tensor_key(second)


def test_tensors_without_storage_or_shape_are_only_themselves():
    """Sparse tensors and lazy parameters have identity but no bytes."""
    sparse = [torch.eye(2).to_sparse() for _ in range(2)]
    lazy = [nn.UninitializedParameter() for _ in range(2)]
    for first, second in (sparse, lazy):
        assert tensor_key(first) == tensor_key(first) != tensor_key(second)
        assert span(first) is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_overlaps_are_found_also_through_others(device):
    """Pieces that only touch do not overlap; a chain of overlapping ones is one group."""
    base = torch.empty(10, device=device)
    pieces = [base[:5], base[3:7], base[7:], torch.empty(2, device=device), base[9:], base[6:8], base[2:2]]
    assert overlapping(pieces) == [[0, 1, 2, 4, 5]]
    assert overlapping([base[:5], base[5:]]) == []


def test_a_conjugate_is_not_the_tensor_itself():
    """Memory, shape, strides and dtype are the same, and the values are not; of the negated part neither."""
    tensor = torch.randn(3, dtype=torch.complex64)
    assert tensor_key(tensor) == tensor_key(tensor.view(3)) != tensor_key(tensor.conj())
    assert tensor_key(tensor.imag) != tensor_key(tensor.conj().imag)
    assert storage_key(tensor) == storage_key(tensor.conj())
