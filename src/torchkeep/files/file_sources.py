"""What a model is loaded from when it is one file: of safetensors or of torch.save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.files.loading import extra_state
from torchkeep.files.modules import EXTRA_STATE
from torchkeep.files.offering import Offer, Source, copy_into
from torchkeep.formats.contents import Contents
from torchkeep.formats.safetensors import header_of
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.reading import Destination, is_makeable, read_into, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.storage.base import ReadableFile


class FileSource(Source):
    """An open file.

    Attributes:
        contents: what it holds.
    """

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        self.contents = Contents(header_of(file))
        self.text = repr(file.path)
        self.offers = {}
        for name in self.contents.names:
            owner = self.contents.owner(name)
            dtype, shape = self.contents.kind(owner)
            obstacle = None if is_makeable(dtype) else f"torch {torch.__version__} can't make its dtype"
            self.offers[name] = Offer(owner, shape, dtype, obstacle)
        document = self.contents.document
        self.extra = tuple(document.module.extra) if document and document.module else ()
        self.verified = document is not None

    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Read tensors."""
        return read_tensors(self._file, self.contents, owners)

    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Read tensors straight into their targets."""
        contents = self.contents
        direct = [position for position, (owner, _) in enumerate(pairs) if contents.view(owner) is None]
        destinations = [
            Destination(contents.stored(pairs[position][0]), pairs[position][1]) for position in direct
        ]
        try:
            read_into(self._file, contents, destinations, begun=lambda position: begun(direct[position]))
        finally:  # a load that failed midway has changed some
            for _, target in destinations:
                torch.autograd.graph.increment_version(target)
        views = [
            (position, owner) for position, (owner, _) in enumerate(pairs) if contents.view(owner) is not None
        ]
        found = self.tensors([owner for _, owner in views])
        for position, owner in views:
            begun(position)
            copy_into(pairs[position][1], found[owner])

    def extra_state(self) -> Mapping[str, Any]:
        """Read a module's extra state."""
        document = self.contents.document
        hidden = document.hidden if document else ()
        return extra_state(self.contents, self.tensors(hidden)) if self.extra else {}


class PickledSource(Source):
    """An open file of torch.save.

    Large tensors are read straight into their targets. The others are read and verified first, and copied last.
    """

    def __init__(self, file: ReadableFile) -> None:
        self._reader = PickledReader(file)
        pickled = self._reader.pickled
        self.text = repr(file.path)
        self.extra = _extra_keys(pickled.root)
        inside_extra = tuple(f"{key}." for key in self.extra)
        self.offers = {}
        for row in pickled.listing.rows:
            assert row.shape is not None
            obstacle = None
            if not is_makeable(row.dtype):
                obstacle = f"torch {torch.__version__} can't make its dtype"
            elif row.device == "meta":
                obstacle = "it was saved from the meta device, without values"
            offer = Offer(row.name, row.shape, row.dtype, obstacle)
            self.offers.update({name: offer for name in row.names if not f"{name}.".startswith(inside_extra)})
        self.verified = all(extent.crc is not None for extent in pickled.extents.values() if extent.nbytes)

    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Read tensors."""
        return self._reader.tensors(owners)

    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Read tensors into their targets, the large ones straight."""
        alone = set(self._reader.alone([owner for owner, _ in pairs]))
        found = self.tensors([owner for owner, _ in pairs if owner not in alone])
        large = [position for position, (owner, _) in enumerate(pairs) if owner in alone]
        try:
            self._reader.fill([pairs[position] for position in large], lambda index: begun(large[index]))
        finally:  # a load that failed midway has changed some
            for position in large:
                torch.autograd.graph.increment_version(pairs[position][1])
        for position, (owner, target) in enumerate(pairs):
            if owner not in alone:
                begun(position)
                copy_into(target, found[owner])

    def extra_state(self) -> Mapping[str, Any]:
        """Read a module's extra state."""
        return {key: self._reader.item(key) for key in self.extra}


def _extra_keys(root: Any) -> tuple[str, ...]:
    """Return the keys of extra state in what may be a state_dict."""
    keys = root if isinstance(root, dict) else ()
    return tuple(key for key in keys if isinstance(key, str) and key.rpartition(".")[2] == EXTRA_STATE)
