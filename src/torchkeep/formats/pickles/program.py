"""What both formats of torch.save have in common: limits, and what comes out of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from torchkeep.formats.pickles.objects import Extent

if TYPE_CHECKING:
    from torchkeep.formats.pickles.machine import Machine

MAX_PROGRAM: Final = 1 << 30
"""Bytes of the largest pickle."""
_FREE: Final = 1 << 22
_MOST: Final = 1 << 26
_LONGEST: Final = 100
_LARGEST: Final = 2**63 - 1


class Parsed(Struct, frozen=True):
    """What a file holds.

    Attributes:
        root: the value that was saved, described by `torchkeep.formats.pickles.objects`.
        extents: where the bytes of each storage are, by key.
        byte_order: of the numbers in the storages.
        left_out: names of attributes of tensors that are not read, sorted.
        read: first bytes, and one past the last, of what this was read from.
        container: ``"zip"``, or ``"legacy"`` for the format from before PyTorch 1.6.
    """

    root: Any
    extents: dict[str, Extent]
    byte_order: Literal["little", "big"]
    left_out: tuple[str, ...]
    read: tuple[tuple[int, int], ...]
    container: Literal["zip", "legacy"]


def budget(nbytes: int) -> int:
    """Return how many instructions a pickle of that many bytes may have.

    An instruction of one byte can make a container of 72 bytes, so that memory stays within 300 MB and 36 times
    the pickle's size. A tensor takes about 40 instructions of 150 bytes together.
    """
    return min(_FREE + nbytes // 2, _MOST)


def storage_key(m: Machine, key: str, location: str) -> str:
    """Return the key of a storage, once it is sure that it and the device's name are no long texts."""
    if max(len(key), len(location)) > _LONGEST:
        raise m.malformed(f"names a storage or a device by more than {_LONGEST} characters")
    return key


def storage_numel(m: Machine, numel: object) -> int:
    """Return the number of elements of a storage, once it is sure that it is one."""
    if type(numel) is not int or not 0 <= numel <= _LARGEST:
        raise m.malformed("has a storage with a number of elements that none can have")
    return numel
