"""Hold Python's search for circular garbage while many objects are made, none of which is garbage."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_collections() -> Iterator[None]:
    """Hold the search inside of the block, also as a decorator; a collector that is off already stays off.

    With torch loaded, one search through all objects takes a tenth of a second, and making 20,000 rows, chunks and
    offers sets off several.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
