"""What tells the folder of a store from others: its ``torchkeep.json``, which is written last."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from torchkeep.archive.lines import all_of, damaged, holds, sealed
from torchkeep.archive.manifest import check_version
from torchkeep.errors import FormatError, MissingFileError, StoreError
from torchkeep.formats.locations import MARKER

if TYPE_CHECKING:
    from torchkeep.storage.folders import FolderStorage

FORMAT: Final = "torchkeep-store"
VERSION: Final = 1
LOCK: Final = "lock"
FOLDERS: Final = ("packs", "checkpoints", "staging")


class Marker(Struct):
    """What ``torchkeep.json`` says: that a folder is a store."""

    format: str
    version: int
    id: str


_decoder: Final = msgspec.json.Decoder(Marker)


def read_marker(storage: FolderStorage, root: str) -> str:
    """Return the id of the store in the folder ``root``.

    Raises:
        StoreError: it is no store.
        DamageError: what says so is not what was written.
        NewerFormatError: a later version made it.
        StorageError: it can't be read.
    """
    path = f"{root}/{MARKER}"
    try:
        file = storage.open(path)
    except MissingFileError as cause:
        raise StoreError(
            f"{root!r} is no store of checkpoints: it has no {MARKER}; check the path, or save into it first"
        ) from cause
    with closing(file):
        line = all_of(file)
    if not holds(line):
        raise damaged(
            path, 0, len(line), f"its digest differs (that of any other store, of version {VERSION}, will do)"
        )
    try:
        marker = _decoder.decode(line)
    except msgspec.DecodeError as cause:
        raise FormatError(f"{path!r} is not what it should be: {cause}") from cause
    check_version(path, marker.format, marker.version, FORMAT, VERSION)
    return marker.id


def encode_marker(store: str) -> bytes:
    """Return the bytes of the file for a store's id."""
    return sealed(msgspec.json.encode(Marker(FORMAT, VERSION, store)))
