"""Make the folder of a store so that a power cut can't leave half of it, and clear what dead writers left."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from torchkeep.archive.marker import FOLDERS, LOCK, encode_marker, read_marker
from torchkeep.archive.packs import write_all
from torchkeep.errors import MissingFileError, StorageError, StoreError
from torchkeep.formats.locations import MARKER

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.storage.base import WritableFile
    from torchkeep.storage.folders import FolderStorage

_Result = TypeVar("_Result")
_SHOWN = 3


def make_root(storage: FolderStorage, root: str) -> None:
    """Make the folder ``root`` with its parents, each durable before the next, unless it is a store already.

    Raises:
        StoreError: it is there, is no store, and holds something else.
        StorageError: the operating system refused.
    """
    if not is_made(storage, root):
        _make(storage, root)  # also one that is there: who made it may have died before it was durable


def _make(storage: FolderStorage, path: str) -> None:
    """Make a folder and its parents. The deepest that is there may not be durable yet: it is synced as well."""
    try:
        made = storage.make_folder(path)
    except MissingFileError:
        _make(storage, path.rpartition("/")[0])
        made = storage.make_folder(path)
    try:
        storage.sync_directory(path)
    except StorageError as refusal:
        # A folder that others made, in one that this user may not read, is not ours to make durable.
        if made or refusal.errno not in {errno.EACCES, errno.EPERM}:
            raise


def is_made(storage: FolderStorage, root: str) -> bool:
    """Tell whether the folder ``root`` is a store; False where one can be made.

    Raises:
        StoreError: it is there, is no store, and holds something else.
        StorageError: the operating system refused.
    """
    try:
        names = storage.names(root)
    except MissingFileError:
        return False
    _refuse_others(storage, root, names)
    return MARKER in names


def _refuse_others(storage: FolderStorage, root: str, names: list[str]) -> None:
    """Refuse a folder that is no store and holds something that a half-made store would not."""
    if MARKER in names:
        return
    strange = sorted(name for name in names if name not in FOLDERS and name.partition(".")[0] != LOCK)
    if strange:
        raise StoreError(
            f"{root!r} is no store of checkpoints (it has no {MARKER}), and it holds other things "
            f"({', '.join(map(repr, strange[:_SHOWN]))}{', ...' if len(strange) > _SHOWN else ''}); "
            "give an empty folder"
        )
    for folder in ("packs", "checkpoints"):
        if folder in names and storage.names(f"{root}/{folder}"):
            raise StoreError(
                f"{root!r} holds {folder} but no {MARKER}, so it is no whole store: {MARKER} was removed, or is "
                "not copied yet; put it back"
            )


def prepare(storage: FolderStorage, root: str, ids: Callable[[], str]) -> str:
    """Make what is missing in a store's folder, clear what dead sessions left, and return a new session's folder.

    The lock is held. A store that can't be read is left as it is.

    Raises:
        StoreError: what is there is no whole store.
        NewerFormatError: a later version made it.
        DamageError: ``torchkeep.json`` is not what was written.
        StorageError: the operating system refused.
    """
    names = storage.names(root)
    _refuse_others(storage, root, names)
    if MARKER in names:
        read_marker(storage, root)
        gone = sorted({"packs", "checkpoints"} - set(names))
        if gone:
            raise StoreError(f"{root!r} is a store without its folder {gone[0]!r}; put it back")
    for folder in FOLDERS:
        storage.make_folder(f"{root}/{folder}")
    storage.sync_directory(f"{root}/")
    for session in storage.names(f"{root}/staging"):
        _clear(storage, f"{root}/staging/{session}")
    staging = f"{root}/staging/{ids()}"
    storage.make_folder(staging)
    if MARKER not in names:
        write_new(storage, f"{staging}/{MARKER}", lambda file: write_synced(file, encode_marker(ids())))
        storage.rename(f"{staging}/{MARKER}", f"{root}/{MARKER}")
    return staging


def _clear(storage: FolderStorage, path: str) -> None:
    """Remove a session's folder, or what stands in its place; a symbolic link is removed and not followed."""
    try:
        names = storage.names(path)
    except StorageError as cause:
        if cause.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        storage.remove(path)
        return
    for name in names:
        storage.remove(f"{path}/{name}")
    storage.remove_folder(path)


def write_new(storage: FolderStorage, path: str, fill: Callable[[WritableFile], _Result]) -> _Result:
    """Create a file and fill it; whatever fails, it is discarded."""
    file = storage.create(path, None)
    try:
        try:
            return fill(file)
        finally:
            file.close()
    except BaseException:
        # What went wrong first is what must be told; the next writer clears what stays.
        with suppress(StorageError):
            storage.remove(path)
        raise


def write_synced(file: WritableFile, content: bytes) -> None:
    """Write bytes, and return when they are durable."""
    write_all(file, content)
    file.sync()
