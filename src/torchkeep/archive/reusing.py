"""Decide what a commit need not write again. Pure: nothing here touches a disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char
from typing import TYPE_CHECKING, Final

from torchkeep.archive.packs import MARK_BYTES, mark_of
from torchkeep.formats.digests import digest
from torchkeep.storage.buffers import Buffer
from torchkeep.storage.transfer import THREADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchkeep.archive.manifest import Manifest, Piece
    from torchkeep.archive.tensors import Wanted

_ALONE: Final = 4 * 1024 * 1024
"""Fewer bytes than this are compared without a second thread."""


def unchanged(
    wanted: Sequence[Wanted], base: Manifest, marks: Mapping[tuple[str, int], bytes]
) -> dict[int, Piece]:
    """Return the pieces of ``base`` that have the same bytes as wanted ones, by position among these.

    Args:
        wanted: pieces of the state to be committed.
        base: the last committed checkpoint.
        marks: marks of the pieces that this process wrote or verified, by pack and first byte; others don't count.
    """
    pieces = {
        (name, tensor.dtype, piece.offset, piece.shape): piece
        for name, tensor in base.tensors.items()
        for piece in tensor.pieces
    }
    candidates: list[tuple[int, Piece, bytes]] = []
    for position, want in enumerate(wanted):
        piece = pieces.get((want.tensor, want.dtype, want.offset, want.shape))
        mark = piece and marks.get((base.body.packs[piece.pack].id, piece.start))
        if piece and mark:
            candidates.append((position, piece, mark))

    def same(part: Sequence[tuple[int, Piece, bytes]]) -> dict[int, Piece]:
        buffer = Buffer(max((wanted[position].nbytes for position, _, _ in part), default=0))
        return {position: piece for position, piece, mark in part if _same(wanted[position], piece, mark, buffer)}

    if sum(wanted[position].nbytes for position, _, _ in candidates) < _ALONE:
        return same(candidates)
    with ThreadPoolExecutor(THREADS) as crew:
        found: dict[int, Piece] = {}
        for part in crew.map(same, [candidates[first::THREADS] for first in range(THREADS)]):
            found.update(part)
    return found


def _same(want: Wanted, piece: Piece, mark: bytes, buffer: Buffer) -> bool:
    """Compare the beginning first: what training changes, it changes there already."""
    beginning = min(want.nbytes, MARK_BYTES)
    if mark_of(_view(want, beginning, buffer)) != mark:
        return False
    if beginning == want.nbytes:
        return mark.hex() == piece.digest
    return digest(_view(want, want.nbytes, buffer)).hex() == piece.digest


def _view(want: Wanted, nbytes: int, buffer: Buffer) -> memoryview:
    """Return the first bytes of a piece: where they are, or copied into the buffer."""
    if want.address is not None:
        return memoryview((c_char * nbytes).from_address(want.address)).cast("B")
    want.give(nbytes, buffer.address)
    return buffer.view[:nbytes]


def worth_keeping(found: Mapping[int, Piece], base: Manifest) -> dict[int, Piece]:
    """Leave out pieces in packs of which less than half would still be used: that bounds dead space."""
    live: dict[int, int] = {}
    for piece in {(piece.pack, piece.start): piece for piece in found.values()}.values():
        live[piece.pack] = live.get(piece.pack, 0) + piece.stop - piece.start
    packs = base.body.packs
    kept = {pack for pack, nbytes in live.items() if 2 * nbytes >= packs[pack].size - packs[pack].data}
    return {position: piece for position, piece in found.items() if piece.pack in kept}
