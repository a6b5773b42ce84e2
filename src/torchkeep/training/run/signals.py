"""Signals of a run: noted by the main process until the step has ended, and kept from workers that load data."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

WATCHED: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))
_NOTICE: Final = b"\ntorchkeep: finishing the step, then saving; press Ctrl-C again to stop at once\n"
_REDELIVER_SECONDS: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1


class Preempted(SystemExit):
    """The run was told to stop by a signal, saved, and leaves. It is the exit of the process, not a failure.

    Attributes:
        code: 128 and the signal's number, as shells count: 143 for SIGTERM, 130 for SIGINT (Ctrl-C).
        step: the step that the checkpoint to go on from is of.
        signal: the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(128 + number)
        self.step = step
        self.signal = signal.Signals(number)


class Watch:
    """Notes SIGTERM and SIGINT instead of acting on them, between ``with watch:`` and its end.

    A second SIGINT does what it did before. A signal that was noted and not acted on by the end is sent again.
    Outside the main thread, and for a signal that is ignored or handled by code other than Python, all stays.

    Attributes:
        noted: the signal that came, 0 while none has.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._interrupted = self._acted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.noted, self._interrupted, self._acted = 0, False, False
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                before = signal.getsignal(number)
                if before not in {None, signal.SIG_IGN}:
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        if self.noted and not self._acted:
            # Not here: this may run while a generator is being closed, where an exception would be lost.
            again = threading.Timer(_REDELIVER_SECONDS, _send_to_main_thread, (self.noted,))
            again.daemon = True
            again.start()

    def acted(self) -> None:
        """Say that what was noted has been acted on; more of the same will not be."""
        self._acted = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            self.noted = 0
            before = self._before[number]
            if callable(before):
                before(number, frame)
            else:
                signal.signal(number, before)
                signal.raise_signal(number)
            return
        self.noted = self.noted or number
        if number == signal.SIGINT:
            self._interrupted = True
            if sys.stderr is not None and sys.stderr.isatty():
                # Buffered text streams are not to be used in a handler.
                os.write(2, _NOTICE)


class ShieldedStart:
    """What a worker runs first: it leaves SIGTERM and SIGINT to the main process, then starts as the user wants.

    Signals are sent to whole groups of processes, by terminals and by schedulers; a worker that died of one would
    break the step that the main process is still to finish. Workers end when they are told to by their queue, when
    their parent is gone, or when it kills them.

    Args:
        start: the user's ``worker_init_fn``.
        wrapped: whether the dataset is wrapped in one of ours, which the user's code is not to see.
    """

    def __init__(self, start: Callable[[int], None] | None, *, wrapped: bool) -> None:
        self._start = start
        self._wrapped = wrapped
        self._main = os.getpid()
        self._by_main_thread = threading.current_thread() is threading.main_thread()

    def __call__(self, worker: int) -> None:
        """Shield worker number ``worker``."""
        if os.getpid() != self._main:
            for number in WATCHED:
                # A handler, not SIG_IGN: programs that the dataset starts would inherit that.
                signal.signal(number, _leave_to_main)
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            if self._by_main_thread:
                _die_with_parent(self._main)
            for name in ("stdout", "stderr"):
                # While a progress bar is shown these are its own; a worker has no bar.
                setattr(sys, name, getattr(getattr(sys, name), "rich_proxied_file", getattr(sys, name)))
        if self._wrapped:
            _show_own_dataset()
        if self._start is not None:
            self._start(worker)


@contextmanager
def shielding() -> Iterator[None]:
    """Start workers within: signals wait until each has its shield, and each will end when it is terminated."""
    before = set(multiprocessing.active_children())
    masked = hasattr(signal, "pthread_sigmask")
    old = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED) if masked else None
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - before:
            _make_killable(child)
        if old is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _send_to_main_thread(number: int) -> None:
    """Send this process a signal, so that the main thread wakes up of it where it waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _make_killable(child: Any) -> None:
    """Let ``terminate`` kill, since the worker does not end of SIGTERM; both multiprocessing and torch call it."""
    started = getattr(child, "_popen", None)
    if started is not None and hasattr(started, "kill"):
        started.terminate = started.kill


def _leave_to_main(number: int, frame: FrameType | None) -> None:
    """Do nothing: the main process has the same signal, or will end this process otherwise."""


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this worker when its parent dies; by itself it would find out some seconds later.

    Not for workers of other threads: what counts is the end of the thread that started them.
    """
    if sys.platform == "linux" and os.getppid() == parent:
        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGKILL)


def _show_own_dataset() -> None:
    """Make the user's own dataset that of ``get_worker_info()``, which may be changed through it."""
    info: Any = get_worker_info()
    if info is not None:
        # The class is a frozen one in newer releases of torch, and refuses assignment in older ones.
        object.__setattr__(info, "dataset", info.dataset.dataset)
