"""What a model is loaded from: a file, a mapping, another model, a table; to all, names that lead to tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.archive.locating import locate
from torchkeep.errors import SourceError
from torchkeep.files.checkpointed import of_checkpoint
from torchkeep.files.file_sources import FileSource, PickledSource
from torchkeep.files.modules import EXTRA_STATE
from torchkeep.files.offering import Offer, Source, copy_into
from torchkeep.files.parts import ShardedSource
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.sharded import Sharded, located
from torchkeep.names import join, with_article
from torchkeep.tables.survey import survey
from torchkeep.tables.table import ParameterTable
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.tensors.copying import same_bits
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import storage_key, tensor_key
from torchkeep.tensors.keepable import why_not_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from torchkeep.storage.base import Storage


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
            copy_into(target, source)

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
        return ShardedSource(found, {part: of_file(part) for part in found.parts})
    return of_file(found)


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
                f"the mapping holds {with_article(type(value).__name__)} under {name!r} where a tensor is "
                "expected; give the mapping of tensors itself, such as checkpoint['model']"
            )
    return MemorySource("the mapping", tensors, extra)
