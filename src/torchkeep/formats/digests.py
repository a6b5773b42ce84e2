"""Digests of headers and of the chunks that tensors are cut into.

A tensor's bytes are cut into chunks of a fixed size (the last one shorter); each has a blake3 digest of 32 bytes.
A tensor without bytes has no chunk. The header holds a digest of itself, taken with its own digits set to zeros.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Final, Protocol

from blake3 import blake3

from torchkeep.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torchkeep.formats.safetensors import Entry

CHUNK: Final = 16 * 1024 * 1024
DIGEST_BYTES: Final = 32
HEADER_KEY: Final = "torchkeep.header"
_BEFORE: Final = b'{"__metadata__":{"' + HEADER_KEY.encode() + b'":"'
_FIRST: Final = 8 + len(_BEFORE)
_DIGITS: Final = 64
ZERO_DIGITS: Final = "0" * _DIGITS


class Running(Protocol):
    """A digest or a checksum of bytes that come one after the other, such as `blake3.blake3`."""

    def update(self, data: memoryview, /) -> object:
        """Go on with more bytes."""
        ...


class Nothing:
    """A digest that nobody asks for."""

    def __init__(self, data: memoryview) -> None:
        """Take no notice."""

    def update(self, data: memoryview) -> None:
        """Take no notice."""


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the 32 bytes of blake3."""
    return blake3(data).digest()


def chunk_count(nbytes: int, chunk: int) -> int:
    """Return how many chunks a tensor of ``nbytes`` bytes is cut into."""
    return -(-nbytes // chunk)


def seal(header: bytearray) -> str:
    """Write into a composed header, whose first metadata is `HEADER_KEY`, the digest of itself; and return it."""
    header[_FIRST : _FIRST + _DIGITS] = ZERO_DIGITS.encode()
    digits = digest(header).hex()
    header[_FIRST : _FIRST + _DIGITS] = digits.encode()
    return digits


def seal_holds(header: bytes) -> bool:
    """Tell whether a header, its eight length bytes included, is bit for bit the one that was sealed."""
    if header[8:_FIRST] != _BEFORE:
        return False
    hasher = blake3(memoryview(header)[:_FIRST])
    hasher.update(ZERO_DIGITS.encode())
    hasher.update(memoryview(header)[_FIRST + _DIGITS :])
    return header[_FIRST : _FIRST + _DIGITS] == hasher.hexdigest().encode()


def encode_digests(digests: Iterable[bytes]) -> str:
    """Return the digests, in file order, as one text."""
    return b64encode(b"".join(digests)).decode()


def encoded_length(count: int) -> int:
    """Return how many characters `encode_digests` makes of ``count`` digests."""
    return -(-count * DIGEST_BYTES // 3) * 4


class ChunkDigests:
    """The digests of all chunks of a file.

    Args:
        text: what `encode_digests` gave.
        chunk: bytes of a chunk.
        entries: the file's tensors.

    Raises:
        FormatError: the digests are not as many as the tensors' chunks.
    """

    def __init__(self, text: str, chunk: int, entries: Mapping[str, Entry]) -> None:
        self.chunk = chunk
        try:
            self._packed = b64decode(text, validate=True)
        except (Base64Error, ValueError) as cause:
            raise FormatError(f"the digests are no base64 text: {cause}") from cause
        self._first: dict[str, int] = {}
        count = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            self._first[name] = count
            start, stop = entry.data_offsets
            count += chunk_count(stop - start, chunk)
        if count * DIGEST_BYTES != len(self._packed):
            raise FormatError(f"{count} digests were expected, {len(self._packed) / DIGEST_BYTES:g} found")

    def of(self, name: str, index: int) -> bytes:
        """Return the digest of chunk ``index`` of tensor ``name``."""
        at = (self._first[name] + index) * DIGEST_BYTES
        return self._packed[at : at + DIGEST_BYTES]
