"""The CRC-32 of bytes out of those of its parts, so that parts can be read in any order.

A CRC is the remainder of a division of polynomials over {0, 1}: bytes that follow multiply it by a power of x. The
method is that of zlib's crc32_combine, which Python does not give. A polynomial's highest bit stands for x**0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zlib import crc32

_DIVISOR: Final = 0xEDB88320
_ONE: Final = 1 << 31


class RunningCrc:
    """The CRC-32 of bytes that come one after the other; see `torchkeep.formats.digests.Running`.

    Attributes:
        value: of those so far.
    """

    __slots__ = ("value",)

    def __init__(self, data: memoryview) -> None:
        self.value = crc32(data)

    def update(self, data: memoryview) -> None:
        """Go on with more bytes."""
        self.value = crc32(data, self.value)


def joined_crc(crc: int, following: int, nbytes: int) -> int:
    """Return the CRC-32 of some bytes and of ``nbytes`` more that follow them.

    Args:
        crc: of the bytes before; 0 for none.
        following: of the bytes that follow.
        nbytes: how many follow.
    """
    return _times(_power(nbytes), crc) ^ following


@lru_cache(maxsize=64)
def _power(nbytes: int) -> int:
    """Return x**(8 * nbytes), by squaring."""
    power, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        nbytes >>= 1
    return power


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials, divided."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_DIVISOR if b & 1 else 0)
    return product
