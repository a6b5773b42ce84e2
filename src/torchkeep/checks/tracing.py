"""Find the line of source after which something is true: the one that changed an input, a setting, a hook."""

from __future__ import annotations

import sys
import sysconfig
from typing import TYPE_CHECKING, Any

from torchkeep.checks.subject import is_library

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def first_line(run: Callable[[], object], happened: Callable[[], bool]) -> str:
    """Run something once more and return ``file:line`` of the line of the layer's own code that made it happen.

    Lines inside torch are counted to the line that called it. A tracing function that was set before (a
    debugger's, a coverage tool's) is put back.

    Args:
        run: calls the layer; may raise.
        happened: tells whether it has happened by now; asked after each line, so it must be cheap and must not
            raise.

    Returns:
        Empty when it never happened, or happened outside any line of source.
    """
    finder = _Finder(happened)
    before = sys.gettrace()
    sys.settrace(finder.enter)
    try:
        run()
    except Exception:  # noqa: BLE001, S110 - the caller has seen the error already; here only the line is wanted
        pass
    finally:
        sys.settrace(before)
    return finder.found


_STANDARD = sysconfig.get_path("stdlib")


def _is_foreign(filename: str) -> bool:
    """Tell whether a source file is part of torch, of torchkeep or of Python itself."""
    return is_library(filename) or (filename.startswith(_STANDARD) and "-packages" not in filename)


class _Finder:
    """A tracing function that asks after each line of the layer's own code."""

    def __init__(self, happened: Callable[[], bool]) -> None:
        self._happened = happened
        self._last = ""
        self.found = ""

    def enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        """Trace the lines of a frame, unless it is torch's or ours or all is known."""
        if self.found or _is_foreign(frame.f_code.co_filename):
            return None
        return self._step(frame, event, None)

    def _step(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if self.found:
            return None
        if self._last and self._happened():
            self.found = self._last
            return None
        if event == "line":
            self._last = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return self._step
