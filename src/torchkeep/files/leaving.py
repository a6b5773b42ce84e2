"""What a conversion leaves behind, in phrases for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.archive.described import Described as DescribedState
from torchkeep.dtypes import DTYPES
from torchkeep.files.extracting import left_out_of
from torchkeep.formats.contents import Contents
from torchkeep.formats.sharded import Sharded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torchkeep.formats.pickles import Pickled
    from torchkeep.formats.pickles.objects import TensorRef
    from torchkeep.formats.sharded import Described
    from torchkeep.tensors.elements import Elements

_SHOWN: Final = 6


def left_behind(elements: Elements) -> tuple[str, ...]:
    """Say what a selection or a rename leaves behind besides tensors."""
    found = elements.described
    if isinstance(found, Sharded):
        return ()
    if isinstance(found, DescribedState):
        return left_out_of(found)
    if not isinstance(found, Contents):
        plain = isinstance(found.root, dict) and list(found.root) == list(found.tensors)
        return () if plain else ("the containers and plain values around the tensors",)
    document = found.document
    if document is None:
        return ()
    module = document.module
    return tuple(
        what
        for what, is_there in (
            ("the containers and plain values around the tensors", document.root == "tree"),
            ("extra state", module is not None and bool(module.extra)),
            ("the recipe", bytes(document.recipe) != b"null"),
        )
        if is_there
    )


def unshared(elements: Elements, names: Collection[str]) -> tuple[str, ...]:
    """Say which of these tensors overlap in memory without being tied: each is written on its own.

    Args:
        elements: the source.
        names: owners' names of those that are written.
    """
    found = elements.described
    if isinstance(found, DescribedState):
        return ()
    parts: Iterable[Described] = found.parts.values() if isinstance(found, Sharded) else [found]
    shared = [name for part in parts for name in _overlapping(part, names)]
    if not shared:
        return ()
    more = len(shared) - _SHOWN
    listed = ", ".join(shared[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return (f"that tensors overlap in memory: each is written on its own ({listed})",)


def _overlapping(part: Described, names: Collection[str]) -> list[str]:
    if not isinstance(part, Contents):
        return _in_storages(part, names)
    groups: dict[str, list[str]] = {}
    for name, view in (part.document.views if part.document else {}).items():
        groups.setdefault(view.base, [view.base]).append(name)
    chosen = ([name for name in group if name in names] for group in groups.values())
    return [name for group in chosen if len(group) > 1 for name in group]


def _in_storages(pickled: Pickled, names: Collection[str]) -> list[str]:
    spans = sorted(
        (tensor.storage.key, *_span(tensor), name)
        for name, tensor in _owners(pickled).items()
        if name in names and tensor.storage is not None and tensor.numel
    )
    found: dict[str, None] = {}
    reached: tuple[str, int, str] = ("", 0, "")
    for key, start, stop, name in spans:
        if key == reached[0] and start < reached[1]:
            found.update(dict.fromkeys((reached[2], name)))
        if key != reached[0] or stop > reached[1]:
            reached = key, stop, name
    return list(found)


def _owners(pickled: Pickled) -> Mapping[str, TensorRef]:
    return {owner: pickled.tensors[owner] for owner in pickled.ties}


def _span(tensor: TensorRef) -> tuple[int, int]:
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.start, tensor.start + (last + 1) * DTYPES[tensor.dtype].itemsize
