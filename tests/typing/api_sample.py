"""A typed user of the public API: mypy checks it in strict mode, nobody runs it."""

from __future__ import annotations

import torchkeep as tk


def version() -> str:
    """Return the version, which is a string to a type checker too."""
    return tk.__version__
