"""What to do about a value that can't be kept without pickle."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath

from torchkeep.names import with_article

_KEPT = (
    "kept are tensors, None, bool, int, float, complex, str, bytes, list, tuple, set, dict, OrderedDict, Counter, "
    "torch.Size, torch.dtype, torch.device and single numbers of NumPy"
)
_BY_BASE: tuple[tuple[type, str], ...] = (
    (type, "save its name"),
    (Enum, "save its value"),
    (PurePath, "save str() of it"),
    (dict, "save dict() of it"),
    (list, "save list() of it"),
    (str, "save str() of it"),
    (bool, "save bool() of it"),
    (int, "save int() of it"),
    (float, "save float() of it"),
    (bytearray, "save bytes() of it"),
)


def advice_for(value: object) -> str:
    """Say what ``value`` is and what to save in its place."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"it is {with_article(name)}; {_what_to_do(value)}"


def _what_to_do(value: object) -> str:
    if type(value).__module__.partition(".")[0] == "numpy":
        return "make a tensor of it (torch.from_numpy), or a plain number with .item()"
    for base, what in _BY_BASE:
        if isinstance(value, base):
            return what
    if isinstance(value, tuple):
        return "save its _asdict()" if hasattr(value, "_asdict") else "save tuple() of it"
    if is_dataclass(value):
        return "save dataclasses.asdict() of it"
    if hasattr(value, "state_dict"):
        return "save its state_dict()"
    return "code is never saved" if callable(value) else _KEPT
