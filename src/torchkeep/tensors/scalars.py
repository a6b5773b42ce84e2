"""Single numbers of NumPy as plain values: a learning rate from ``np.interp``, a best score from ``np.mean``.

Kept are dtype and bits. NumPy is never imported for them: where it is not, they are read as plain numbers.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torchkeep.formats.values import Node

_FORMATS: Final = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "complex64": "ff",
    "complex128": "dd",
}


def encode_scalar(value: object) -> tuple[str, Node] | None:
    """Return the tag, and dtype and little-endian bits, of a number of NumPy; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return None
    dtype = numpy.dtype(type(value))
    if dtype.name not in _FORMATS or dtype.type is not type(
        value
    ):  # a class of someone's own is more than its bits
        return None
    return "numpy", [dtype.name, numpy.asarray(value, dtype.newbyteorder("<")).tobytes().hex()]


def read_scalar(node: Node) -> Any:
    """Return the number that dtype and bits stand for.

    Raises:
        ValueError: they are none that `encode_scalar` gives.
    """
    match node:
        case [str(name), str(digits)] if name in _FORMATS:
            raw = bytes.fromhex(digits)
        case _:
            raise ValueError("it is no dtype of NumPy's numbers with the bits of one")
    try:
        parts: tuple[Any, ...] = struct.unpack(f"<{_FORMATS[name]}", raw)
    except struct.error as cause:
        raise ValueError(f"{name} has another number of bytes than {len(raw)}") from cause
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        dtype = numpy.dtype(name)
        return numpy.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)[0]
    return complex(*parts) if len(parts) > 1 else parts[0]
