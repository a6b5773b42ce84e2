"""The dtypes of tensors by name, without torch: sizes, safetensors' codes, short forms."""

from __future__ import annotations

from typing import Final, NamedTuple


class DtypeInfo(NamedTuple):
    """What is known of a dtype without torch.

    Attributes:
        name: torch's own name, such as ``"float32"``.
        itemsize: bytes of one element, as ``torch.dtype.itemsize`` says.
        code: safetensors' code for it, or None where that format has none.
    """

    name: str
    itemsize: int
    code: str | None


_TABLE: Final = {
    "float64": (8, "F64"),
    "float32": (4, "F32"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e4m3fnuz": (1, "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": (1, "F8_E5M2FNUZ"),
    "float8_e8m0fnu": (1, "F8_E8M0"),
    "float4_e2m1fn_x2": (1, None),
    "complex128": (16, None),
    "complex64": (8, "C64"),
    "complex32": (4, None),
    "int64": (8, "I64"),
    "int32": (4, "I32"),
    "int16": (2, "I16"),
    "int8": (1, "I8"),
    "uint64": (8, "U64"),
    "uint32": (4, "U32"),
    "uint16": (2, "U16"),
    "uint8": (1, "U8"),
    "bool": (1, "BOOL"),
    "qint32": (4, None),
    "qint8": (1, None),
    "quint8": (1, None),
    "quint4x2": (1, None),
    "quint2x4": (1, None),
    "bits1x8": (1, None),
    "bits2x4": (1, None),
    "bits4x2": (1, None),
    "bits8": (1, None),
    "bits16": (2, None),
    **{f"{sign}int{bits}": (1, None) for sign in ("", "u") for bits in range(1, 8)},
}
DTYPES: Final = {name: DtypeInfo(name, size, code) for name, (size, code) in _TABLE.items()}
BY_CODE: Final = {info.code: info for info in DTYPES.values() if info.code is not None}

FLOATS: Final = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
)
"""Floating-point dtypes with one number an element, which can be converted into each other."""

_TORCH_ALIASES: Final = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "cdouble": "complex128",
    "cfloat": "complex64",
    "chalf": "complex32",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}
_SHORT_FORMS: Final = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
    "c128": "complex128",
    "c64": "complex64",
    "c32": "complex32",
    **{
        f"{short}{bits}": f"{full}{bits}"
        for short, full in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
SPELLINGS: Final = {name: name for name in DTYPES} | _TORCH_ALIASES | _SHORT_FORMS


def canonical_dtype(spelling: str) -> str | None:
    """Return torch's canonical name for a dtype spelled in any known way, or None when it is not one.

    ``torch.half``, ``half``, ``fp16``, ``f16`` and ``F16`` are all ``float16``.
    """
    return SPELLINGS.get(spelling.removeprefix("torch.").lower())
