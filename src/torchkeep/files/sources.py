"""What a model is loaded from: a file, a mapping, another model, a table; to all, names that lead to tensors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from torchkeep.archive.locating import locate
from torchkeep.errors import SourceError
from torchkeep.files.loading import extra_state
from torchkeep.files.modules import EXTRA_STATE
from torchkeep.formats.contents import Contents
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.safetensors import header_of
from torchkeep.formats.sharded import Sharded, located
from torchkeep.names import join
from torchkeep.tables.survey import survey
from torchkeep.tables.table import ParameterTable
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.tensors.copying import copy_bits, same_bits
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import storage_key, tensor_key
from torchkeep.tensors.keepable import why_not_kept
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.reading import Destination, is_makeable, read_into, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from torchkeep.storage.base import ReadableFile, Storage


class Offer(NamedTuple):
    """A tensor that a source has under some name.

    Attributes:
        owner: the name that it is kept under.
        shape: sizes.
        dtype: torch's name.
        obstacle: why its values can't be had, if so.
    """

    owner: str
    shape: tuple[int, ...]
    dtype: str
    obstacle: str | None = None


class Source(ABC):
    """Names that lead to tensors.

    Attributes:
        text: what errors call it.
        offers: every name, aliases included, in order.
        extra: keys of extra state.
        verified: whether the bytes are compared with digests; None where there are no bytes to doubt.
    """

    text: str
    offers: Mapping[str, Offer]
    extra: tuple[str, ...] = ()
    verified: bool | None = None

    @abstractmethod
    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Return tensors by owner's name; those of a file are new."""

    @abstractmethod
    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Copy tensors, by owner's name, into targets of their shape, converting where dtypes differ.

        ``begun`` is told a pair's position before its target changes.
        """

    @abstractmethod
    def extra_state(self) -> Mapping[str, Any]:
        """Return extra state by key."""

    def same(self, one: str, other: str) -> bool:
        """Tell whether two owners' tensors have the same bits."""
        found = self.tensors([one, other])
        return same_bits(found[one], found[other])


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
            _copy(pairs[position][1], found[owner])

    def extra_state(self) -> Mapping[str, Any]:
        """Read a module's extra state."""
        document = self.contents.document
        hidden = document.hidden if document else ()
        return extra_state(self.contents, self.tensors(hidden)) if self.extra else {}


class PickledSource(Source):
    """An open file of torch.save. All that is asked for is read and verified before any target changes."""

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
        """Read tensors, then copy them into their targets."""
        found = self.tensors([owner for owner, _ in pairs])
        for position, (owner, target) in enumerate(pairs):
            begun(position)
            _copy(target, found[owner])

    def extra_state(self) -> Mapping[str, Any]:
        """Read a module's extra state."""
        return {key: self._reader.item(key) for key in self.extra}


class MemorySource(Source):
    """Tensors in memory."""

    def __init__(self, text: str, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        self.text = text
        self._tensors = tensors
        self._extra = extra
        self.extra = tuple(extra)
        self.offers = {
            name: Offer(name, tuple(tensor.shape), dtype_name(tensor.dtype), obstacle)
            if (obstacle := why_not_kept(tensor, any_class=True)) is None
            else Offer(name, (), dtype_name(tensor.dtype), obstacle)
            for name, tensor in tensors.items()
        }

    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors themselves."""
        return {owner: self._tensors[owner] for owner in owners}

    def same(self, one: str, other: str) -> bool:
        """Tell whether two tensors have the same bits."""
        left, right = self._tensors[one], self._tensors[other]
        return tensor_key(left) == tensor_key(right) or same_bits(left, right)

    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Copy tensors into their targets."""
        changing = {storage_key(target) for _, target in pairs}
        sources = [self._tensors[owner].detach() for owner, _ in pairs]
        for position, ((_, target), source) in enumerate(zip(pairs, sources, strict=True)):
            if storage_key(source) in changing and tensor_key(source) != tensor_key(target):
                sources[position] = source.clone()  # another target's copy would change it first
        for position, ((_, target), source) in enumerate(zip(pairs, sources, strict=True)):
            begun(position)
            _copy(target, source)

    def extra_state(self) -> Mapping[str, Any]:
        """Return the extra state itself."""
        return self._extra


@contextmanager
def opened(storage: Storage, source: Any, *, whole: bool = False) -> Iterator[Source]:
    """Open whatever a model can be loaded from.

    Args:
        storage: where files are.
        source: what it is.
        whole: whether of a checkpoint all tensors are meant, under their full names, instead of one module's.

    Raises:
        SourceError: it is nothing that a model can be loaded from.
        StoreError: there is no such store or checkpoint.
        FormatError: the file is not what it should be.
        StorageError: the file can't be read.
    """
    from torchkeep.files.checkpointed import of_checkpoint  # noqa: PLC0415 - it builds on this module

    if isinstance(source, Checkpoint):
        yield of_checkpoint(source.archive, source.manifest, whole=whole)
    elif isinstance(source, str | os.PathLike):
        kept = locate(source)
        with ExitStack() as stack:
            yield _of_path(storage, source, stack) if kept is None else of_checkpoint(*kept, whole=whole)
    elif isinstance(source, nn.Module):
        yield _of_module(source)
    elif isinstance(source, ParameterTable):
        rows = [row for row in source.rows if row.persistent]
        found = {name: (row.name, source) for row in rows for name in row.names}
        yield MemorySource("the table", {name: table[owner] for name, (owner, table) in found.items()}, {})
    elif isinstance(source, Mapping):
        yield _of_mapping(source)
    else:
        raise SourceError(
            f"expected a path, STORE@STEP, a mapping from names to tensors, a torch.nn.Module or a table; "
            f"found {type(source).__name__}"
        )


def _of_path(storage: Storage, path: str | os.PathLike[str], stack: ExitStack) -> Source:
    def of_file(path: str) -> Source:
        file = stack.enter_context(closing(storage.open(path)))
        return PickledSource(file) if holds_pickle(file) else FileSource(file)

    found = located(path)
    if isinstance(found, Sharded):
        from torchkeep.files.parts import ShardedSource  # noqa: PLC0415 - it builds on this module

        return ShardedSource(found, {part: of_file(part) for part in found.parts})
    return of_file(found)


def _extra_keys(root: Any) -> tuple[str, ...]:
    """Return the keys of extra state in what may be a state_dict."""
    keys = root if isinstance(root, dict) else ()
    return tuple(key for key in keys if isinstance(key, str) and key.rpartition(".")[2] == EXTRA_STATE)


def _of_module(net: nn.Module) -> Source:
    found = survey(net)
    tensors = {
        name: tensor
        for row, tensor in zip(found.listing.rows, found.tensors, strict=True)
        for name in row.names
        if row.persistent
    }
    extra = {
        join(path, EXTRA_STATE): module.get_extra_state()
        for path, module in found.modules.items()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }
    return MemorySource("the other model", tensors, extra)


def _of_mapping(mapping: Mapping[Any, Any]) -> Source:
    tensors, extra = {}, {}
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise SourceError(f"the mapping's keys must be names, but one is {name!r} ({type(name).__name__})")
        if name.rpartition(".")[2] == EXTRA_STATE:
            extra[name] = value
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            raise SourceError(
                f"the mapping holds a {type(value).__name__} under {name!r} where a tensor is expected; give the "
                "mapping of tensors itself, such as checkpoint['model']"
            )
    return MemorySource("the mapping", tensors, extra)


def _copy(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        if source.dtype == target.dtype:
            copy_bits(target, source.to(target.device))
        else:
            target.copy_(source)
