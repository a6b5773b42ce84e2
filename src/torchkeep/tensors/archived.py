"""Read tensors of a checkpoint, each byte verified: new ones, or straight into those that are there."""

from __future__ import annotations

from ctypes import c_char, memmove
from typing import TYPE_CHECKING

import torch

from torchkeep.archive.tensors import flat_start
from torchkeep.dtypes import DTYPES
from torchkeep.errors import FormatError
from torchkeep.tensors.copying import cast_in, copy_in, empty, plain_address
from torchkeep.tensors.dtypes import torch_dtype
from torchkeep.tensors.reading import is_makeable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from torchkeep.archive.manifest import Manifest, Piece, Stored
    from torchkeep.archive.reading import Archive


def read_archived(
    archive: Archive, manifest: Manifest, names: Iterable[str], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Read tensors of a checkpoint.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        names: owners or aliases.
        device: where the tensors go.

    Returns:
        Each tensor by name; a tie is one object.

    Raises:
        DamageError: bytes are not what was written; tensor, file and byte range are named.
        MissingCheckpointError: the checkpoint was pruned meanwhile.
        FormatError: one has a dtype that this torch can't make.
        StorageError: a pack can't be read.
    """
    owners = {name: manifest.aliases.get(name, name) for name in names}
    made: dict[str, Tensor] = {}
    archive.check_sizes(manifest, owners.values())  # before memory is taken for what may not be there
    for owner in owners.values():
        if owner not in made:
            made[owner] = _made(owner, manifest.tensors[owner], manifest.path, device)
    fill_archived(archive, manifest, list(made.items()))
    return {name: made[owner] for name, owner in owners.items()}


def fill_archived(
    archive: Archive,
    manifest: Manifest,
    pairs: Sequence[tuple[str, Tensor]],
    begun: Callable[[int], object] = bool,
) -> None:
    """Read tensors of a checkpoint into tensors of their shape, whatever their device, dtype and strides.

    Where a target's elements lie in row-major order in the CPU's memory, bytes are read to where they belong: the
    target of which damage is told may hold damaged bytes then. Autograd is told nothing.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        pairs: owner's name and target; values are converted where dtypes differ.
        begun: is told a pair's position before its target changes, perhaps repeatedly, from any thread.

    Raises:
        DamageError, MissingCheckpointError, StorageError: as for `read_archived`.
    """
    targets: dict[str, list[_Target]] = {}
    for position, (owner, tensor) in enumerate(pairs):
        targets.setdefault(owner, []).append(_Target(position, manifest.tensors[owner], tensor))

    def take(name: str, piece: Piece, address: int) -> None:
        for target in targets[name]:
            begun(target.position)
            target.take(piece, address)

    def room(name: str, piece: Piece) -> memoryview | None:
        found = targets[name]
        view = found[0].room(piece) if len(found) == 1 else None
        if view is not None:
            begun(found[0].position)
        return view

    archive.read(manifest, targets, take, room)


class _Target:
    """Puts pieces of one tensor where they belong.

    Attributes:
        position: of its pair.
    """

    __slots__ = ("_dtype", "_pointer", "_stored", "_tensor", "position")

    def __init__(self, position: int, stored: Stored, tensor: Tensor) -> None:
        self.position, self._stored, self._tensor = position, stored, tensor
        self._dtype = torch_dtype(stored.dtype)
        self._pointer = plain_address(tensor) if tensor.dtype == self._dtype else None

    def take(self, piece: Piece, address: int) -> None:
        """Copy a piece from an address."""
        nbytes = piece.stop - piece.start
        place = self._place(piece)
        if place is not None:
            memmove(place, address, nbytes)
            return
        box = self._tensor.detach()
        for dim, (first, size) in enumerate(zip(piece.offset, piece.shape, strict=True)):
            box = box.narrow(dim, first, size)
        if self._dtype == box.dtype:
            copy_in(box, 0, nbytes, address)
        else:
            assert self._dtype is not None
            cast_in(box, self._dtype, 0, nbytes, address)

    def room(self, piece: Piece) -> memoryview | None:
        """Return the target's own memory for a piece, where its bytes lie together there."""
        place = self._place(piece)
        if place is None:
            return None
        return memoryview((c_char * (piece.stop - piece.start)).from_address(place)).cast("B")

    def _place(self, piece: Piece) -> int | None:
        if self._pointer is None:
            return None
        itemsize = DTYPES[self._stored.dtype].itemsize
        start = flat_start(self._stored.shape, piece.offset, piece.shape, itemsize)
        return None if start is None else self._pointer + start


def _made(name: str, stored: Stored, path: str, device: str | torch.device) -> Tensor:
    dtype = torch_dtype(stored.dtype)
    if dtype is None or not is_makeable(stored.dtype):
        raise FormatError(
            f"tensor {name!r} in {path!r} has the dtype {stored.dtype}, which torch {torch.__version__} can't make"
        )
    return empty(stored.shape, dtype, device)
