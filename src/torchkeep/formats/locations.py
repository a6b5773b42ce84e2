"""How a checkpoint is written where a path is expected: ``STORE@1200``, ``STORE@latest``, ``STORE@best``."""

from __future__ import annotations

import os
import re
from typing import Final, Literal, NamedTuple, TypeAlias

MARKER: Final = "torchkeep.json"
"""The file that tells the folder of a store from others."""

Which: TypeAlias = int | Literal["latest", "best"]

_SPLIT: Final = re.compile(r"(.+)@([0-9]{1,1000}|latest|best)", re.DOTALL)


class Location(NamedTuple):
    """A checkpoint, or a whole store.

    Attributes:
        text: as it was given.
        store: path of the store's folder.
        which: a step, the latest or the best.
        whole: whether only the store was named, whose latest is meant then.
    """

    text: str
    store: str
    which: Which
    whole: bool = False


def split(text: str) -> Location | None:
    """Split at the last ``@``, if digits, ``latest`` or ``best`` follow it; else None. No file is looked at."""
    found = _SPLIT.fullmatch(text)
    if found is None:
        return None
    which: Which = "latest" if found[2] == "latest" else "best" if found[2] == "best" else int(found[2])
    return Location(text, found[1], which)


def store_location(path: str | os.PathLike[str]) -> Location | None:
    """Tell what a path says of a store; None where it leads to something else.

    A path that exists is never split, nor is a path object; the folder of a store means its latest checkpoint.
    """
    text = os.fsdecode(path)
    if _is_store(text):
        return Location(text, text, "latest", whole=True)
    if not isinstance(path, str) or os.path.lexists(text):
        return None
    return split(text)


def hides_checkpoint(path: str) -> bool:
    """Tell whether a file at ``path`` would stand in the way of a store's checkpoint that is written like it."""
    location = store_location(path)
    return location is not None and _is_store(location.store)


def _is_store(path: str) -> bool:
    return os.path.isfile(os.path.join(path, MARKER))  # noqa: PTH113, PTH118 - as everywhere here, the path is text
