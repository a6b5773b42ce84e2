"""When a run saves, what becomes of its saves, and which step is durable."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from warnings import warn

import torch

from torchkeep.errors import RunError, StorageError, TorchkeepError, TorchkeepWarning, UnsavableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.training.store.pending import PendingSave
    from torchkeep.training.store.stores import CheckpointStore

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)")
_SECONDS: Final = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


class Saves:
    """The saves of a run.

    Args:
        store: where they go.
        every: as `Run` takes it.
        on_failure: as `Run` takes it.
        clock: tells seconds.
        overlap: as `Run` takes it.

    Attributes:
        durable: the last step that is known to be durable; None before the first.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every: int | timedelta | str,
        on_failure: Literal["raise", "warn"],
        clock: Callable[[], float],
        *,
        overlap: bool,
    ) -> None:
        if on_failure not in {"raise", "warn"}:
            raise RunError(f"Run(on_failure=...) takes 'raise' or 'warn', not {on_failure!r}")
        self.durable: int | None = None
        self._store, self._on_failure, self._clock = store, on_failure, clock
        self._overlap = overlap
        self._steps, self._seconds = _read_every(every)
        self._since = 0.0
        self._asked = False
        self._metrics: dict[str, Any] = {}
        self._flying: tuple[PendingSave, dict[str, Any]] | None = None

    def record(self, metrics: dict[str, Any]) -> None:
        """Keep metrics for the next save; see `Run.record`."""
        for name, value in metrics.items():
            number = value.detach() if isinstance(value, torch.Tensor) else value
            if not hasattr(number, "__float__") or (isinstance(number, torch.Tensor) and number.numel() != 1):
                raise UnsavableError(f"the metric {name!r} can't be saved: it is {value!r}, which is no number")
            self._metrics[name] = number

    def ask(self) -> None:
        """Make the next step's end a time to save."""
        self._asked = True

    def open(self) -> None:
        """Open the store for writing: that another process does is told before the first step, not hours later."""
        try:
            _ = self._store.writer
        except StorageError as error:
            self._judge(error)

    def start_clock(self) -> None:
        """Count a duration from now on."""
        self._since = self._clock()

    def due(self, step: int) -> bool:
        """Tell whether it is time to save a step."""
        if self._asked:
            return True
        if self._steps is not None:
            return step % self._steps == 0
        return self._clock() - self._since >= self._seconds

    def send(self, step: int, state: object, *, wait: bool) -> None:
        """Save a step, and return at once or when it is durable."""
        self._asked, self._since = False, self._clock()
        try:
            pending, sent = self._save(step, state, wait=wait)
        except StorageError as error:
            if wait:
                raise
            self._judge(error)  # it did not get as far as the background
            return
        self.settle()  # the save before, which this one waited for
        self._flying = pending, sent
        if wait:
            pending.result()
            self.durable, self._flying = step, None

    def settle(self, step: int | None = None) -> None:
        """Take note of how the save in the background ended, if it has; that of ``step`` is waited for."""
        if self._flying is None or not (self._flying[0].done() or self._flying[0].step == step):
            return
        pending = self._flying[0]
        try:
            pending.result()
        except Exception as error:  # noqa: BLE001 - whatever a save in the background raised is the user's to judge
            self._lose(error)
        else:
            self.durable, self._flying = pending.step, None

    def _save(self, step: int, state: object, *, wait: bool) -> tuple[PendingSave, dict[str, Any]]:
        sent = {name: float(value) for name, value in self._metrics.items()}
        try:
            pending = self._store.save(step, state, metrics=sent or None, wait=wait, overlap=self._overlap)
        except TorchkeepError as error:
            if self._flying is None or error is not self._flying[0].error:
                raise
            # The save before failed after it was last looked at, and nothing of this one was done.
            self._lose(error)
            return self._save(step, state, wait=wait)
        self._metrics = {}
        return pending, sent

    def _lose(self, error: Exception) -> None:
        """Give up a save that failed in the background; its metrics go with the next one."""
        assert self._flying is not None
        self._metrics = {**self._flying[1], **self._metrics}
        self._flying = None
        self._judge(error)

    def _judge(self, error: Exception) -> None:
        if self._on_failure == "raise":
            raise error
        warn(f"a save failed, and training goes on: {error}", TorchkeepWarning, stacklevel=2)


def _read_every(every: object) -> tuple[int | None, float]:
    """Read ``every``: a number of steps, or None and seconds."""
    if type(every) is int and every > 0:
        return every, 0.0
    seconds = 0.0
    if isinstance(every, timedelta):
        seconds = every.total_seconds()
    elif isinstance(every, str) and not _DURATION.sub("", every).strip():
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(every))
    if seconds <= 0:
        raise RunError(
            f"Run(every=...) takes a number of steps from 1 on, a timedelta, or a duration such as '10min' or "
            f"'1h 30min', not {every!r}"
        )
    return None, seconds
