"""Whether a manifest whose digest is right says something that can be. Pure: no file is looked at.

A digest tells damage, not intent: whoever writes a store can write any manifest. What passes here names files of
the store's own folder only, and bytes that lie behind a pack's header, each used once; its pieces fill each tensor
exactly, so that no element is left undefined and a small store can't ask for more memory than it has bytes.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Final, TypeAlias

from torchkeep.archive.tensors import flat_start
from torchkeep.dtypes import DTYPES
from torchkeep.errors import FormatError
from torchkeep.formats.digests import CHUNK
from torchkeep.formats.safetensors import MAX_NDIM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.archive.manifest import Body, Pack, Piece, Stored

_Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_MOST_BYTES: Final = 2**63 - 1
_MOST_WORK: Final = 5_000_000
"""Boxes that are looked at, again and again, to see whether those of one tensor fill it."""


def check_body(body: Body) -> None:
    """Raise FormatError where what a manifest says can't be."""
    ids = {pack.id for pack in body.packs}
    for pack in body.packs:
        if not _ID.fullmatch(pack.id) or pack.data > pack.size or len(ids) != len(body.packs):
            raise FormatError(f"it has a pack with the id {pack.id!r}, and that can't be")
    for name, tensor in body.tensors.items():
        _check_tensor(name, tensor, body.packs)
    _check_ranges(body)
    for alias, owner in body.aliases.items():
        if owner not in body.tensors or alias in body.tensors:
            raise FormatError(f"{alias!r} is an alias of {owner!r}, and that can't be")


def _check_tensor(name: str, tensor: Stored, packs: Sequence[Pack]) -> None:
    info = DTYPES.get(tensor.dtype)
    if info is None:
        raise FormatError(f"tensor {name!r} has the dtype {tensor.dtype!r}, which is not known here")
    itemsize = info.itemsize
    if len(tensor.shape) > MAX_NDIM or prod(tensor.shape) * itemsize > _MOST_BYTES:
        raise FormatError(f"tensor {name!r} has a shape of {len(tensor.shape)} dimensions that can't be")
    for piece in tensor.pieces:
        if not _fits(piece, tensor, packs, itemsize):
            raise FormatError(f"the piece of tensor {name!r} at {list(piece.offset)} does not fit")
    if not _are_filled(tensor):
        raise FormatError(f"the pieces of tensor {name!r} do not fill its shape {list(tensor.shape)}")


def _check_ranges(body: Body) -> None:
    used = sorted(
        (piece.pack, piece.start, piece.stop) for tensor in body.tensors.values() for piece in tensor.pieces
    )
    for before, after in pairwise(used):
        if before[0] == after[0] and before[2] > after[1]:
            shared = f"bytes {after[1]} to {before[2]} of the pack {body.packs[before[0]].id!r}"
            raise FormatError(f"two pieces share {shared}")


def _fits(piece: Piece, tensor: Stored, packs: Sequence[Pack], itemsize: int) -> bool:
    offset, shape, number, start, stop = piece.offset, piece.shape, piece.pack, piece.start, piece.stop
    if not len(offset) == len(shape) == len(tensor.shape) or number >= len(packs):
        return False
    if any(offset) or shape != tensor.shape:
        for first, size, whole in zip(offset, shape, tensor.shape, strict=True):
            if first + size > whole:
                return False
    pack, nbytes = packs[number], prod(shape) * itemsize
    return 0 < nbytes <= CHUNK and stop - start == nbytes and pack.data <= start <= stop <= pack.size


def _are_filled(tensor: Stored) -> bool:
    """Tell whether the pieces fill the tensor without overlapping."""
    pieces = tensor.pieces
    if len(pieces) == 1:
        return pieces[0].shape == tensor.shape
    if sum(prod(piece.shape) for piece in pieces) != prod(tensor.shape):
        return False
    starts = [flat_start(tensor.shape, piece.offset, piece.shape, 1) for piece in pieces]
    if None in starts:
        return _fill(tensor.shape, [(piece.offset, piece.shape) for piece in pieces], [_MOST_WORK])
    flat = sorted(
        (start, prod(piece.shape)) for start, piece in zip(starts, pieces, strict=True) if start is not None
    )
    return all(before[0] + before[1] == after[0] for before, after in pairwise(flat))


def _fill(shape: tuple[int, ...], boxes: Sequence[_Box], work: list[int]) -> bool:
    """Tell whether boxes fill a shape without overlapping, slab by slab along the first dimension."""
    if not shape:
        return len(boxes) == 1
    edges = sorted({edge for offset, box in boxes for edge in (offset[0], offset[0] + box[0])})
    if not edges or (edges[0], edges[-1]) != (0, shape[0]):
        return False
    waiting = sorted(boxes, key=lambda box: -box[0][0])
    active: list[_Box] = []
    for edge in edges[:-1]:
        active = [box for box in active if box[0][0] + box[1][0] > edge]
        while waiting and waiting[-1][0][0] == edge:
            active.append(waiting.pop())
        work[0] -= len(active) + 1
        if work[0] < 0:
            raise FormatError("its tensors are cut into too many pieces that cross each other")
        if not _fill(shape[1:], [(offset[1:], box[1:]) for offset, box in active], work):
            return False
    return True
