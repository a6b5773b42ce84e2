"""The seam: every call that reaches a disk goes through these protocols, so that tests can make each of them fail.

Every method may raise `StorageError`. Files are read and written at positions, from any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torchkeep.formats.opening import Readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.storage.buffers import Buffer


class WritableFile(Protocol):
    """A new file that is being written."""

    def reserve(self, nbytes: int) -> None:
        """Tell how long the file will be: a disk too full for it may refuse now, and writing may be faster."""
        ...

    def write(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Write ``buffer[begin:end]`` at position ``start``, all of it."""
        ...

    def sync(self) -> None:
        """Return when everything written is durable; after a failure the file must be discarded."""
        ...

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        ...


class ReadableFile(Readable, Protocol):
    """A file that is being read."""

    def fill(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Fill ``buffer[begin:end]`` from position ``start``; DamageError where the file ends before."""
        ...

    def fill_view(self, start: int, view: memoryview, buffer: Buffer, begun: Callable[[], object]) -> None:
        """Fill ``view`` from position ``start``; DamageError where the file ends before.

        ``begun`` is called before the first byte changes, perhaps more than once. ``buffer`` may be used on the
        way; it has room for all of ``view`` and two pages.
        """
        ...

    def has_changed(self) -> bool:
        """Tell whether the file was written to since it was opened."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class Storage(Protocol):
    """A file system, or something that can stand for one."""

    def resolve(self, path: str) -> str:
        """Return the file that ``path`` leads to through symbolic links; it need not exist."""
        ...

    def replaceable_mode(self, path: str) -> int | None:
        """Return the permission bits of the regular file at ``path``, None when there is nothing.

        Raises:
            StorageError: what is there can't be replaced by a file.
        """
        ...

    def create(self, path: str, mode: int | None) -> WritableFile:
        """Create a file that must not exist yet, with these permission bits (None: the usual ones)."""
        ...

    def open(self, path: str) -> ReadableFile:
        """Open a file for reading."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file the name ``new``, in place of what had it, in one step."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory of the file ``path`` are durable."""
        ...
