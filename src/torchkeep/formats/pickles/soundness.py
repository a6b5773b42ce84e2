"""Look at a whole result once: only what may come out is in it, it has no circles, and it is not too deep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from torchkeep.errors import FormatError
from torchkeep.formats.pickles.objects import Device, Dtype, Layout, Ordered, Size, TensorRef
from torchkeep.formats.values import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAPPINGS: Final = frozenset({dict, Ordered, Counter})
SEQUENCES: Final = frozenset({list, tuple})
_SETS: Final = frozenset({set, frozenset})
_LEAVES: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, TensorRef, Dtype, Device, Layout, Size}
)


class _Open:
    """A container whose parts are being looked at.

    Attributes:
        value: the container.
        parts: what has not been looked at yet.
        height: containers below it, so far.
        bears: whether a tensor has been found in it.
    """

    __slots__ = ("bears", "height", "parts", "value")

    def __init__(self, value: Any, path: str) -> None:
        self.value = value
        self.parts: Iterator[Any] = iter(_parts(value, path))
        self.height = 0
        self.bears = False


def check(root: Any, path: str) -> dict[int, Any]:
    """Check what a pickle in the file ``path`` describes, shared parts once.

    Returns:
        The containers that hold tensors, directly or deeper, by `id`.

    Raises:
        FormatError: it holds something that is no value (a class, a storage), contains itself, or is nested
            more than 100 deep.
    """
    bearing: dict[int, Any] = {}
    if type(root) in _LEAVES:
        return bearing
    heights: dict[int, int] = {}
    around = {id(root)}
    pending = [_Open(root, path)]
    while pending:
        inner = _inner(pending[-1], heights, bearing)
        if inner is not None:
            if id(inner) in around:
                raise FormatError(f"what {path!r} holds contains itself, which is not read; save it without")
            around.add(id(inner))
            pending.append(_Open(inner, path))
        if len(pending) + pending[-1].height > MAX_DEPTH:
            raise FormatError(f"what {path!r} holds is nested more than {MAX_DEPTH} deep, which is not read")
        if inner is None:
            done = pending.pop()
            around.remove(id(done.value))
            heights[id(done.value)] = done.height
            if done.bears:
                bearing[id(done.value)] = done.value
            if pending:
                pending[-1].height = max(pending[-1].height, done.height + 1)
                pending[-1].bears |= done.bears
    return bearing


def _inner(outer: _Open, heights: dict[int, int], bearing: dict[int, Any]) -> Any:
    """Return the next container in ``outer`` that has not been looked at, or None when there is none."""
    for part in outer.parts:
        if type(part) in _LEAVES:
            outer.bears |= type(part) is TensorRef
        elif id(part) in heights:
            outer.height = max(outer.height, heights[id(part)] + 1)
            outer.bears |= id(part) in bearing
        else:
            return part
    return None


def _parts(value: Any, path: str) -> Iterable[Any]:
    kind = type(value)
    if kind in SEQUENCES:
        return value  # type: ignore[no-any-return]  # exactly one of the kinds above
    if kind in MAPPINGS:
        # Keys are plain values; that has been checked.
        metadata = value.metadata if kind is Ordered else None
        return value.values() if metadata is None else [*value.values(), metadata]
    if kind in _SETS:
        return ()
    raise FormatError(
        f"{path!r} holds a {kind.__name__} where a tensor, a container or a plain value is expected, which is not "
        "read; save a tensor or its name instead"
    )
