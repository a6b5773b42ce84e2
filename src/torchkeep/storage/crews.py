"""A few threads that share tasks among them, each with a buffer of its own."""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from torchkeep.storage.buffers import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Task = TypeVar("_Task")


def run(tasks: Sequence[_Task], do: Callable[[_Task, Buffer], None], room: int, *, threads: int) -> None:
    """Let threads, this one among them, do tasks in their order; raise what fails first in that order.

    Args:
        tasks: what is to be done.
        do: does one, with a buffer that no other thread uses meanwhile.
        room: size of such a buffer, in bytes.
        threads: how many at the most.
    """
    crew = _Crew(tasks, do, room)
    helpers = [
        Thread(target=crew.work, name="torchkeep", daemon=True) for _ in range(min(threads, len(tasks)) - 1)
    ]
    try:
        with suppress(RuntimeError):  # there can be no more threads, as when the interpreter ends: fewer will do
            for helper in helpers:
                helper.start()
        crew.work()
    finally:
        crew.stopped = True
        _wait_for(helpers)
    if crew.failures:
        # An interrupt goes before any error that it may have caused.
        raise min(crew.failures, key=lambda failure: (isinstance(failure[1], Exception), failure[0]))[1]


def _wait_for(helpers: Sequence[Thread]) -> None:
    """Wait until no helper does anything any more, even when interrupted meanwhile."""
    interrupt: BaseException | None = None
    for helper in helpers:
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as found:  # noqa: BLE001 - raised again below
                interrupt = found
    if interrupt is not None:
        raise interrupt


class _Crew(Generic[_Task]):
    """What the threads share.

    Attributes:
        failures: what was raised, with the position of the task.
        stopped: no further task is begun.
    """

    def __init__(self, tasks: Sequence[_Task], do: Callable[[_Task, Buffer], None], room: int) -> None:
        self.failures: list[tuple[int, BaseException]] = []
        self.stopped = False
        self._pending = enumerate(tasks)
        self._lock = Lock()
        self._do, self._room = do, room

    def work(self) -> None:
        """Do tasks until none is left or something failed."""
        number = 0
        try:
            buffer = Buffer(self._room)
            while not self.stopped:
                with self._lock:
                    number, task = next(self._pending, (-1, None))
                if task is None:
                    break
                self._do(task, buffer)
        except BaseException as failure:  # noqa: BLE001 - raised again in the thread that asked
            self.failures.append((number, failure))
            self.stopped = True
