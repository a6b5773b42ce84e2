"""The local file system as a place for stores: folders and locks beside what one file needs."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from torchkeep.errors import StorageError
from torchkeep.formats.opening import refused
from torchkeep.storage.leasing import take_lock
from torchkeep.storage.local import LocalStorage

if TYPE_CHECKING:
    from torchkeep.storage.folders import FolderStorage, Lock


_FOLDER: Final = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class LocalFolders(LocalStorage):
    """The local file system; see `torchkeep.storage.folders.FolderStorage`."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder."""
        try:
            descriptor = os.open(folder, _FOLDER)
            try:
                return os.listdir(descriptor)  # noqa: PTH208 - as everywhere in storage, no Path
            finally:
                os.close(descriptor)
        except FileNotFoundError as cause:
            raise refused(cause, "read", folder) from cause
        except OSError as cause:
            raise _no_folder(cause, "list", folder) from cause

    def make_folder(self, path: str) -> bool:
        """Make one folder; return False where it is there already."""
        try:
            os.mkdir(path)  # noqa: PTH102 - same
        except FileExistsError as cause:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return False
            raise _no_folder(NotADirectoryError(*cause.args, path), "make the folder", path) from cause
        except OSError as cause:
            raise refused(cause, "make the folder", path) from cause
        return True

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        try:
            os.rmdir(path)  # noqa: PTH106 - same
        except OSError as cause:
            raise refused(cause, "remove", path) from cause

    def lock(self, path: str, wait: float) -> Lock:
        """Lock the file at ``path``."""
        return take_lock(path, wait)


def _no_folder(cause: OSError, doing: str, path: str) -> StorageError:
    """Return the error for what is no folder, or leads to one by a symbolic link.

    Through a link, a store that came from elsewhere could have files removed that are no part of it.
    """
    if cause.errno in {errno.ENOTDIR, errno.ELOOP, errno.EEXIST} and os.path.islink(path):  # noqa: PTH114 - same
        return StorageError.wrap(
            cause,
            f"can't {doing} {path!r}: it is a symbolic link, and must be a folder; put the folder itself there",
        )
    return refused(cause, doing, path)


LOCAL_FOLDERS: Final[FolderStorage] = LocalFolders()
