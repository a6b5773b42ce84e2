"""Look at a whole result once: only what may come out is in it, it has no circles, and it is not too deep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from torchkeep.errors import FormatError
from torchkeep.formats.pickles.objects import Device, Dtype, Layout, Ordered, Size, TensorRef, kind_of
from torchkeep.formats.values import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAPPINGS: Final = frozenset({dict, Ordered, Counter})
SEQUENCES: Final = frozenset({list, tuple})
_SETS: Final = frozenset({set, frozenset})
_CONTAINERS: Final = MAPPINGS | SEQUENCES | _SETS
_PLAIN: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, Dtype, Device, Layout, Size}
)
_LEAVES: Final = _PLAIN | {TensorRef}


class Walk(Struct):
    """How much there is in a container when shared parts are counted as often as they occur.

    Attributes:
        value: the container.
        tensors: tensors in it, directly or deeper.
        visits: values looked at on the way to all of them.
        height: containers below it.
    """

    value: Any
    tensors: int = 0
    visits: int = 0
    height: int = 0


_FLAT: Final = Walk(None)
"""Stands for any container without tensors and further containers: there may be millions."""
_SHORT: Final = 16
"""Items that are looked at again sooner than remembered."""


def check(root: Any, path: str) -> dict[int, Walk]:
    """Check what a pickle in the file ``path`` describes, looking at shared parts once.

    Returns:
        The containers that hold tensors, directly or deeper, by `id`.

    Raises:
        FormatError: it holds something that is no value (a class, a storage), contains itself, or is nested
            more than 100 deep.
    """
    done: dict[int, Walk] = {}
    if type(root) in _LEAVES:
        return done
    around = {id(root)}
    pending = [(Walk(root), iter(_parts(root, path)))]
    while pending:
        walk, parts = pending[-1]
        inner = _look(walk, parts, done)
        if inner is not None:
            if id(inner) in around:
                raise FormatError(f"what {path!r} holds contains itself, which is not read; save it without")
            around.add(id(inner))
            pending.append((Walk(inner), iter(_parts(inner, path))))
        if len(pending) + pending[-1][0].height > MAX_DEPTH:
            raise FormatError(f"what {path!r} holds is nested more than {MAX_DEPTH} deep, which is not read")
        if inner is None:
            pending.pop()
            around.remove(id(walk.value))
            done[id(walk.value)] = walk
            if pending:
                _add(pending[-1][0], walk)
    bearing = {key: walk for key, walk in done.items() if walk.tensors}
    if any(type(walk.value) is Ordered and id(walk.value.metadata) in bearing for walk in bearing.values()):
        raise FormatError(
            f"{path!r} holds tensors in the _metadata of a state_dict, which are not read; it is damaged"
        )
    return bearing


def _look(walk: Walk, parts: Iterator[Any], done: dict[int, Walk]) -> Any:
    """Count parts up to a container that has not been looked at yet, and return that; None after the last part."""
    for part in parts:
        walk.visits += 1
        if type(part) is TensorRef:
            walk.tensors += 1
        elif type(part) not in _LEAVES:
            inner = done.get(id(part))
            if inner is None and type(part) in _CONTAINERS and _is_flat(part):
                inner = _FLAT
                if len(part) > _SHORT:
                    done[id(part)] = inner
            if inner is None:
                return part
            _add(walk, inner)
    return None


def _is_flat(container: Any) -> bool:
    """Tell, quickly, whether nothing but plain values is in a container."""
    if type(container) is Ordered and container.metadata is not None:
        return False
    values = container.values() if type(container) in MAPPINGS else container
    return _PLAIN.issuperset(map(type, values))


def _add(outer: Walk, inner: Walk) -> None:
    outer.height = max(outer.height, inner.height + 1)
    if inner.tensors:
        outer.tensors += inner.tensors
        outer.visits += inner.visits


def references(root: Any, bearing: Mapping[int, Walk]) -> list[TensorRef]:
    """Return every tensor in what has been checked, shared ones once.

    Args:
        root: the value.
        bearing: what `check` gave.
    """
    if type(root) is TensorRef:
        return [root]
    parts = (part for walk in bearing.values() for part in _parts(walk.value, ""))
    return list({id(part): part for part in parts if type(part) is TensorRef}.values())


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
        f"{path!r} holds {kind_of(value)} where a tensor, a container or a plain value is expected, which is not "
        "read; save a tensor or its name instead"
    )
