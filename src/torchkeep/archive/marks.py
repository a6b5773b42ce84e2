"""Marks of pieces: they tell what changed since the last checkpoint, at the speed of memory.

A mark is for this process only. Its hash, XXH3 of 128 bits, is several times as fast as a digest, and as sure
where nobody makes bytes up to deceive it; what is written or read is always digested as well.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from blake3 import blake3
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_intdigest

BEGINNING: Final = 4096
"""What training changes, it changes here already."""


class Mark(NamedTuple):
    """A piece's bytes, told by hashes.

    Attributes:
        beginning: of the first `BEGINNING` bytes.
        whole: of all bytes.
    """

    beginning: int
    whole: int

    def begins(self, piece: memoryview) -> bool:
        """Tell whether ``piece``, of which the first `BEGINNING` bytes are enough, begins as the one marked."""
        return xxh3_64_intdigest(piece[:BEGINNING]) == self.beginning

    def is_of(self, piece: memoryview) -> bool:
        """Tell whether this is the mark of ``piece``, which begins like it."""
        return xxh3_128_intdigest(piece) == self.whole


Marks: TypeAlias = dict[str, dict[int, Mark]]
"""The marks of pieces that this process wrote or verified, by pack and first byte."""


class Marking:
    """Takes the mark of a piece whose bytes come one after the other.

    Args:
        data: the first of them: all, or `BEGINNING` at least.
    """

    __slots__ = ("_beginning", "_whole")

    def __init__(self, data: memoryview) -> None:
        self._beginning = xxh3_64_intdigest(data[:BEGINNING])
        self._whole = xxh3_128(data)

    def update(self, data: memoryview) -> None:
        """Go on with more bytes."""
        self._whole.update(data)

    @property
    def mark(self) -> Mark:
        """The mark of the bytes so far."""
        return Mark(self._beginning, self._whole.intdigest())


class DigestAndMark:
    """Takes the digest of a piece and its mark; see `torchkeep.formats.digests.Running`.

    Attributes:
        hexdigest: gives the digest.
        marking: has the mark.
    """

    __slots__ = ("_digest", "hexdigest", "marking")

    def __init__(self, data: memoryview) -> None:
        self._digest, self.marking = blake3(data), Marking(data)
        self.hexdigest = self._digest.hexdigest

    def update(self, data: memoryview) -> None:
        """Go on with more bytes."""
        self._digest.update(data)
        self.marking.update(data)
