"""Forked children that can't hang for ever, for the tests of what they may do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback

SECONDS = 30
"""A child that takes longer hangs."""


def child_ends_well(doing):
    """Fork, let the child do something, and tell whether it did that without an error, a crash, or hanging."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(SECONDS)
            doing()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of the parent's goes on in a child
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def in_own_process(function, *arguments):
    """Call a function of a test file, with texts, in a new process, which has no threads of other tests."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
    helpers = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}  # noqa: PTH120 - the environment holds text
    command = [sys.executable, "-c", script, function.__code__.co_filename, function.__name__, *arguments]
    subprocess.run(command, check=True, env=helpers)
