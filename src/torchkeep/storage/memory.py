"""A file system in memory that journals what it is asked to do, and fails or dies on demand.

For tests: from the journal, `torchkeep`'s crash explorer builds every state that a power cut can leave. Memory is
what the running system shows; the journal knows what of it was ever made durable.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from torchkeep.errors import StorageError
from torchkeep.formats.opening import refused, truncated
from torchkeep.storage.journal import FOLDER, Entries, FileSynced, FolderSynced, Node, Step, Written, apply
from torchkeep.storage.locking import locked, not_held

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torchkeep.storage.buffers import Buffer
    from torchkeep.storage.folders import FolderStorage

Image: TypeAlias = "Mapping[str, bytes | None]"
"""What a disk holds: content by path; None for a folder."""

Hook: TypeAlias = "Callable[[str, str], None]"
"""Is told the name of each call and its path before it is done, and may raise."""


class MemoryStorage:
    """A file system in memory; see `torchkeep.storage.folders.FolderStorage`. Paths are absolute and plain.

    Args:
        image: what the disk holds at first, all of it durable.
        before: called with the name and the path of each call before it is done; what it raises is what the
            call raises, and the call is not done.

    Attributes:
        journal: what was changed and synced, in order.
        before: as given; may be replaced at any time.
    """

    def __init__(self, image: Image | None = None, before: Hook | None = None) -> None:
        self.journal: list[Step] = []
        self.before = before
        self._folders: dict[str, dict[str, Node]] = {"": {}}
        self._locks: dict[str, MemoryLock] = {}
        for path, content in sorted((image or {}).items()):
            folder, _, name = path.rpartition("/")
            self._folders[folder][name] = FOLDER if content is None else Node(content)
            if content is None:
                self._folders[path] = {}

    def revive(self) -> None:
        """Do what the system does when a process has died: give its locks back."""
        for lock in list(self._locks.values()):
            lock.release()

    def image(self) -> dict[str, bytes | None]:
        """Return what the running system shows."""
        return {
            f"{folder}/{name}": None if node is FOLDER else bytes(node.data)
            for folder, entries in self._folders.items()
            for name, node in entries.items()
        }

    def called(self, call: str, path: str) -> None:
        """Tell the hook of a call."""
        if self.before is not None:
            self.before(call, path)

    def resolve(self, path: str) -> str:
        """Return the path; there are no symbolic links here."""
        self.called("resolve", path)
        return path.rstrip("/")

    def replaceable_mode(self, path: str) -> int | None:
        """Return 0o644 for a file, None when there is nothing."""
        self.called("replaceable_mode", path)
        folder, name = self._place(path, "write")
        node = self._folders[folder].get(name)
        if node is FOLDER:
            _refuse(errno.EISDIR, "write", path)
        return None if node is None else 0o644

    def create(self, path: str, mode: int | None) -> MemoryWriter:  # noqa: ARG002 - nothing has permissions here
        """Create a file that must not exist yet."""
        self.called("create", path)
        folder, name = self._place(path, "write")
        if name in self._folders[folder]:
            _refuse(errno.EEXIST, "write", path)
        node = Node()
        self._change((folder, name, node))
        return MemoryWriter(self, path, node)

    def open(self, path: str) -> MemoryReader:
        """Open a file for reading."""
        self.called("open", path)
        return MemoryReader(self, path, self._file(path, "open"))

    def rename(self, old: str, new: str) -> None:
        """Give a file the name ``new``, in place of what had it."""
        self.called("rename", new)
        node = self._file(old, "write")
        self._place(new, "write")
        if new in self._folders:
            _refuse(errno.EISDIR, "write", new)
        if old != new:
            self._change((*self._place(new, "write"), node), (*self._place(old, "write"), None))

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.called("remove", path)
        self._file(path, "remove")
        self._change((*self._place(path, "remove"), None))

    def sync_directory(self, path: str) -> None:
        """Make the names in the directory of ``path`` durable."""
        self.called("sync_directory", path)
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            _refuse(self._absent(folder), "sync the directory of", path)
        self.journal.append(FolderSynced(folder))

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder."""
        self.called("names", folder)
        if folder not in self._folders:
            code = self._absent(folder)
            _refuse(code, "read" if code == errno.ENOENT else "list", folder)
        return list(self._folders[folder])

    def make_folder(self, path: str) -> bool:
        """Make one folder; return False where it is there already."""
        self.called("make_folder", path)
        folder, name = self._place(path, "make the folder")
        if path in self._folders:
            return False
        if name in self._folders[folder]:
            _refuse(errno.ENOTDIR, "make the folder", path)
        self._folders[path] = {}
        self._change((folder, name, FOLDER))
        return True

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        self.called("remove_folder", path)
        folder, name = self._place(path, "remove")
        if self._folders.get(path, {"": FOLDER}):
            _refuse(errno.ENOTEMPTY if path in self._folders else self._absent(path), "remove", path)
        del self._folders[path]
        self._change((folder, name, None))

    def lock(self, path: str, wait: float) -> MemoryLock:
        """Lock the file at ``path``; nobody waits here, since only the caller could give it back."""
        self.called("lock", path)
        folder, name = self._place(path, "lock")
        if path in self._locks:
            raise locked(path, "a process of this test", wait)
        if name not in self._folders[folder]:
            self._change((folder, name, Node()))
        self._locks[path] = MemoryLock(self._locks, path)
        return self._locks[path]

    def _place(self, path: str, doing: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            _refuse(self._absent(folder), doing, path)
        return folder, name

    def _absent(self, folder: str) -> int:
        """Return the code for a path that is no folder: nothing is there, or on the way there, or a file is."""
        while folder not in self._folders:
            parent, _, name = folder.rpartition("/")
            if name in self._folders.get(parent, {}):
                return errno.ENOTDIR
            folder = parent
        return errno.ENOENT

    def _file(self, path: str, doing: str) -> Node:
        folder, name = self._place(path, doing)
        node = self._folders[folder].get(name)
        if node is None or node is FOLDER:
            _refuse(errno.ENOENT if node is None else errno.EISDIR, doing, path)
        return node

    def _change(self, *changes: tuple[str, str, Node | None]) -> None:
        for folder, name, node in changes:
            if node is None:
                del self._folders[folder][name]
            else:
                self._folders[folder][name] = node
        self.journal.append(Entries(changes))


def _refuse(code: int, doing: str, path: str) -> NoReturn:
    cause = OSError(code, os.strerror(code), path)
    raise refused(cause, doing, path) from cause


class MemoryLock:
    """A lock of it; see `torchkeep.storage.folders.Lock`."""

    def __init__(self, held: dict[str, MemoryLock], path: str) -> None:
        self._all, self._path = held, path

    @property
    def held(self) -> bool:
        """Whether it was not given back yet."""
        return self._all.get(self._path) is self

    def confirm(self) -> None:
        """Raise StoreError where it was given back."""
        if not self.held:
            raise not_held(self._path)

    def release(self) -> None:
        """Give it back."""
        if self.held:
            del self._all[self._path]


class MemoryWriter:
    """A new file; see `torchkeep.storage.base.WritableFile`."""

    def __init__(self, storage: MemoryStorage, path: str, node: Node) -> None:
        self._storage, self._path, self._node = storage, path, node

    def reserve(self, nbytes: int) -> None:  # noqa: ARG002 - there is always room here
        """Do nothing, but may fail as everything here."""
        self._storage.called("reserve", self._path)

    def write(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Write ``buffer[begin:end]`` at position ``start``."""
        self._storage.called("write", self._path)
        data = bytes(buffer.view[begin:end])
        apply(self._node.data, start, data)
        self._storage.journal.append(Written(self._node, start, data))

    def sync(self) -> None:
        """Make everything written durable; after one failure, as on Linux, syncing again only seems to help."""
        try:
            self._storage.called("sync", self._path)
        except StorageError:
            self._node.lost = True
            raise
        if not self._node.lost:
            self._storage.journal.append(FileSynced(self._node))

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class MemoryReader:
    """A file; see `torchkeep.storage.base.ReadableFile`."""

    def __init__(self, storage: MemoryStorage, path: str, node: Node) -> None:
        self._storage, self._node = storage, node
        self.path, self.size = path, len(node.data)

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``."""
        self._storage.called("read", self.path)
        return self._bytes(start, length)

    def fill(self, start: int, buffer: Buffer, begin: int, end: int) -> None:
        """Fill ``buffer[begin:end]`` from position ``start``."""
        self._storage.called("fill", self.path)
        buffer.view[begin:end] = self._bytes(start, end - begin)

    def fill_view(self, start: int, view: memoryview, _: Buffer, begun: Callable[[], object]) -> None:
        """Fill ``view`` from position ``start``."""
        self._storage.called("fill_view", self.path)
        found = self._bytes(start, len(view))
        begun()
        view[:] = found

    def _bytes(self, start: int, length: int) -> bytes:
        if start + length > len(self._node.data):
            raise truncated(self.path, start, start + length, len(self._node.data))
        return bytes(self._node.data[start : start + length])

    def has_changed(self) -> bool:
        """Tell whether the file was written to: here files are written once."""
        return len(self._node.data) != self.size

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


if TYPE_CHECKING:
    _FULFILS_THE_SEAM: FolderStorage = MemoryStorage()
