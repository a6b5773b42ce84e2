"""How a command ends: exit codes, the sentences on stderr, and output that nobody reads any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final, NamedTuple, TextIO

from torchkeep.errors import NoMatchError, SelectorError, TorchkeepError, UnknownCheckError
from torchkeep.names import printable

DONE: Final = 0
NO: Final = 1
USAGE: Final = 2
UNUSABLE: Final = 3
BUG: Final = 70
UNWRITABLE: Final = 74
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141
"""The last four are what Unix calls EX_SOFTWARE and EX_IOERR, and what shells report after SIGINT and SIGPIPE."""

_TRACEBACK: Final = "TORCHKEEP_TRACEBACK"


class Answer(NamedTuple):
    """What a command found out.

    Attributes:
        text: for stdout.
        code: the exit code.
        complaints: sentences for stderr: what could not be found out.
    """

    text: str
    code: int = DONE
    complaints: tuple[str, ...] = ()


class OutputError(Exception):
    """The answer could not be written to stdout."""


def write(text: str) -> None:
    """Write a command's whole answer to stdout and see that it has left this process.

    Raises:
        BrokenPipeError: whoever read it has closed the pipe.
        OutputError: it can't be written for another reason, such as a full disk.
    """
    if sys.stdout is None:  # closed by the caller: `>&-`
        raise OutputError("there is no standard output to write to; run the command without `>&-`")
    _show_unencodable(sys.stdout)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"can't write the output: {error.strerror or error}; nothing else is wrong") from error


def finish(answer: Answer) -> int:
    """Write a command's answer and return its exit code; raises what `write` does."""
    write(answer.text)
    for sentence in answer.complaints:
        _to_stderr(f"torchkeep: {sentence}\n")
    return answer.code


def forget_output() -> None:
    """Let what is still buffered for stdout go nowhere, so that the interpreter's exit does not trip over it."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def complain(error: Exception) -> int:
    """Say on stderr what went wrong and what to do, and return the exit code for it."""
    import traceback  # noqa: PLC0415 - most commands end well

    if os.environ.get(_TRACEBACK):
        _to_stderr("".join(traceback.format_exception(error)))
    if isinstance(error, OutputError):
        forget_output()
        _to_stderr(f"torchkeep: {error}\n")
        return UNWRITABLE
    if isinstance(error, TorchkeepError):
        from torchkeep.selectors.explaining import LENIENCY  # noqa: PLC0415 - most commands end well

        sentence = str(error).replace(LENIENCY, "`torchkeep show SOURCE` lists what there is")
        _to_stderr(f"torchkeep: {sentence}\n")
        return _code(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}, line {where.lineno}"  # noqa: PTH119 - no need for pathlib here
    _to_stderr(
        f"torchkeep: this should not have happened ({type(error).__name__}: {error}; {place}): it is a bug in "
        f"torchkeep; run the same command with {_TRACEBACK}=1 and report what it prints\n"
    )
    return BUG


def _code(error: TorchkeepError) -> int:
    if isinstance(error, NoMatchError):
        return NO
    return USAGE if isinstance(error, SelectorError | UnknownCheckError) else UNUSABLE


def _to_stderr(text: str) -> None:
    if sys.stderr is None:
        return
    shown = "\n".join(map(printable, text.split("\n")))
    with suppress(OSError, ValueError):  # nobody is left to tell
        sys.stderr.write(shown)
        sys.stderr.flush()


def _show_unencodable(stream: TextIO) -> None:
    """Let characters that the stream's encoding does not have be written as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
