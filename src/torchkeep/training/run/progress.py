"""A line that shows how far a run is: step, rate, and the last step that is durable."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

_SECONDS_BETWEEN: Final = 0.1


class _Rate(ProgressColumn):
    """Steps a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """Render the rate."""
        return Text("" if task.speed is None else f"{task.speed:.3g} steps/s")


@contextmanager
def progress_line(wanted: bool | None, first: int, total: int) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress line while the body runs, on the error stream.

    Args:
        wanted: whether; None: where that is a terminal, and no other live display is shown.
        first: the step that the loop goes on from.
        total: the step that it goes to.

    Yields:
        What is called with the number of steps done and the last durable step.
    """
    console = Console(stderr=True)
    if wanted is False or (wanted is None and not console.is_terminal):
        yield lambda _step, _saved: None
        return
    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    # No thread refreshes: one that held the console's lock while workers are forked would leave it locked in them.
    prints = sys.stdout is not None and sys.stdout.isatty()  # where they would go through the line
    bar = Progress(
        *columns, TextColumn("{task.fields[saved]}"), console=console, auto_refresh=False, redirect_stdout=prints
    )
    try:
        bar.start()
    except LiveError:
        if wanted:
            raise
        yield lambda _step, _saved: None
        return
    task = bar.add_task("steps", total=total, completed=first, saved="")
    shown = -_SECONDS_BETWEEN

    def show(step: int, saved: int | None) -> None:
        nonlocal shown
        bar.update(task, completed=step, saved="nothing saved yet" if saved is None else f"saved at {saved}")
        if (now := time.monotonic()) >= shown + _SECONDS_BETWEEN or step == total:
            shown = now
            bar.refresh()

    try:
        yield show
    finally:
        bar.stop()
