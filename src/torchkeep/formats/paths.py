"""Where a value sits inside containers: ``optimizer[0]['hook']`` to show, ``optimizer.0.hook`` as a name."""

from __future__ import annotations

from typing import Final


class Path:
    """A place inside nested containers.

    Attributes:
        parent: the container's own place; None at the root.
        key: the key or index under which the value sits.
    """

    __slots__ = ("key", "parent")

    def __init__(self, parent: Path | None = None, key: object = None) -> None:
        self.parent = parent
        self.key = key

    @property
    def keys(self) -> list[object]:
        """The keys and indices from the root."""
        keys = []
        place = self
        while place.parent is not None:
            keys.append(place.key)
            place = place.parent
        return keys[::-1]

    @property
    def name(self) -> str:
        """The dotted name of a tensor that sits here; empty at the root."""
        return ".".join(map(_segment, self.keys))

    def __str__(self) -> str:
        keys = self.keys
        if not keys:
            return "the object itself"
        first = keys[0]
        shown = [str(first) if isinstance(first, str) and first.isidentifier() else f"[{_shown(first)}]"]
        shown.extend(f"[{_shown(key)}]" for key in keys[1:])
        return "".join(shown if len(shown) <= _LONG else [*shown[: _LONG // 2], "...", *shown[-(_LONG // 2) :]])


_LONG: Final = 20
ROOT: Final = Path()


def _segment(key: object) -> str:
    """Return a key's part of a name: the same in every process, not necessarily unlike that of another key."""
    if isinstance(key, str):
        return key
    return _shown(key) if key is None or isinstance(key, int | float) else type(key).__name__


def _shown(key: object) -> str:
    try:
        return repr(key)
    except ValueError:  # an int of more digits than Python prints
        return f"a large {type(key).__name__}"
