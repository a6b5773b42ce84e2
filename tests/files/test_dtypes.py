"""Every dtype that torch can hold on the CPU comes back bit for bit, or is refused by name."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

import torchkeep as tk
from saved_values import bits_of
from torchkeep.dtypes import DTYPES
from torchkeep.errors import UnsavableError
from torchkeep.formats import open_contents
from torchkeep.tensors.copying import WORDS
from torchkeep.tensors.dtypes import dtype_name

ALL = sorted({dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)}, key=str)
QUANTIZED = [dtype for dtype in ALL if dtype_name(dtype).startswith(("qint", "quint"))]
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3)]


def filled(dtype, shape):
    """Return a tensor of random bytes, which are NaNs with payloads and other odd values too."""
    generator = torch.Generator().manual_seed(7)
    words = WORDS.get(dtype.itemsize)
    if words is None:
        raw = torch.randint(-(2**63), 2**63 - 1, (*shape, 2), dtype=torch.int64, generator=generator)
        return torch.view_as_complex(raw.view(torch.float64))
    low, high = (0, 2) if dtype == torch.bool else (torch.iinfo(words).min, torch.iinfo(words).max)
    return torch.randint(low, high, shape, dtype=words, generator=generator).view(dtype)


def test_every_dtype_of_this_torch_is_known():
    """A dtype that a new torch brings does not go unnoticed."""
    assert {dtype_name(dtype) for dtype in ALL} <= set(DTYPES)


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if dtype not in QUANTIZED], ids=str)
def test_tensors_of_any_dtype_come_back_bit_for_bit(tmp_path, dtype):
    """Saved and loaded: same dtype, shape and bits, through load and into live buffers."""
    tensors = {f"x{len(shape)}{0 in shape}": filled(dtype, shape) for shape in SHAPES}
    tk.save(tensors, tmp_path / "file")
    back = tk.load(tmp_path / "file")
    assert {row.name: (row.dtype, row.shape) for row in tk.params(tmp_path / "file").rows} == {
        name: (dtype_name(dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    net = torch.nn.Module()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (dtype, tensor.shape)
        assert bits_of(back[name]) == bits_of(tensor)
        net.register_buffer(name, filled(dtype, tensor.shape))
        raw = net.get_buffer(name)
        (torch.view_as_real(raw) if raw.element_size() == 16 else raw.view(WORDS[raw.element_size()])).zero_()
    tk.load_into(net, tmp_path / "file")
    assert all(bits_of(net.get_buffer(name)) == bits_of(tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if dtype not in QUANTIZED], ids=str)
def test_a_transposed_tensor_of_any_dtype_comes_back(tmp_path, dtype):
    """Strides are those of the tensor that was saved, and the bits are read in its order."""
    tensor = filled(dtype, (3, 4)).t()
    tk.save(tensor, tmp_path / "file")
    back = tk.load(tmp_path / "file")
    assert back.stride() == (1, 4)
    assert bits_of(back) == bits_of(tensor)


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if DTYPES[dtype_name(dtype)].code], ids=str)
def test_what_safetensors_has_a_dtype_for_is_kept_under_it(tmp_path, dtype):
    """The safetensors package reads the same tensor; what it has no dtype for it reads as bytes."""
    tensor = filled(dtype, (2, 3))
    tk.save({"x": tensor}, tmp_path / "file")
    theirs = safetensors.torch.load_file(tmp_path / "file")["x"]
    assert (theirs.dtype, theirs.shape, bits_of(theirs)) == (tensor.dtype, tensor.shape, bits_of(tensor))


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in ALL if dtype not in QUANTIZED and not DTYPES[dtype_name(dtype)].code], ids=str
)
def test_what_safetensors_has_no_dtype_for_is_kept_as_bytes(tmp_path, dtype):
    """Other readers see one dimension more, of bytes; the dtype's name is in the metadata."""
    tensor = filled(dtype, (2, 3))
    tk.save({"x": tensor}, tmp_path / "file")
    theirs = safetensors.torch.load_file(tmp_path / "file")["x"]
    assert theirs.dtype == torch.uint8
    assert theirs.shape == (2, 3, dtype.itemsize)
    assert bits_of(theirs) == bits_of(tensor)
    assert open_contents(tmp_path / "file").document.dtypes == {"x": dtype_name(dtype)}


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_quantized_tensors_are_refused_by_name(tmp_path, dtype):
    """A quantized tensor is more than its bytes; the error says what to save in its place."""
    if dtype == torch.quint4x2:
        scales, zeros = torch.ones(4), torch.zeros(4)
        tensor = torch.quantize_per_channel(torch.ones(4, 4), scales, zeros, 0, torch.quint4x2)
    elif dtype == torch.quint2x4:
        tensor = torch.empty(4, dtype=dtype)
    else:
        tensor = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, dtype)
    with pytest.raises(UnsavableError, match=r"layer\['weight'\].*quantized.*int_repr"):
        tk.save({"layer": {"weight": tensor}}, tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_complex32_makes_no_noise(tmp_path):
    """Loading a complex32 tensor in a fresh process gives no warning about its being experimental."""
    import subprocess
    import sys

    tk.save(filled(torch.complex32, (2,)), tmp_path / "file")
    program = "import sys, torchkeep as tk; assert tk.load(sys.argv[1]).is_complex()"
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path / "file")], check=True)
