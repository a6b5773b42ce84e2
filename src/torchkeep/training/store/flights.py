"""Save states one at a time: the save in flight has a thread of its own, which copies, commits and prunes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from threading import Lock, RLock, Thread, get_ident, main_thread
from typing import TYPE_CHECKING, Any

from torchkeep.errors import FormatError, StorageError, StoreError
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.training.store.gates import Gate, close_gate, is_stepping, open_gate
from torchkeep.training.store.pending import PendingSave
from torchkeep.training.store.snapshots import PIECE, Snapshot, settle, size_of
from torchkeep.training.store.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torchkeep.archive import Retention, TensorBytes, Writer
    from torchkeep.training.state.capturing import Captured
    from torchkeep.training.state.holding import Held


class Flights:
    """What saves into one store. It knows no `CheckpointStore`, so that a save in flight outlives that.

    Args:
        retention: what is pruned after each commit.

    Attributes:
        writer: the open store; None before it was needed and after the end.
        staging: where snapshots are made.
        piece: bytes that are copied at once.
        before_copy: called in the background thread before each piece that it copies while training goes on;
            for tests.
        closed: whether it has ended.
    """

    def __init__(self, retention: Retention) -> None:
        self.writer: Writer | None = None
        self.staging = Staging()
        self.piece = PIECE
        self.before_copy: Callable[[], None] | None = None
        self.closed = False
        self._retention = retention
        self._process = os.getpid()
        self._turn, self._owner = Lock(), 0
        self._ending = RLock()
        self._abandoned = False
        self._pending: PendingSave | None = None
        self._thread: Thread | None = None
        self._short_said = False

    # Who may

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let one thread at a time begin something, after what is in flight has ended."""
        if self._process != os.getpid():  # whoever had its turn when this process was forked never ends here
            yield
            return
        if self._owner == get_ident():
            raise StoreError(
                "this store is in use already further up in the same thread, in a call that this one, in a signal "
                "handler, say, has interrupted; set a flag there, and call this when the other call is over"
            )
        with self._turn:
            try:
                self._owner = get_ident()
                self.land()
                yield
            finally:
                self._owner = 0

    def opened(self, make: Callable[[], Writer]) -> Writer:
        """Return the store open for writing.

        Args:
            make: opens it.

        Raises:
            StoreError: this process was forked from the one that keeps the store, or the store was closed.
            StoreLockedError: another process writes to it.
        """
        if self._process != os.getpid():
            raise StoreError(
                "this process was forked from the one that writes this store; save from that one, or open the "
                "store here anew when that one has closed it"
            )
        if self.closed:
            raise StoreError("the store was closed; open it again to write to it")
        if self.writer is None:
            self.writer = make()
        return self.writer

    def land(self) -> None:
        """Wait until nothing is in flight, however it ends."""
        thread = self._thread
        if thread is not None and self._process == os.getpid():
            thread.join()

    def tell(self) -> None:
        """Raise what failed in the last save, unless that was told already."""
        pending, self._pending = self._pending, None
        if pending is not None and self._process == os.getpid() and (error := pending.tell()) is not None:
            raise error

    # Saving

    def save(
        self,
        writer: Writer,
        step: int,
        captured: Captured,
        metrics: Mapping[str, Any] | None,
        *,
        wait: bool,
        overlap: bool,
    ) -> PendingSave:
        """Save what was captured, when nothing is in flight.

        Args:
            writer: the store, as `opened` returns it.
            step: the state's step.
            captured: the state.
            metrics: plain values by name.
            wait: return when it is durable.
            overlap: copy what steps change while training goes on.

        Raises:
            StoreError: the step can't be the next one.
            BaseException: whatever else failed before this returns.
        """
        writer.check_step(step)
        pending = PendingSave(step, captured.left_out)
        settle(captured.held.values())

        def commit(content: Mapping[str, TensorBytes], check: Callable[[], None] | None = None) -> Checkpoint:
            manifest = writer.commit(
                step,
                content,
                aliases=captured.aliases,
                tree=captured.tree,
                recipe=captured.recipe,
                metrics=metrics,
                versions=captured.versions,
                before_publishing=check,
            )
            self._prune(writer, pending)
            return Checkpoint.of(writer, manifest)

        if wait or not self._begin(pending, captured, commit, overlap=overlap):
            pending.succeed(commit({name: held.live for name, held in captured.held.items()}))
            pending.warn()
        self._pending = pending
        return pending

    def _prune(self, writer: Writer, pending: PendingSave) -> None:
        """Prune; the save itself is durable by now, so that what fails here is a warning."""
        if self._retention.last is None:
            return
        try:
            writer.prune(self._retention)
        except (FormatError, StorageError) as error:
            pending.notes.append(
                f"step {pending.step} is saved, but older checkpoints can't be pruned, so the store grows: {error}"
            )

    def _begin(
        self,
        pending: PendingSave,
        captured: Captured,
        commit: Callable[..., Checkpoint],
        *,
        overlap: bool,
    ) -> bool:
        """Begin a save in the background; return False, with nothing begun, where that can't be."""
        if not main_thread().is_alive():  # the interpreter ends, and would not wait for another thread
            return False
        address = self._room(pending, captured.held.values())
        if address is None:
            return False
        overlaps = overlap and not is_stepping(captured.optimizers)
        snapshot = Snapshot(captured.held, captured.stepped if overlaps else frozenset(), address, self.piece)
        gate = Gate(captured.optimizers, snapshot.let_pass)

        def fly() -> None:
            try:
                snapshot.copy_all(self.before_copy)
                checkpoint = commit(snapshot.tensor_bytes(), snapshot.seal)
            except BaseException as error:  # noqa: BLE001 - raised where the save is asked for
                snapshot.fail(error)
                open_gate(gate)
                pending.fail(error)
            else:
                open_gate(gate)
                pending.succeed(checkpoint)
            self._landed(pending)

        thread = self._thread = Thread(target=fly, name=f"torchkeep save {pending.step}")
        try:
            close_gate(gate)
            try:
                thread.start()
            except RuntimeError:  # there can be no more threads: the interpreter ends
                return False
            snapshot.copy_first()
        except BaseException as error:
            snapshot.fail(error)
            if thread.is_alive():
                thread.join()
            raise
        finally:
            if not thread.is_alive():
                open_gate(gate)
                self._thread = None
        return True

    def _room(self, pending: PendingSave, tensors: Collection[Held]) -> int | None:
        """Return the address of memory for a snapshot; None where memory is short."""
        nbytes = size_of(tensors)
        if not self.staging.lacks(nbytes):
            try:
                return self.staging.room(nbytes, pinned=any(held.is_away for held in tensors))
            except MemoryError:
                pass
        if not self._short_said:
            self._short_said = True
            pending.notes.append(
                f"memory is short: there is no room for a copy of the state, {nbytes:,} bytes, so it is saved "
                "while training waits; this is said once"
            )
        return None

    # Ending

    def _landed(self, pending: PendingSave) -> None:
        with self._ending:
            self._thread = None
            abandoned = self._abandoned
        if abandoned:
            self._end()
            error = pending.tell()
            if error is not None:
                raise error  # nobody else is there to be told: threading.excepthook shows it

    def _end(self) -> None:
        self.closed = True
        self.staging.free()
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Wait for what is in flight, give the store back, and raise what failed and was not told."""
        self.land()
        self._end()
        self.tell()

    def abandon(self) -> None:
        """End when nobody can use the store any more, without waiting: garbage is collected in any thread."""
        if self._process != os.getpid():
            return
        with self._ending:
            self._abandoned = True
            flying = self._thread is not None
        if not flying:
            self._end()
            self.tell()
