"""The seam of a store: a file system with folders and a lock, beyond what one file needs."""

from __future__ import annotations

from typing import Protocol

from torchkeep.storage.base import Storage


class Lock(Protocol):
    """An exclusive lock that is held until it is released, or until its process ends.

    A lease may be lost before, to who took its process for dead: `confirm` tells.
    """

    @property
    def held(self) -> bool:
        """Whether this process holds it; a forked child does not."""
        ...

    def confirm(self) -> None:
        """Look whether this process still holds it.

        Raises:
            StoreError: it does not, or not any more.
            StorageError: that can't be told.
        """
        ...

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        ...


class FolderStorage(Storage, Protocol):
    """A file system in which a store can be kept. A path that ends in ``/`` makes `sync_directory` sync itself."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in no order.

        Raises:
            MissingFileError: there is no such folder.
            StorageError: the operating system refused.
        """
        ...

    def make_folder(self, path: str) -> bool:
        """Make one folder; return False where it is there already. Its parent must exist."""
        ...

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        ...

    def lock(self, path: str, wait: float) -> Lock:
        """Lock the file at ``path``, which is made if need be and never removed.

        Args:
            path: the file.
            wait: how long to wait for another holder, in seconds.

        Raises:
            StoreLockedError: another still holds it; the sentence says who.
            StorageError: the operating system refused, or the file system knows no locks.
        """
        ...
