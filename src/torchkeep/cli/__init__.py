"""The command line: a command's whole answer is worked out first, then written at once.

Whatever goes wrong ends in a sentence on stderr and an exit code, never in a traceback. The codes stand in
`torchkeep.cli.endings`; docs/cli.md describes the commands.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from torchkeep.cli.endings import CLOSED_PIPE, INTERRUPTED, complain, forget_output

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; None for what this process was given.

    Returns:
        The exit code.
    """
    collecting = gc.isenabled()
    # A command makes many small objects and no cycles to speak of, and ends soon: collecting would free nothing.
    gc.disable()
    try:
        from torchkeep.cli.commands import run  # noqa: PLC0415 - an interrupt while click loads is handled too

        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        forget_output()
        return CLOSED_PIPE
    except Exception as error:  # noqa: BLE001 - whatever it is, people get a sentence, and a traceback if they ask
        return complain(error)
    finally:
        if collecting:
            gc.enable()
