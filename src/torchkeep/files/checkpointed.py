"""What a model is loaded from when it is kept in a store: a checkpoint, or one module's part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.archive.described import Described, tensors_in
from torchkeep.files.loading import values_at
from torchkeep.files.sources import Offer, Source
from torchkeep.formats.document import decode_json
from torchkeep.names import join
from torchkeep.tensors.archived import fill_archived, read_archived
from torchkeep.tensors.reading import is_makeable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.archive import Archive, Manifest


class CheckpointSource(Source):
    """A checkpoint; nothing but its manifest is read before tensors are asked for.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        part: the prefix of the module whose tensors these are, under names without it; None for all tensors under
            their full names.

    Attributes:
        described: what the manifest says.

    Raises:
        NewerFormatError: a later version described the state.
        FormatError: what the manifest says contradicts itself.
    """

    def __init__(self, archive: Archive, manifest: Manifest, part: str | None = None) -> None:
        self._archive, self._manifest = archive, manifest
        self.described = Described(manifest)
        self.text = repr(self.described.source)
        self.verified = True
        inside = f"{part}." if part else ""
        self.offers = {
            name[len(inside) :]: self._offer(self.described.owner(name))
            for name in self.described.names
            if name.startswith(inside)
        }
        modules = self.described.tree.modules
        self._extra = {
            join(prefix, key)[len(inside) :]: raw
            for prefix, facts in modules.items()
            if part is None or prefix == part
            for key, raw in facts.extra.items()
        }
        self.extra = tuple(self._extra)

    def _offer(self, owner: str) -> Offer:
        stored = self._manifest.tensors[owner]
        obstacle = None if is_makeable(stored.dtype) else f"torch {torch.__version__} can't make its dtype"
        return Offer(owner, stored.shape, stored.dtype, obstacle)

    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Read tensors."""
        return read_archived(self._archive, self._manifest, owners)

    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Read tensors straight into their targets."""
        try:
            fill_archived(self._archive, self._manifest, pairs, begun)
        finally:  # a load that failed midway has changed some
            for _, target in pairs:
                torch.autograd.graph.increment_version(target)

    def extra_state(self) -> Mapping[str, Any]:
        """Read modules' extra state."""
        nodes = {key: decode_json(raw) for key, raw in self._extra.items()}
        names = [name for node in nodes.values() for name in tensors_in(node) if self._has(name)]
        tensors = self.tensors(names)
        return {key: values_at(self._manifest.path, raw, tensors) for key, raw in self._extra.items()}

    def _has(self, name: str) -> bool:
        return name in self._manifest.tensors or name in self._manifest.aliases

    def same(self, one: str, other: str) -> bool:
        """Tell whether two owners' tensors have the same bits: by their digests where they were cut alike."""
        left, right = self._manifest.tensors[one], self._manifest.tensors[other]
        if (left.dtype, left.shape) != (right.dtype, right.shape):
            return False
        mine, theirs = ({(p.offset, p.shape): p.digest for p in stored.pieces} for stored in (left, right))
        return mine == theirs if mine.keys() == theirs.keys() else super().same(one, other)
