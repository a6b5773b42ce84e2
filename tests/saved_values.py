"""Helpers for tests of files: describe any value so that equal descriptions mean equal types, bits and sharing."""

from __future__ import annotations

from ctypes import string_at

import numpy as np
import torch

from torchkeep.tensors.copying import copy_out


def bits_of(tensor):
    """Return a tensor's bytes in row-major order."""
    nbytes = tensor.numel() * tensor.element_size()
    memory = torch.empty(max(nbytes, 1), dtype=torch.uint8)
    copy_out(tensor.detach().resolve_conj().resolve_neg(), 0, nbytes, memory.data_ptr())
    return string_at(memory.data_ptr(), nbytes)


def described(value):
    """Describe a nested value: exact types, the bits of floats and tensors, the order of dicts."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, tuple(value.shape), value.requires_grad, bits_of(value)
    if isinstance(value, dict):
        pairs = [(described(key), described(item)) for key, item in value.items()]
        return type(value), pairs, repr(getattr(value, "__dict__", None))
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(described(item)) for item in value)
    if isinstance(value, list | tuple):
        return type(value), [described(item) for item in value]
    if isinstance(value, float | complex):
        return type(value), np.complex128(value).tobytes()
    return type(value), value


def tensors_in(value):
    """Return every tensor in a nested value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def no_strays(folder, *expected):
    """Assert that a folder holds exactly the files of these names."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
