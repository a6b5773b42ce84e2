"""Read any part of any tensor of a checkpoint, in little memory: piece by piece, verified.

A tensor that is not kept in pieces of its row-major order (one of several ranks, say), or in larger ones than
usual, is read whole when a part of it is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import torch

from torchkeep.archive.described import Described
from torchkeep.archive.lines import damaged
from torchkeep.archive.tensors import flat_start
from torchkeep.dtypes import DTYPES
from torchkeep.errors import MissingFileError
from torchkeep.formats.digests import CHUNK, digest
from torchkeep.tensors.elements import Elements, Scratch

if TYPE_CHECKING:
    from contextlib import ExitStack

    from torch import Tensor

    from torchkeep.archive import Archive, Manifest, Piece
    from torchkeep.storage.base import ReadableFile

_OPEN: Final = 16
"""Packs that are kept open."""


class CheckpointElements(Elements):
    """The elements of the tensors in a checkpoint.

    Attributes:
        archive: the store.
        manifest: of the checkpoint.
    """

    described: Described

    def __init__(self, archive: Archive, manifest: Manifest, scratch: Scratch, stack: ExitStack) -> None:
        self.archive, self.manifest = archive, manifest
        self.described = Described(manifest)
        self.listing = self.described.listing
        self._scratch = scratch
        self._files: dict[str, ReadableFile] = {}
        self._pieces: tuple[str, list[int], list[Piece]] = ("", [], [])
        self._whole: tuple[str, Tensor] = ("", torch.empty(0))
        stack.callback(self._close)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return bytes of a tensor's elements."""
        owner = self.described.owner(name)
        starts, pieces = self._flat(owner)
        if not pieces:
            return self._of_whole(owner)[start:stop]
        parts: list[Tensor] = []
        for index in range(bisect_right(starts, start) - 1, len(pieces)):
            begin, piece = starts[index], pieces[index]
            if begin >= stop:
                break
            part = self._piece(owner, piece)[max(start - begin, 0) : stop - begin]
            parts.append(part if begin + piece.stop - piece.start >= stop and not parts else part.clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def same_as(self, name: str, other: Elements, theirs: str) -> bool | None:
        """Tell it by the pieces' digests: what both keep in pieces cut alike need not be read."""
        if not isinstance(other, CheckpointElements):
            return None
        one, two = (
            {(piece.offset, piece.shape): piece.digest for piece in side.manifest.tensors[owner].pieces}
            for side, owner in ((self, self.described.owner(name)), (other, other.described.owner(theirs)))
        )
        return one == two if one.keys() == two.keys() else None

    def finish(self) -> None:
        """Do nothing: packs never change, and every piece was compared with its digest."""

    def _flat(self, owner: str) -> tuple[list[int], list[Piece]]:
        """Return a tensor's pieces by their first byte in row-major order; none where they have no such order."""
        if self._pieces[0] != owner:
            stored = self.manifest.tensors[owner]
            itemsize = DTYPES[stored.dtype].itemsize
            found: list[tuple[int, Piece]] = []
            for piece in stored.pieces:
                start = flat_start(stored.shape, piece.offset, piece.shape, itemsize)
                if start is None or piece.stop - piece.start > CHUNK:
                    found = []
                    break
                found.append((start, piece))
            found.sort(key=lambda pair: pair[0])
            self._pieces = owner, [start for start, _ in found], [piece for _, piece in found]
        return self._pieces[1:]

    def _of_whole(self, owner: str) -> Tensor:
        if self._whole[0] != owner:
            found = self.archive.tensor(self.manifest, owner)
            self._whole = owner, torch.frombuffer(found, dtype=torch.uint8) if found else torch.empty(0)
        return self._whole[1]

    def _piece(self, owner: str, piece: Piece) -> Tensor:
        file = self._file(owner, piece)
        if file.size < piece.stop:
            raise damaged(file.path, piece.start, piece.stop, f"the file has only {file.size} bytes", owner)

        def check(view: memoryview) -> None:
            if digest(view).hex() != piece.digest:
                raise damaged(file.path, piece.start, piece.stop, "the digest of these bytes differs", owner)

        return self._scratch.fill(file, piece.start, piece.stop - piece.start, check)

    def _file(self, owner: str, piece: Piece) -> ReadableFile:
        pack = self.manifest.body.packs[piece.pack].id
        file = self._files.pop(pack, None)
        if file is None:
            if len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files))).close()
            try:
                file = self.archive.storage.open(self.archive.pack_path(pack))
            except MissingFileError:
                # The archive tells what was lost from what was pruned.
                self.archive.read(self.manifest, [owner], lambda *_: None)
                raise
        self._files[pack] = file
        return file

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
