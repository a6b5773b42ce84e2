"""What a model is loaded from when it is kept in a store: a checkpoint, or one module's part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from torchkeep.archive.described import Described, tensors_in
from torchkeep.errors import FormatError, SourceError
from torchkeep.files.loading import values_at
from torchkeep.files.offering import Offer, Source
from torchkeep.formats.document import decode_json
from torchkeep.names import join
from torchkeep.tensors.archived import fill_archived, read_archived
from torchkeep.tensors.reading import is_makeable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from torchkeep.archive import Archive, Manifest
    from torchkeep.tensors.checkpoints import Checkpoint

MODEL: Final = "model"
"""The part of a training state that a model is loaded from."""
_SHOWN: Final = 10


class CheckpointSource(Source):
    """A checkpoint; nothing but its manifest is read before tensors are asked for.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        part: the prefix of the module whose tensors these are, under names without it; None for all tensors under
            their full names.
        described: what the manifest says, where that was found out already.

    Attributes:
        described: the same.

    Raises:
        NewerFormatError: a later version described the state.
        FormatError: what the manifest says contradicts itself.
    """

    def __init__(
        self, archive: Archive, manifest: Manifest, part: str | None = None, described: Described | None = None
    ) -> None:
        self._archive, self._manifest = archive, manifest
        self.described = described or Described(manifest)
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


def of_checkpoint(archive: Archive, manifest: Manifest, *, whole: bool) -> CheckpointSource:
    """Return the source for a checkpoint: all of it, or the module in it that a model is loaded from.

    Raises:
        SourceError: it holds several modules, and none is its model.
        NewerFormatError, FormatError: as for `CheckpointSource`.
    """
    described = Described(manifest)
    return CheckpointSource(archive, manifest, None if whole else model_part(described), described)


def model_part(described: Described) -> str | None:
    """Return the prefix of a checkpoint's model, or else of its only module; None where it holds no module.

    Raises:
        SourceError: it holds several, and none is called ``model``.
    """
    parts = list(described.tree.modules)
    if MODEL in parts or not parts:
        return MODEL if parts else None
    if len(parts) > 1:
        raise SourceError(
            f"{described.source} holds several modules ({', '.join(parts[:_SHOWN])}"
            f"{', ...' if len(parts) > _SHOWN else ''}), and none is called {MODEL!r}; say which one is meant, "
            f"such as rename={{'{parts[0]}.': ''}}, unexpected='ignore'"
        )
    return parts[0]


def load_checkpoint(checkpoint: Checkpoint, chosen: Collection[str] | None, device: str | torch.device) -> Any:
    """Return a checkpoint's state: values and containers as they were, each module as the flat dict of its state.

    Args:
        checkpoint: the checkpoint.
        chosen: names of tensors; then the result is a flat dict of them.
        device: where the tensors go.

    Raises:
        DamageError, FormatError, MissingCheckpointError, StorageError: as for `torchkeep.load`.
    """
    if chosen is not None:
        return checkpoint.read(chosen, device)
    described = checkpoint.described
    return state_of(described, checkpoint.read([*described.names, *described.hidden], device))


def state_of(described: Described, tensors: Mapping[str, Any]) -> Any:
    """Put a checkpoint's state together out of its tensors, or whatever stands for them, by name.

    Raises:
        FormatError: it is no tree of values.
    """
    path, raw, modules = described.manifest.path, described.tree.value, described.tree.modules
    if bytes(raw) == b"null":
        return {name: tensors[name] for name in described.names}

    def module(prefix: Any) -> dict[str, Any]:
        if prefix not in modules:
            raise FormatError(f"its values hold a module {prefix!r}, of which it says nothing")
        inside = f"{prefix}." if prefix else ""
        state = {name[len(inside) :]: tensors[name] for name in described.names if name.startswith(inside)}
        return state | {key: values_at(path, node, tensors) for key, node in modules[prefix].extra.items()}

    return values_at(path, raw, tensors, {"module": module})
