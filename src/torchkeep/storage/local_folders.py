"""The local file system as a place for stores: folders and locks beside what one file needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from torchkeep.formats.opening import refused
from torchkeep.storage.local import LocalStorage
from torchkeep.storage.locking import FileLock

if TYPE_CHECKING:
    from torchkeep.storage.folders import FolderStorage


class LocalFolders(LocalStorage):
    """The local file system; see `torchkeep.storage.folders.FolderStorage`."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder."""
        try:
            return os.listdir(folder)  # noqa: PTH208 - as everywhere in storage, paths are text
        except FileNotFoundError as cause:
            raise refused(cause, "read", folder) from cause
        except OSError as cause:
            raise refused(cause, "list", folder) from cause

    def make_folder(self, path: str) -> bool:
        """Make one folder; return False where it is there already."""
        try:
            os.mkdir(path)  # noqa: PTH102 - same
        except FileExistsError as cause:
            if os.path.isdir(path):  # noqa: PTH112 - same
                return False
            raise refused(NotADirectoryError(*cause.args, path), "make the folder", path) from cause
        except OSError as cause:
            raise refused(cause, "make the folder", path) from cause
        return True

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        try:
            os.rmdir(path)  # noqa: PTH106 - same
        except OSError as cause:
            raise refused(cause, "remove", path) from cause

    def lock(self, path: str, wait: float) -> FileLock:
        """Lock the file at ``path``."""
        return FileLock(path, wait)


LOCAL_FOLDERS: Final[FolderStorage] = LocalFolders()
