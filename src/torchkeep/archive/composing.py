"""Compose the manifest of a commit from what is kept of the last one and what was written. Pure."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from torchkeep.archive.manifest import Body, Pack, Piece, Stored
from torchkeep.archive.packs import Packed, pieces_in
from torchkeep.errors import UnsavableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torchkeep.archive.manifest import Manifest
    from torchkeep.archive.publishing import Ready
    from torchkeep.archive.tensors import TensorBytes, Wanted


class Content(NamedTuple):
    """What a checkpoint holds beside its tensors, encoded."""

    aliases: dict[str, str]
    tree: msgspec.Raw
    recipe: msgspec.Raw
    versions: dict[str, str]

    @classmethod
    def of(
        cls, aliases: Mapping[str, str] | None, tree: Any, recipe: Any, versions: Mapping[str, str] | None
    ) -> Content:
        """Encode it; UnsavableError where some text can't be."""
        try:
            raw = [msgspec.Raw(msgspec.json.encode(node)) for node in (tree, recipe)]
        except UnicodeEncodeError as cause:
            raise _unsavable(cause) from cause
        return cls(dict(aliases or {}), raw[0], raw[1], dict(versions or {}))


def check_names(tensors: Iterable[str], aliases: Iterable[str]) -> None:
    """Raise UnsavableError where a name can't be written down."""
    for name in chain(tensors, aliases):
        try:
            name.encode()
        except UnicodeEncodeError as cause:
            raise _unsavable(cause) from cause


def _unsavable(cause: UnicodeEncodeError) -> UnsavableError:
    return UnsavableError(
        f"{cause.object!r} can't be saved: it has a lone surrogate, which no UTF-8 can hold; change it"
    )


class Filled(NamedTuple):
    """A pack in staging.

    Attributes:
        ready: the file.
        positions: which of the wanted pieces it holds.
        packed: what was written.
    """

    ready: Ready
    positions: Sequence[int]
    packed: Packed


def is_same(base: Manifest, step: int, tensors: Mapping[str, TensorBytes], content: Content) -> bool:
    """Tell whether a checkpoint, in which all pieces were found, is the same in everything else but metrics."""
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return (
        step == base.step
        and kinds == {name: (stored.dtype, stored.shape) for name, stored in base.tensors.items()}
        and content.aliases == base.aliases
        and (bytes(content.tree), bytes(content.recipe)) == (bytes(base.body.tree), bytes(base.body.recipe))
    )


def compose_body(
    tensors: Mapping[str, TensorBytes],
    content: Content,
    wanted: Sequence[Wanted],
    filled: Sequence[Filled],
    *,
    kept: Mapping[int, Piece],
    base: Manifest | None,
) -> Body:
    """Return the second line of the manifest.

    Args:
        tensors: all that the checkpoint holds.
        content: what it holds beside them.
        wanted: the tensors' pieces.
        filled: the packs that were written.
        kept: pieces of ``base`` that are used again, by position in ``wanted``.
        base: the checkpoint that these are of.
    """
    packs: list[Pack] = [one.packed.pack for one in filled]
    places: dict[int, Piece] = {}
    for number, one in enumerate(filled):
        places.update(
            zip(one.positions, pieces_in(one.packed, [wanted[at] for at in one.positions], number), strict=True)
        )
    if base is not None:
        used = sorted({piece.pack for piece in kept.values()})
        numbers = {pack: len(packs) + index for index, pack in enumerate(used)}
        packs.extend(base.body.packs[pack] for pack in used)
        for position, piece in kept.items():
            places[position] = msgspec.structs.replace(piece, pack=numbers[piece.pack])
    pieces: dict[str, list[Piece]] = {}
    for position, want in enumerate(wanted):
        pieces.setdefault(want.tensor, []).append(places[position])
    stored = {
        name: Stored(tensor.dtype, tensor.shape, tuple(pieces.get(name, ()))) for name, tensor in tensors.items()
    }
    return Body(stored, tuple(packs), content.aliases, content.tree, content.recipe, content.versions)
