"""The dotted names of the tensors in nested containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchkeep.errors import FormatError
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.pickles.objects import TensorRef
from torchkeep.formats.pickles.soundness import MAPPINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_VISITS: Final = 1 << 22
"""Values looked at beyond twice all there are: a few that share each other can stand for billions."""
MAX_TEXT: Final = 1 << 28
"""Characters of all names together."""


def named_tensors(root: Any, bearing: Mapping[int, Any], path: str) -> dict[str, TensorRef]:
    """Return the tensors in a value without circles, by name, in order.

    A name is made of the keys and indices on the way, joined by dots. Where that gives two tensors one name, the
    later one is told apart by a number.

    Args:
        root: the value.
        bearing: the containers in it that hold tensors, by `id`, as `soundness.check` gives them.
        path: the file, for the error's sentence.

    Raises:
        FormatError: shared parts of the value occur so often that the names don't end.
    """
    named: dict[str, TensorRef] = {}
    doubles: dict[str, int] = {}
    length = 0
    for place, tensor in _walk(root, bearing, path):
        name = place.name
        while name in named:
            doubles[place.name] = count = doubles.get(place.name, 1) + 1
            name = f"{place.name}.{count}"
        length += len(name)
        if length > MAX_TEXT:
            raise _endless(path)
        named[name] = tensor
    return named


def _walk(root: Any, bearing: Mapping[int, Any], path: str) -> Iterator[tuple[Path, TensorRef]]:
    if type(root) is TensorRef:
        yield ROOT, root
    visits = MAX_VISITS + 2 * sum(map(len, bearing.values()))
    pending = [(ROOT, iter(_items(root)))] if id(root) in bearing else []
    while pending:
        place, items = pending[-1]
        for key, value in items:
            visits -= 1
            if type(value) is TensorRef:
                yield Path(place, key), value
            elif id(value) in bearing:
                pending.append((Path(place, key), iter(_items(value))))
                break
        else:
            pending.pop()
        if visits < 0:
            raise _endless(path)


def _items(value: Any) -> Iterable[tuple[object, Any]]:
    if type(value) in MAPPINGS:
        return value.items()  # type: ignore[no-any-return]  # exactly one of the kinds above
    return enumerate(value)


def _endless(path: str) -> FormatError:
    return FormatError(
        f"what {path!r} holds shares its parts so often that listing its tensors would not end; it is damaged, or "
        "made to do harm"
    )
