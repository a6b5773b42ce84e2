"""Single numbers of NumPy, which training checkpoints hold (a best score, say), read as plain numbers.

A number's value is kept exactly; that it was a ``numpy.float32`` is not. NumPy itself is never imported.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from torchkeep.formats.pickles.machine import Machine

_FORMATS: Final = {
    "b1": "?",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "c8": "ff",
    "c16": "dd",
}


class NumpyDtype(Struct, eq=False):
    """A ``numpy.dtype`` of numbers.

    Attributes:
        code: NumPy's short name, such as ``"f8"``.
        order: ``"<"`` or ``">"``: the order of a number's bytes.
    """

    code: str
    order: str = "<"


def numpy_dtype(m: Machine, arguments: tuple[Any, ...]) -> NumpyDtype:
    """``numpy.dtype(code, align, copy)``; the byte order comes later, as state."""
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in _FORMATS:
        raise m.unreadable("NumPy data other than single numbers", "save tensors and plain values instead")
    return NumpyDtype(code)


def set_byte_order(m: Machine, dtype: NumpyDtype, state: object) -> None:
    """Take the byte order out of the state of a ``numpy.dtype``: ``(3, "<", None, None, None, -1, -1, 0)``."""
    match state:
        case (_, "<" | "|", *_):
            dtype.order = "<"
        case (_, ">", *_):
            dtype.order = ">"
        case _:
            raise m.malformed("has a NumPy dtype without an order of bytes")


def numpy_scalar(m: Machine, arguments: tuple[Any, ...]) -> complex | bool:
    """``numpy.core.multiarray.scalar(dtype, bytes)``: a bool, int, float or complex."""
    match arguments:
        case [NumpyDtype(code, order), bytes() as data]:
            wanted = struct.Struct(order + _FORMATS[code])
            if len(data) != wanted.size:
                raise m.malformed(f"has a NumPy number of {len(data)} bytes where {wanted.size} are needed")
            parts: tuple[Any, ...] = wanted.unpack(data)
            return complex(*parts) if len(parts) > 1 else parts[0]
        case _:
            raise m.malformed("makes a NumPy number of something else")
