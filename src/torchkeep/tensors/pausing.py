"""Hold Python's search for circular garbage while many objects are made, none of which is garbage."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_holding: set[int] = set()
"""Threads that have turned the collector off, and will turn it on again."""


@contextmanager
def without_collections() -> Iterator[None]:
    """Hold the search inside of the block, also as a decorator; a collector that is off already stays off.

    With torch loaded, one search through all objects takes a tenth of a second, and making 20,000 rows, chunks and
    offers sets off several.
    """
    was_on = gc.isenabled()
    if was_on:
        _holding.add(get_ident())
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
            _holding.discard(get_ident())


def _resume_in_child() -> None:
    """Turn it on in a forked child, which has none of the threads that would."""
    if _holding - {get_ident()}:
        gc.enable()
        _holding.intersection_update({get_ident()})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume_in_child)
