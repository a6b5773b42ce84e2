"""Decide what a commit need not write again. Pure: nothing here touches a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.archive.marks import BEGINNING
from torchkeep.storage.crews import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchkeep.archive.manifest import Manifest, Piece
    from torchkeep.archive.marks import Mark, Marks
    from torchkeep.archive.tensors import Wanted
    from torchkeep.storage.buffers import Buffer

_THREADS: Final = 2
_ALONE: Final = 4 * 1024 * 1024
"""Fewer bytes than this are compared without a second thread."""
_SMALL: Final = 64 * 1024
"""Pieces of fewer bytes are not worth one: they take time that threads can't share."""


def unchanged(wanted: Sequence[Wanted], base: Manifest, marks: Marks) -> dict[int, Piece]:
    """Return the pieces of ``base`` that have the same bytes as wanted ones, by position among these.

    Args:
        wanted: pieces of the state to be committed.
        base: the last committed checkpoint.
        marks: of the pieces that this process wrote or verified; others don't count.
    """
    # Nearly all tensors of most states are one piece.
    parts = {
        (name, piece.offset): piece
        for name, stored in base.tensors.items()
        if len(stored.pieces) > 1
        for piece in stored.pieces
    }
    known = [marks.get(pack.id, {}) for pack in base.body.packs]
    candidates: list[tuple[int, Piece, Mark]] = []
    for position, want in enumerate(wanted):
        stored = base.tensors.get(want.tensor)
        if stored is None or stored.dtype != want.dtype or not stored.pieces:
            continue
        piece = stored.pieces[0] if len(stored.pieces) == 1 else parts.get((want.tensor, want.offset))
        if piece is None or piece.shape != want.shape or piece.offset != want.offset:
            continue
        mark = known[piece.pack].get(piece.start)
        if mark is not None:
            candidates.append((position, piece, mark))

    found: dict[int, Piece] = {}

    def compare(part: Sequence[tuple[int, Piece, Mark]], buffer: Buffer) -> None:
        found.update({position: piece for position, piece, mark in part if _same(wanted[position], mark, buffer)})

    sizes = [wanted[position].nbytes for position, _, _ in candidates]
    threads = 1 if sum(nbytes for nbytes in sizes if nbytes >= _SMALL) < _ALONE else _THREADS
    shares = [candidates[first::threads] for first in range(threads)]
    run(shares, compare, max(sizes, default=0), threads=threads)
    return dict(sorted(found.items()))


def _same(want: Wanted, mark: Mark, buffer: Buffer) -> bool:
    """Compare the beginning first."""
    if isinstance(want.source, memoryview):
        return mark.begins(want.source) and mark.is_of(want.source)
    room = buffer.view[: want.nbytes]
    want.give(0, room[:BEGINNING], buffer.address)
    if not mark.begins(room):
        return False
    if want.nbytes > BEGINNING:
        want.give(0, room, buffer.address)
    return mark.is_of(room)


def worth_keeping(found: Mapping[int, Piece], base: Manifest) -> dict[int, Piece]:
    """Leave out pieces in packs of which less than half would still be used: that bounds dead space."""
    live: dict[int, int] = {}
    for piece in {(piece.pack, piece.start): piece for piece in found.values()}.values():
        live[piece.pack] = live.get(piece.pack, 0) + piece.stop - piece.start
    packs = base.body.packs
    kept = {pack for pack, nbytes in live.items() if 2 * nbytes >= packs[pack].size - packs[pack].data}
    return {position: piece for position, piece in found.items() if piece.pack in kept}
