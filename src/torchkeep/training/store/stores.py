"""`CheckpointStore`: a run's checkpoints in a folder, saved while training goes on, each whole or not there."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from weakref import finalize

from torch import nn

from torchkeep.archive import Archive, Retention, VerifyReport, Writer, verify
from torchkeep.archive.manifest import encode_metrics
from torchkeep.archive.preparing import is_made
from torchkeep.errors import MissingCheckpointError, StoreError, TorchkeepWarning
from torchkeep.formats.values import decode
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.tensors.pausing import without_collections
from torchkeep.training.state.capturing import capture
from torchkeep.training.state.restoring import restore_into
from torchkeep.training.state.states import BareModule
from torchkeep.training.store.flights import Flights
from torchkeep.training.store.gates import watch_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torchkeep.archive import Manifest, PruneReport
    from torchkeep.errors import DamageError
    from torchkeep.files.planning import Policy
    from torchkeep.storage.folders import FolderStorage
    from torchkeep.training.store.pending import PendingSave

Which: TypeAlias = 'int | Literal["latest", "best"]'
"""A checkpoint of a store: its step, or one of these words."""

_KEEP_THREE = Retention()


class CheckpointStore:
    """The checkpoints of a run, in a folder.

    Looking and restoring take no lock, so that other processes may do that while one saves. The first save or
    prune opens the store for writing and holds its lock until `close`.

    Args:
        location: the folder; the first save makes it with its parents if need be.
        retention: which checkpoints are kept; applied after each save. ``Retention(last=None)`` keeps all.

        storage: the file system.
        make_writer: opens the store for writing; for tests.

    Attributes:
        root: the folder, as text, with symbolic links resolved.
        retention: as given.
        restored: the step that was restored last, if nothing was saved here since; None otherwise.

    Raises:
        StoreError: the folder is no store and holds something else.
        NewerFormatError: a later version made it.
        DamageError: what tells that it is a store is not what was written.
        StorageError: it can't be read.

    Example:
        >>> with tk.CheckpointStore("runs/digits") as store:
        ...     start = store.restore(state) or 0
        ...     for step in range(start + 1, 2001):
        ...         train(state, step)
        ...         if step % 100 == 0:
        ...             store.save(step, state, metrics={"loss": loss})
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        retention: Retention = _KEEP_THREE,
        storage: FolderStorage = LOCAL_FOLDERS,
        make_writer: Callable[..., Writer] = Writer,
    ) -> None:
        self.retention, self.root = retention, storage.resolve(os.fspath(location))
        self._storage = storage
        self._reader: Archive | None = None
        self._restored: tuple[Manifest, Archive] | None = None
        self._newest = 0
        self.restored: int | None = None
        self._make_writer = make_writer
        self._flights = Flights(retention)
        self._bare: BareModule | None = None
        self._archive()  # a folder that can't be used is told at once
        finalize(self, self._flights.abandon)  # not a method of this object, which that would keep alive
        watch_steps()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"Besides, what was being saved to {self.root!r} failed: {failed}")

    def __repr__(self) -> str:
        return f"<CheckpointStore {self.root!r}>"

    # Saving

    @without_collections()
    def save(
        self,
        step: int,
        state: object,
        *,
        metrics: Mapping[str, Any] | None = None,
        wait: bool = False,
        overlap: bool = True,
    ) -> PendingSave:
        """Save a state; training goes on as soon as this returns.

        What the state's torch optimizers train, and their own state, is copied while the next forward and backward
        run, and their next step waits until that is done. Everything else is copied before this returns. One save
        is in flight at a time: the next one waits for it. A state that is committed at that step already is not
        saved again.

        Where memory for a copy is short, this waits until the state is durable, and warns once.

        Args:
            step: the state's step; not below that of the checkpoint it follows.
            state: a TrainingState, a module, or nested containers of tensors and plain values. A module is kept
                alive until the next save or `close`: saving it again is quicker.
            metrics: plain values, or tensors of one number, by name, such as ``{"loss": 0.1}``; listed with the
                checkpoint.
            wait: return when it is durable; what fails is raised here.
            overlap: False copies everything before this returns. It is for code that writes to what optimizers
                train outside of their steps: that would tear the copy, and the save fails when it is seen.

        Returns:
            The save, under way or done.

        Raises:
            UnsavableError: something can't be kept without pickle; nothing was written.
            StoreError: the step goes backwards, the store was closed, or this process was forked from the one
                that writes it.
            StoreLockedError: another process writes to the store.
            StorageError: the operating system refused.
            TorchkeepError: the save before this one failed, and nobody was told yet. Nothing of this one was done;
                call it again to go on.
        """
        with self._flights.turn():
            self._flights.tell()
            writer = self.writer
            values = (
                None if metrics is None else {key: decode(node) for key, node in encode_metrics(metrics).items()}
            )
            captured = capture(self._remembered(state))
            pending = self._flights.save(writer, step, captured, values, wait=wait, overlap=overlap)
            self.restored = None
            return pending

    def _remembered(self, state: object) -> object:
        """Return what remembers a module from the last save, if that was of the same."""
        if not isinstance(state, nn.Module):
            self._bare = None
            return state
        if self._bare is None or self._bare.net is not state:
            self._bare = BareModule(state)
        return self._bare

    @property
    def writer(self) -> Writer:
        """The store, opened for writing and locked at first use.

        Raises:
            StoreLockedError: another process writes to it.
            StoreError: it was closed, this process was forked, or another one has saved to it, or pruned what was
                restored here, since that was restored.
            StorageError: the operating system refused.
        """
        return self._flights.opened(self._open)

    def _open(self) -> Writer:
        writer = self._make_writer(self._storage, self.root, retention=self.retention)
        if self._restored is not None:
            try:
                self._refuse_if_later(writer, self._restored[0])
                writer.go_on_from(*self._restored)
            except BaseException:
                writer.close()
                raise
        return writer

    def _refuse_if_later(self, writer: Writer, restored: Manifest) -> None:
        """Don't begin a new line of history beside one that another process has just gone on with."""
        later = [name.step for name in writer.names() if name.sequence > self._newest]
        if later:
            raise StoreError(
                f"step {later[-1]} was saved to {self.root!r} by another process after step {restored.step} was "
                "restored here; restore again, what you want to go on from"
            )

    def prune(self) -> PruneReport:
        """Remove what retention does not keep; a save in flight is waited for. Each save does that by itself.

        Raises:
            DamageError: a manifest can't be read, so what it needs is not known; nothing was removed.
            StoreError: the store was closed, or this process was forked.
            StoreLockedError: another process writes to it.
            StorageError: the operating system refused.
        """
        with self._flights.turn():
            return self.writer.prune(self.retention)

    def close(self) -> None:
        """Wait for the save in flight, give the store and the memory back; a second call does nothing.

        Raises:
            TorchkeepError: the last save failed, and nobody was told yet.
        """
        self._bare = None
        with self._flights.turn():
            self._flights.close()

    # Looking

    def _archive(self) -> Archive | None:
        """Return the store for reading; None where none was made yet."""
        if self._flights.writer is not None:
            return self._flights.writer
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

    # Restoring

    def restore(
        self,
        state: object,
        step: Which | None = None,
        *,
        missing: Policy = "error",
        unexpected: Policy = "error",
    ) -> int | None:
        """Bring a state back, in place, every byte verified. The next save follows what was restored.

        Args:
            state: as it is saved. A TorchkeepWarning tells what only one of the two has.
            step: which checkpoint; None: the newest that is intact. Only damage falls back to an earlier one,
                and a TorchkeepWarning names it.
            missing: what becomes of what the checkpoint lacks, be it a tensor of a module or a part of the state:
                ``"ignore"`` leaves it as it is.
            unexpected: what becomes of tensors that the checkpoint has in a module which has no such one any
                more: ``"ignore"`` leaves them.

        Returns:
            The step restored; None only where there is no checkpoint, and only without a step.

        Raises:
            LoadError: the state does not fit the checkpoint: all of why. Nothing was touched.
            MissingCheckpointError: there is none of that step.
            DamageError: that one is damaged, or all are. The state may hold parts of it.
            StorageError: the operating system refused.
        """
        with self._flights.turn():
            archive = self._archive()
            if archive is None:
                if step is not None:
                    raise self._missing(step)
                return None
            left: tuple[str, ...] = ()
            newest = max((name.sequence for name in archive.names()), default=0)

            def load(manifest: Manifest) -> None:
                nonlocal left
                left = restore_into(state, archive, manifest, missing=missing, unexpected=unexpected)

            manifest, skipped = self._load(archive, step, load)
            if manifest is None:
                return None
            self._restored, self.restored, self._newest = (manifest, archive), manifest.step, newest
            if self._flights.writer is not None:
                self._flights.writer.build_on(manifest)
        for error in skipped:
            warnings.warn(f"restored step {manifest.step} instead: {error}", TorchkeepWarning, stacklevel=2)
        if left:
            warnings.warn(
                f"restored {manifest.path!r}; what is left over, or keeps what it had: {'; '.join(left)}",
                TorchkeepWarning,
                stacklevel=2,
            )
        return manifest.step

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
