"""Decide what a commit need not write again. Pure: nothing here touches a disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from torchkeep.archive.packs import MARK_BYTES, beginning_at, mark_of
from torchkeep.formats.digests import digest
from torchkeep.storage.buffers import Buffer, memory_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchkeep.archive.manifest import Manifest, Piece
    from torchkeep.archive.tensors import Wanted

_THREADS: Final = 2
_ALONE: Final = 4 * 1024 * 1024
"""Fewer bytes than this are compared without a second thread."""
_SMALL: Final = 64 * 1024
"""Pieces of fewer bytes are not worth one: they take time that threads can't share."""


def unchanged(wanted: Sequence[Wanted], base: Manifest, marks: Mapping[tuple[str, int], int]) -> dict[int, Piece]:
    """Return the pieces of ``base`` that have the same bytes as wanted ones, by position among these.

    Args:
        wanted: pieces of the state to be committed.
        base: the last committed checkpoint.
        marks: marks of the pieces that this process wrote or verified, by pack and first byte; others don't count.
    """
    pieces = {
        (name, piece.offset): (tensor.dtype, piece)
        for name, tensor in base.tensors.items()
        for piece in tensor.pieces
    }
    ids = [pack.id for pack in base.body.packs]
    candidates: list[tuple[int, Piece, int]] = []
    for position, want in enumerate(wanted):
        dtype, piece = pieces.get((want.tensor, want.offset), ("", None))
        if piece is None or dtype != want.dtype or piece.shape != want.shape:
            continue
        mark = marks.get((ids[piece.pack], piece.start))
        if mark is not None:
            candidates.append((position, piece, mark))

    def same(part: Sequence[tuple[int, Piece, int]]) -> dict[int, Piece]:
        buffer = Buffer(max((wanted[position].nbytes for position, _, _ in part), default=0))
        return {position: piece for position, piece, mark in part if _same(wanted[position], piece, mark, buffer)}

    sizes = [wanted[position].nbytes for position, _, _ in candidates]
    if sum(nbytes for nbytes in sizes if nbytes >= _SMALL) < _ALONE:
        return same(candidates)
    with ThreadPoolExecutor(_THREADS) as crew:
        found: dict[int, Piece] = {}
        for part in crew.map(same, [candidates[first::_THREADS] for first in range(_THREADS)]):
            found.update(part)
    return found


def _same(want: Wanted, piece: Piece, mark: int, buffer: Buffer) -> bool:
    """Compare the beginning first: what training changes, it changes there already."""
    nbytes, address = want.nbytes, want.source
    if not isinstance(address, int):
        address = buffer.address
        want.give(0, min(nbytes, MARK_BYTES), address)
    beginning = beginning_at(address, nbytes)
    if mark_of(beginning) != mark:
        return False
    if len(beginning) == nbytes:
        return digest(beginning).hex() == piece.digest
    if address == buffer.address:
        want.give(0, nbytes, address)
    return digest(memory_at(address, nbytes)).hex() == piece.digest


def worth_keeping(found: Mapping[int, Piece], base: Manifest) -> dict[int, Piece]:
    """Leave out pieces in packs of which less than half would still be used: that bounds dead space."""
    live: dict[int, int] = {}
    for piece in {(piece.pack, piece.start): piece for piece in found.values()}.values():
        live[piece.pack] = live.get(piece.pack, 0) + piece.stop - piece.start
    packs = base.body.packs
    kept = {pack for pack, nbytes in live.items() if 2 * nbytes >= packs[pack].size - packs[pack].data}
    return {position: piece for position, piece in found.items() if piece.pack in kept}
