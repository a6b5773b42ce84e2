"""Give files their names and take them away, in an order that no power cut can break.

A file is written in staging and synced; then it gets its name, and the folder is synced. Packs come before the
manifest that names them, and go after it. Nothing is published, acknowledged or removed by a process that has lost
the lock: it looks before and after. In between, it can't publish either: who takes over clears staging first.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from torchkeep.archive.preparing import write_new, write_synced
from torchkeep.errors import StorageError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.storage.base import WritableFile
    from torchkeep.storage.folders import FolderStorage, Lock

_Result = TypeVar("_Result")


class Ready(NamedTuple):
    """A file that is written and synced in staging.

    Attributes:
        staged: where it is.
        final: the name that it is to have.
    """

    staged: str
    final: str


class Publisher:
    """A writer's folder in staging, and the way from there into the store.

    Args:
        storage: the file system.
        root: the store's folder.
        staging: the folder of this session.
        lock: the store's lock.

    Attributes:
        unsettled: whether what can be seen may not be what a power cut leaves.
    """

    def __init__(self, storage: FolderStorage, root: str, staging: str, lock: Lock) -> None:
        self.storage, self.root = storage, root
        self._staging, self._lock = staging, lock
        self.unsettled = True
        self._named: Ready | None = None

    def settle(self) -> None:
        """Make durable what was left visible but not durable when a process died, or a save failed."""
        for folder in ("", "packs/", "checkpoints/"):
            self.storage.sync_directory(f"{self.root}/{folder}")
        self.unsettled = False

    def write(self, final: str, fill: Callable[[WritableFile], _Result]) -> tuple[Ready, _Result]:
        """Write a file in staging; ``fill`` writes and syncs it. Where that fails, it is discarded."""
        staged = f"{self._staging}/{final.rpartition('/')[2]}"
        return Ready(staged, final), write_new(self.storage, staged, fill)

    def commit(self, packs: Sequence[Ready], final: str, manifest: bytes) -> None:
        """Let packs be found, and only when that is durable the manifest that names them."""
        # Written before anything is published: what may fill the disk is over then.
        ready, _ = self.write(final, lambda file: write_synced(file, manifest))
        self._lock.confirm()
        if packs:
            self.publish(packs, "packs")
        self._lock.confirm()
        try:
            self.publish([ready], "checkpoints")
            self._lock.confirm()
        except BaseException:
            with suppress(StorageError, StoreError):
                self._withdraw(ready)
            raise

    def _withdraw(self, manifest: Ready) -> None:
        """Remove the manifest of a commit that failed."""
        if self._named != manifest:
            self._lock.confirm()  # what has that name may be of who has taken over
        # Until its removal is durable it may be there or not after a power cut, and is whole in both cases.
        self.unsettled = True
        self.storage.remove(manifest.final)
        self.settle()

    def publish(self, files: Sequence[Ready], folder: str) -> None:
        """Give synced files their names, and make these durable."""
        for file in files:
            self.storage.rename(file.staged, file.final)
            self._named = file
        self.storage.sync_directory(f"{self.root}/{folder}/")

    def remove(self, manifests: Sequence[str], packs: Sequence[str]) -> None:
        """Remove manifests, and only when that is durable packs; their paths are given."""
        self._lock.confirm()
        for path in manifests:
            self.storage.remove(path)
        self.storage.sync_directory(f"{self.root}/checkpoints/")
        self._lock.confirm()
        for path in packs:
            self.storage.remove(path)

    def discard(self) -> None:
        """Give the disk back what a failed commit has in staging; the next writer clears the rest."""
        with suppress(StorageError):
            for name in self.storage.names(self._staging):
                self.storage.remove(f"{self._staging}/{name}")

    def close(self) -> None:
        """Remove the folder in staging; the next writer clears what is left."""
        with suppress(StorageError):
            self.storage.remove_folder(self._staging)
