"""The fixed table of globals that a pickled file may name, and the descriptions that each of them stands for.

Nothing here is the thing that is named: ``torch._utils._rebuild_tensor_v2`` stands for a function of ours that
checks its arguments and describes a tensor. A name that is not in the table is an error, whether it is called or
not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from torchkeep.dtypes import DTYPES
from torchkeep.formats.pickles.keys import checked_keys
from torchkeep.formats.pickles.machine import SET_ITEMS, shown
from torchkeep.formats.pickles.numbers import NumpyDtype, numpy_dtype, numpy_scalar, set_byte_order
from torchkeep.formats.pickles.objects import Device, Dtype, Layout, Ordered, Size, TensorRef, kind_of
from torchkeep.formats.pickles.tensors import (
    INT64,
    from_type,
    meta_tensor,
    moved_tensor,
    parameter,
    parameter_with_state,
    plain_parameter,
    set_parameter_state,
    tensor_v1,
    tensor_v2,
    tensor_v3,
)
from torchkeep.names import with_article

if TYPE_CHECKING:
    from torchkeep.formats.pickles.machine import Machine


class Constructor(Struct, frozen=True, eq=False):
    """Something that a file may call.

    Attributes:
        name: its full name in the file.
        make: what it stands for: takes the machine and the arguments, checks them, gives the description.
    """

    name: str
    make: Callable[..., Any]


class StorageType(Struct, frozen=True, eq=False):
    """A class of storages that a file may name, but not call.

    Attributes:
        dtype: torch's name of its elements' dtype; ``"uint8"`` for untyped bytes.
    """

    dtype: str


def lookup(m: Machine, module: str, name: str) -> object:
    """Return what a global stands for.

    Raises:
        UnsafeFileError: it is not in the table.
        FormatError: it is a kind of tensor that is known, but not read.
    """
    found = _TABLE.get((module, name))
    if found is not None:
        return found
    wanted = f"{module}.{name}"
    if wanted in _NOT_READ:
        raise m.unreadable(*_NOT_READ[wanted])
    raise m.unsafe(wanted, f"asks for {shown(wanted)}, which is no part of tensors, containers or plain values")


def new_object(m: Machine, made: object, arguments: object) -> object:
    """Carry out NEWOBJ: only old versions of PyTorch made parameters so.

    Raises:
        UnsafeFileError: it would make anything else.
    """
    if made is not _PARAMETER or type(arguments) is not tuple:
        wanted = made.name if type(made) is Constructor else ""
        raise m.unsafe(wanted, f"asks to make {wanted or kind_of(made)} anew, which is not to be made so")
    return plain_parameter(m, arguments)


def build(m: Machine, target: object, state: object) -> None:
    """Carry out BUILD, which sets attributes, where that is known to mean something harmless.

    Raises:
        UnsafeFileError: it means anything else.
    """
    if type(target) is Ordered:
        if type(state) is not dict or list(state) not in ([], ["_metadata"]):
            raise m.unsafe("", "asks to set attributes of an OrderedDict other than the _metadata of a state_dict")
        metadata = state.get("_metadata")
        if metadata is not None and type(metadata) not in {dict, Ordered}:
            raise m.malformed("has a _metadata that is no mapping")
        target.metadata = metadata
    elif type(target) is NumpyDtype:
        set_byte_order(m, target, state)
    elif type(target) is TensorRef and target.parameter:
        set_parameter_state(m, target, state)
    else:
        raise m.unsafe("", f"asks to set attributes of {kind_of(target)}")


# Containers and plain values


def _ordered(m: Machine, arguments: tuple[Any, ...]) -> Ordered:
    made = Ordered()
    if arguments:
        pairs = _only(m, arguments, list, "OrderedDict")
        m.spend(len(pairs))
        # Python 2 wrote lists of two.
        if any(type(pair) not in {tuple, list} or len(pair) != len(("key", "value")) for pair in pairs):
            raise m.malformed("makes an OrderedDict of something else than pairs")
        checked_keys(m, [key for key, _ in pairs])
        made.update(pairs)
    return made


def _counter(m: Machine, arguments: tuple[Any, ...]) -> Counter[Any]:
    made: Counter[Any] = Counter()
    if arguments:
        counts = _only(m, arguments, dict, "Counter")
        m.spend(len(counts))
        # Counter's own update would call methods of what it is given.
        dict.update(made, counts)
    return made


def _set(m: Machine, arguments: tuple[Any, ...]) -> set[Any]:
    items = _only(m, arguments, list, "set") if arguments else []
    m.spend(len(items) + SET_ITEMS)
    return set(checked_keys(m, items))


def _frozenset(m: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_set(m, arguments))


def _bytes(m: Machine, arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise m.malformed("makes bytes of something that is none")
    return b""


def _bytearray(m: Machine, arguments: tuple[Any, ...]) -> bytearray:
    match arguments:
        case []:
            return bytearray()
        case [bytes() as data]:
            m.spend(len(data) // _ITEM)
            return bytearray(data)
        case _:
            return bytearray(_encoded(m, arguments))


def _encoded(m: Machine, arguments: tuple[Any, ...]) -> bytes:
    """Bytes: protocol 2 has no other way than to encode text."""
    match arguments:
        case [str() as text, "latin1" | "latin-1"]:
            m.spend(len(text) // _ITEM)
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError as cause:
                raise m.malformed("makes bytes of text that is not Latin-1") from cause
        case _:
            raise m.malformed("makes bytes of something else than Latin-1 text")


def _complex(m: Machine, arguments: tuple[Any, ...]) -> complex:
    match arguments:
        case [float() as real, float() as imaginary]:
            return complex(real, imaginary)
        case _:
            raise m.malformed("makes a complex number of something else than two numbers")


def _size(m: Machine, arguments: tuple[Any, ...]) -> Size:
    sizes = arguments[0] if arguments else ()
    if len(arguments) > 1 or type(sizes) not in {tuple, list}:
        raise m.malformed("makes a torch.Size of something else than whole numbers")
    m.spend(len(sizes))
    if any(type(size) is not int or size not in INT64 for size in sizes):
        raise m.malformed("makes a torch.Size of something else than whole numbers of 64 bits")
    return Size(sizes)


def _device(m: Machine, arguments: tuple[Any, ...]) -> Device:
    match arguments:
        case [str() as text]:
            pass
        case [str() as kind, int() as index]:
            text = f"{kind}:{index}" if index in range(_MAX_DEVICES) else ""
        case _:
            text = ""
    if not _DEVICE.fullmatch(text):
        raise m.malformed("makes a torch.device of something that names none")
    return Device(text)


def _layout(m: Machine, arguments: tuple[Any, ...]) -> Layout:
    if arguments != ("torch.strided",):
        raise m.unreadable("a layout other than torch.strided", "save strided tensors instead")
    return Layout("strided")


def _only(m: Machine, arguments: tuple[Any, ...], kind: type[Any], name: str) -> Any:
    if len(arguments) != 1 or type(arguments[0]) is not kind:
        raise m.malformed(f"makes {with_article(name)} of something else than a {kind.__name__}")
    return arguments[0]


# The table

_ITEM: Final = 64
_DEVICE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}(:[0-9]{1,3})?")
_MAX_DEVICES: Final = 128
_PARAMETER: Final = Constructor("torch.nn.parameter.Parameter", plain_parameter)
_STORAGES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
_CALLED: Final = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "_codecs.encode": _encoded,
    # Protocol 2 writes the name that the module had in Python 2.
    **{
        f"{module}.{name}": make
        for module in ("builtins", "__builtin__")
        for name, make in {
            "set": _set,
            "frozenset": _frozenset,
            "bytes": _bytes,
            "bytearray": _bytearray,
            "complex": _complex,
        }.items()
    },
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "torch._utils._rebuild_tensor": tensor_v1,
    "torch._utils._rebuild_tensor_v2": tensor_v2,
    "torch._utils._rebuild_tensor_v3": tensor_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": meta_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": moved_tensor,
    "torch._utils._rebuild_parameter": parameter,
    "torch._utils._rebuild_parameter_with_state": parameter_with_state,
    "numpy.dtype": numpy_dtype,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
}
_BASE: Final = Constructor("torch.Tensor", tensor_v1)


def _from_type(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``torch._tensor._rebuild_from_type_v2``: a tensor with attributes of its own."""
    match arguments:
        case [Constructor() as make, Constructor() as kind, tuple() as inner, state] if make in _TENSORS:
            if kind is not _BASE and kind is not _PARAMETER:
                raise m.unsafe(kind.name, f"asks to make a tensor of the class {kind.name}, which is no tensor's")
            return from_type(m, make.make(m, inner), state, is_parameter=kind is _PARAMETER)
        case _:
            raise m.unsafe("", "asks to make a tensor by something that makes none")


def _table() -> dict[tuple[str, str], object]:
    table: dict[tuple[str, str], object] = {}
    for full, make in _CALLED.items():
        module, _, name = full.rpartition(".")
        table[module, name] = Constructor(full, make)
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.storage", "torch.cuda"):
            table[module, name] = StorageType(dtype)
    table |= {("torch", name): Dtype(name) for name in DTYPES}
    table["torch.nn.parameter", "Parameter"] = _PARAMETER
    table["torch", "Tensor"] = _BASE
    table["torch._tensor", "_rebuild_from_type_v2"] = Constructor(
        "torch._tensor._rebuild_from_type_v2", _from_type
    )
    return table


_TABLE: Final = _table()
_TENSORS: Final = {
    found for (_, name), found in _TABLE.items() if isinstance(found, Constructor) and name.startswith("_rebuild_")
} - {_TABLE["torch._tensor", "_rebuild_from_type_v2"]}

_QUANTISED: Final = ("a quantised tensor", "save it dequantised (tensor.dequantize())")
_SPARSE: Final = ("a sparse tensor", "save it dense (tensor.to_dense())")
_NESTED: Final = ("a nested tensor", "save its parts as a list (tensor.unbind())")
_SUBCLASS: Final = ("a tensor of a class of its own", "save a plain tensor instead")
_SHARDED: Final = ("a DTensor, of which one process saved its part", "save tensor.full_tensor() instead")
_ARRAY: Final = ("a NumPy array", "save it as a tensor (torch.from_numpy(array))")
_STORAGE: Final = ("a storage that is no tensor", "save a tensor instead")
_NOT_READ: Final = {
    "torch._utils._rebuild_qtensor": _QUANTISED,
    **{f"torch.{name}Storage": _QUANTISED for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")},
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_sparse_csr_tensor": _SPARSE,
    "torch._utils._rebuild_nested_tensor": _NESTED,
    "torch.nested._internal.nested_tensor._rebuild_njt": _NESTED,
    "torch._utils._rebuild_wrapper_subclass": _SUBCLASS,
    "torch._utils._rebuild_device_tensor_from_numpy": _ARRAY,
    "torch._utils._rebuild_xla_tensor": _ARRAY,
    "numpy.core.multiarray._reconstruct": _ARRAY,
    "numpy._core.multiarray._reconstruct": _ARRAY,
    "numpy.core.numeric._frombuffer": _ARRAY,
    "numpy._core.numeric._frombuffer": _ARRAY,
    "torch.distributed.tensor.DTensor": _SHARDED,
    "torch.distributed.tensor._api.DTensor": _SHARDED,
    "torch.distributed._tensor.api.DTensor": _SHARDED,
    "torch.storage._load_from_bytes": _STORAGE,
    "torch.storage.TypedStorage": _STORAGE,
}
