"""`CheckpointStore`: a run's checkpoints in a folder, saved while training goes on, each whole or not there."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Self
from weakref import finalize

from torch import nn

from torchkeep.archive import Retention, Writer
from torchkeep.archive.manifest import encode_metrics
from torchkeep.errors import StoreError, TorchkeepWarning
from torchkeep.formats.values import decode
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.tensors.pausing import without_collections
from torchkeep.training.state.capturing import capture
from torchkeep.training.state.restoring import restore_into
from torchkeep.training.state.states import BareModule
from torchkeep.training.store.flights import Flights
from torchkeep.training.store.gates import watch_steps
from torchkeep.training.store.looking import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torchkeep.archive import Archive, Manifest, PruneReport
    from torchkeep.files.planning import Policy
    from torchkeep.storage.folders import FolderStorage
    from torchkeep.training.store.looking import Which
    from torchkeep.training.store.pending import PendingSave

_KEEP_THREE = Retention()


class CheckpointStore(Checkpoints):
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
        super().__init__(storage, storage.resolve(os.fspath(location)), retention)
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

    def _archive(self) -> Archive | None:
        writer = self._flights.writer
        return super()._archive() if writer is None else writer

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
