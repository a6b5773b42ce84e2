"""Find the checkpoint that ``STORE@1200``, ``STORE@latest``, ``STORE@best`` or a store's folder means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from torchkeep.archive.reading import Archive
from torchkeep.errors import MissingCheckpointError, MissingFileError, StoreError
from torchkeep.formats.locations import Location, store_location
from torchkeep.storage.local_folders import LOCAL_FOLDERS

if TYPE_CHECKING:
    from torchkeep.archive.manifest import Manifest


class Located(NamedTuple):
    """A checkpoint that was found."""

    archive: Archive
    manifest: Manifest


def locate(path: str | os.PathLike[str]) -> Located | None:
    """Find the checkpoint that a path means; None where it leads to no store.

    Raises:
        MissingFileError: there is no such store.
        MissingCheckpointError: the store has no such checkpoint, or none yet; the nearest steps are named.
        StoreError: the folder is no store, or the store does not say which checkpoint is the best.
        DamageError: the checkpoint's manifest, or what tells a store, is not what was written.
        NewerFormatError: a later version wrote it.
        StorageError: it can't be read.
    """
    location = store_location(path)
    return None if location is None else checkpoint_at(location)


def checkpoint_at(location: Location) -> Located:
    """Read the manifest of the checkpoint that is meant; raises what `locate` does."""
    archive = open_store(location)
    return Located(archive, _meant(archive, location))


def _meant(archive: Archive, location: Location) -> Manifest:
    if isinstance(location.which, int):
        return archive.at(location.which)
    found = archive.latest() if location.which == "latest" else archive.best()
    if found is not None:
        return found
    if location.which == "best" and archive.names():
        raise MissingCheckpointError(
            f"no checkpoint in {location.store!r} has a value of the metric that tells the best; name a step, or "
            "@latest"
        )
    raise MissingCheckpointError(f"{location.store!r} has no checkpoint yet; save one into it first")


def open_store(location: Location) -> Archive:
    """Open the store that is meant; raises what `locate` does."""
    store = location.store
    if os.path.isdir(store):  # noqa: PTH112 - as everywhere here, the path is text
        return Archive.open(LOCAL_FOLDERS, store)
    asked = "" if location.text == store else f" (for {location.text!r})"
    if os.path.lexists(store):
        raise StoreError(
            f"{store!r}{asked} is no store of checkpoints but a file; only the folder of a store is followed by "
            "@, so check the path"
        )
    raise MissingFileError(f"there is no store {store!r}{asked}: no such folder; check the path")


def whole_store(store: str | os.PathLike[str]) -> Archive:
    """Open the store at a path that is its folder and nothing else; raises what `locate` does of stores."""
    location = store_location(store)
    if location is not None and not location.whole:
        raise StoreError(f"expected the folder of a store, found one of its checkpoints; give {location.store!r}")
    return open_store(location or Location(os.fsdecode(store), os.fsdecode(store), "latest", whole=True))
