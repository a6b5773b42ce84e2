"""`PendingSave`: a save that is under way, or has ended."""

from __future__ import annotations

import os
import warnings
from threading import Event
from typing import TYPE_CHECKING

from torchkeep.errors import SaveUnfinishedError, StoreError, TorchkeepWarning

if TYPE_CHECKING:
    from torchkeep.tensors.checkpoints import Checkpoint


class PendingSave:
    """A save that is under way, or has ended.

    Args:
        step: the step that is saved.
        left_out: names of the tensors that are no part of the state.

    Attributes:
        step: as given.
        left_out: as given: buffers that their modules registered as not persistent.
        told: whether its failure was raised where someone could see it.
        notes: what went wrong beside the save itself; each becomes a warning where the caller can see it.

    Example:
        >>> pending = store.save(100, state)
        >>> checkpoint = pending.result()  # waits until it is durable
    """

    def __init__(self, step: int, left_out: tuple[str, ...] = ()) -> None:
        self.step, self.left_out = step, left_out
        self.told = False
        self.notes: list[str] = []
        self._ended = Event()
        self._process = os.getpid()
        self._checkpoint: Checkpoint | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Tell whether it has ended, well or not."""
        return self._ended.is_set()

    @property
    def error(self) -> BaseException | None:
        """What failed; None while it is under way and where nothing did. To look is not to be told."""
        return self._error

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until it is durable and what retention gives up is removed, and return the checkpoint.

        Args:
            timeout: how long to wait at most, in seconds; None: as long as it takes.

        Raises:
            SaveUnfinishedError: it takes longer; it goes on.
            StoreError: this process was forked while it was under way.
            StorageError: the operating system refused, such as when the disk is full.
            TorchkeepError: whatever else failed; the store holds what it held before.
        """
        if not self._ended.is_set() and self._process != os.getpid():
            raise StoreError(
                f"the save of step {self.step} was under way when this process was forked; ask the one that began "
                "it"
            )
        if not self._wait(timeout):
            raise SaveUnfinishedError(
                f"the save of step {self.step} is still under way after {timeout:g} s; wait longer, or without a "
                "timeout"
            )
        self.tell()
        if self._error is not None:
            raise self._error
        assert self._checkpoint is not None
        return self._checkpoint

    def tell(self) -> BaseException | None:
        """Wait until it has ended, and return what failed and was not told yet. Warn of what else went wrong."""
        self._wait()
        told, self.told = self.told, True
        self.warn()
        return None if told else self._error

    def _wait(self, timeout: float | None = None) -> bool:
        # What has ended is not waited for: that takes a lock, which a child forked just then would find taken.
        return self._ended.is_set() or self._ended.wait(timeout)

    def warn(self) -> None:
        """Warn of what went wrong beside the save itself."""
        while self.notes:
            warnings.warn(self.notes.pop(), TorchkeepWarning, stacklevel=4)

    def succeed(self, checkpoint: Checkpoint) -> None:
        """End it."""
        self._checkpoint = checkpoint
        self._ended.set()

    def fail(self, error: BaseException) -> None:
        """End it with what failed."""
        self._error = error
        self._ended.set()

    def __repr__(self) -> str:
        how = "under way" if not self.done() else "durable" if self._error is None else f"failed: {self._error}"
        return f"<PendingSave of step {self.step}: {how}>"
