"""The dotted names of the tensors in nested containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchkeep.errors import FormatError
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.pickles.objects import TensorRef
from torchkeep.formats.pickles.soundness import MAPPINGS
from torchkeep.formats.safetensors import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torchkeep.formats.pickles.soundness import Walk

MAX_TEXT: Final = 1 << 28
"""Characters of all names together."""
_SHARED: Final = 4
"""Times that a file's values may occur on average, when shared ones are counted each time."""
_FREE: Final = 1 << 16


def named_tensors(root: Any, bearing: Mapping[int, Walk], path: str) -> dict[str, TensorRef]:
    """Return the tensors in a value without circles, by name, in order.

    A name is made of the keys and indices on the way, joined by dots, as `torchkeep.save` would name it. Where
    that gives two tensors one name, the later one is told apart by a number.

    Args:
        root: the value.
        bearing: the containers in it that hold tensors, by `id`, as `soundness.check` gives them.
        path: the file, for the error's sentence.

    Raises:
        FormatError: shared parts of the value occur so often that the names don't end.
    """
    if type(root) is TensorRef:
        return {"tensor": root}
    if id(root) not in bearing:
        return {}
    # A few containers that share each other can stand for billions of places.
    values = sum(len(walk.value) for walk in bearing.values())
    if bearing[id(root)].visits > _SHARED * values + _FREE:
        raise _endless(path)
    named: dict[str, TensorRef] = {}
    doubles: dict[str, int] = {}
    length = 0
    for place, tensor in _walk(root, bearing):
        plain = name = place.name
        while name in named or name == METADATA_KEY:
            doubles[plain] = doubles.get(plain, 1) + 1
            name = f"{plain}#{doubles[plain]}"
        length += len(name)
        if length > MAX_TEXT:
            raise _endless(path)
        named[name] = tensor
    return named


def _walk(root: Any, bearing: Mapping[int, Walk]) -> Iterator[tuple[Path, TensorRef]]:
    pending = [(ROOT, iter(_items(root)))]
    while pending:
        place, items = pending[-1]
        for key, value in items:
            if type(value) is TensorRef:
                yield Path(place, key), value
            elif id(value) in bearing:
                pending.append((Path(place, key), iter(_items(value))))
                break
        else:
            pending.pop()


def _items(value: Any) -> Iterable[tuple[object, Any]]:
    if type(value) in MAPPINGS:
        return value.items()  # type: ignore[no-any-return]  # exactly one of the kinds above
    return enumerate(value)


def _endless(path: str) -> FormatError:
    return FormatError(
        f"what {path!r} holds shares its parts so often that listing its tensors would not end; it is damaged, or "
        "made to do harm"
    )
