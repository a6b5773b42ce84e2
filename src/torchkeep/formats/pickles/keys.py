"""Which values may be keys, and which containers may be changed while a pickle is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from torchkeep.formats.pickles.objects import Device, Dtype, Ordered, Size, kind_of

if TYPE_CHECKING:
    from torchkeep.formats.pickles.machine import Machine

_DEPTH: Final = 8
_PLAIN: Final = frozenset({bool, int, float, bytes, str, type(None), Dtype, Device})
_MAPPINGS: Final = frozenset({dict, Ordered, Counter})


def target(m: Machine, kind: type[Any]) -> Any:
    """Return the value on top of the stack, to be changed, if it is exactly of that kind.

    Raises:
        UnsafeFileError: it is not; Python's own machine would look up a method of it.
    """
    found = m.stack[-1]
    if type(found) is not kind:
        raise m.unsafe("", f"asks to change {kind_of(found)} as if it were a {kind.__name__}")
    return found


def mapping(m: Machine) -> dict[Any, Any]:
    """Return the mapping on top of the stack, to be changed.

    Raises:
        UnsafeFileError: it is none; Python's own machine would look up a method of it.
    """
    found = m.stack[-1]
    if type(found) not in _MAPPINGS:
        raise m.unsafe("", f"asks to set an item of {kind_of(found)} as if it were a mapping")
    return found  # type: ignore[no-any-return]  # exactly one of the kinds above


def checked_keys(m: Machine, keys: list[Any]) -> list[Any]:
    """Return ``keys`` if all may be keys: hashing and comparing them can neither fail nor take long.

    Raises:
        FormatError: one may not.
    """
    if set(map(type, keys)) <= {str}:
        return keys
    before = None
    for key in keys:
        if type(key) is str:
            before = None
        elif type(key) is int:
            if key != before:
                m.count_odd_key(key)
            before = key + 1
        else:
            before = None
            _check(m, key, _DEPTH)
    return keys


def _check(m: Machine, key: Any, depth: int) -> None:
    if type(key) in {tuple, Size} and depth:
        for part in key:
            _check(m, part, depth - 1)
    elif type(key) not in _PLAIN:
        raise m.malformed(f"uses {kind_of(key)} as a key, which is not read")
    m.count_odd_key(key)
