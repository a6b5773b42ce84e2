"""The checkpoints of a store, to look at: listed, found by step or as the best, verified."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, TypeAlias

from torchkeep.archive import Archive, VerifyReport, verify
from torchkeep.archive.preparing import is_made
from torchkeep.errors import MissingCheckpointError, TorchkeepWarning
from torchkeep.tensors.checkpoints import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.archive import Manifest, Retention
    from torchkeep.errors import DamageError
    from torchkeep.storage.folders import FolderStorage

Which: TypeAlias = 'int | Literal["latest", "best"]'
"""A checkpoint of a store: its step, or one of these words."""


class Checkpoints:
    """The checkpoints in a folder. It takes no lock.

    Args:
        storage: the file system.
        root: the folder; there may be none yet.
        retention: says which checkpoint is the best.

    Attributes:
        root, retention: as given.
    """

    def __init__(self, storage: FolderStorage, root: str, retention: Retention) -> None:
        self.root, self.retention = root, retention
        self._storage = storage
        self._reader: Archive | None = None

    def _archive(self) -> Archive | None:
        """Return the store for reading; None where none was made yet."""
        if self._reader is None and is_made(self._storage, self.root):
            self._reader = Archive.open(self._storage, self.root)
        return self._reader

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints in the order they were committed; of each only its first line is read.

        One that can't be read is left out, with a TorchkeepWarning.

        Raises:
            StorageError: the operating system refused.
        """
        archive = self._archive()
        found = []
        for one in archive.listing() if archive else ():
            if one.summary is not None:
                assert archive is not None
                found.append(Checkpoint(archive, one.name, one.summary))
            else:
                warnings.warn(f"left out a checkpoint: {one.error}", TorchkeepWarning, stacklevel=2)
        return found

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint that was committed last; None where there is none.

        Raises:
            DamageError: it is not what was written.
            StorageError: the operating system refused.
        """
        archive = self._archive()
        manifest = archive.latest() if archive else None
        return Checkpoint.of(archive, manifest) if archive and manifest else None

    def best(self) -> Checkpoint | None:
        """Return the best checkpoint by the metric of `retention`, or else of the run that wrote the store.

        None where no checkpoint has that metric.

        Raises:
            StoreError: neither says what is best.
            DamageError, StorageError: as for `latest`.
        """
        archive = self._archive()
        manifest = archive.best(*self.retention.best or ()) if archive else None
        return Checkpoint.of(archive, manifest) if archive and manifest else None

    def __getitem__(self, step: int) -> Checkpoint:
        """Return the latest checkpoint of a step.

        Raises:
            MissingCheckpointError: there is none; the nearest steps are named.
            DamageError, StorageError: as for `latest`.
        """
        archive = self._archive()
        if archive is None:
            raise self._missing(step)
        return Checkpoint.of(archive, archive.at(step))

    def _missing(self, which: object) -> MissingCheckpointError:
        return MissingCheckpointError(f"{self.root!r} has no checkpoint yet, so none of {which!r}; save one first")

    def verify(self, step: int | None = None) -> VerifyReport:
        """Read the latest checkpoint of a step, or all of the store, and compare every byte with its digest.

        Raises:
            MissingCheckpointError: there is none of that step.
            StorageError: the operating system refused.
        """
        archive = self._archive()
        if archive is None:
            if step is not None:
                raise self._missing(step)
            return VerifyReport(self.root, (), 0, ())
        names = archive.names()
        if step is not None:
            names = [name for name in names if name.step == step][-1:]
            if not names:
                archive.at(step)  # says which there are
        return verify(archive, names)

    def _load(
        self, archive: Archive, which: Which | None, load: Callable[[Manifest], None]
    ) -> tuple[Manifest | None, tuple[DamageError, ...]]:
        if isinstance(which, str):
            if which not in {"latest", "best"}:
                raise MissingCheckpointError(
                    f"a checkpoint is called by its step, 'latest' or 'best', not {which!r}"
                )
            manifest = archive.latest() if which == "latest" else archive.best(*self.retention.best or ())
            if manifest is None and archive.names():
                raise MissingCheckpointError(
                    f"no checkpoint in {self.root!r} has the metric that says which is best; give it to save: "
                    "store.save(step, state, metrics={...})"
                )
            if manifest is None:
                raise self._missing(which)
            load(manifest)
            return manifest, ()
        restored = archive.restore(load, which)
        return (None, ()) if restored is None else (restored.manifest, restored.skipped)
