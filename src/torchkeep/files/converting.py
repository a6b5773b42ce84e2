"""Copy any readable file, or parts of it, into a safetensors file of torchkeep, piece by piece."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from ctypes import memmove
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from msgspec import Struct

from torchkeep.archive.described import Described as DescribedState
from torchkeep.dtypes import FLOATS
from torchkeep.errors import NoMatchError, SelectorError, StorageError, UnsavableError
from torchkeep.files.extracting import outline_module, outline_state
from torchkeep.files.leaving import left_behind, unshared
from torchkeep.files.outlining import outline_rows, outline_whole, renamed_listing
from torchkeep.files.renaming import new_name, renames_of
from torchkeep.files.writing import lay_out, write_layout
from torchkeep.formats.contents import Contents
from torchkeep.formats.safetensors import METADATA_KEY
from torchkeep.formats.sharded import Sharded
from torchkeep.formats.values import is_text
from torchkeep.selectors import select as selector_of
from torchkeep.selectors.suggest import did_you_mean
from torchkeep.tensors.dtypes import dtype_name, torch_dtype
from torchkeep.tensors.elements import opened_elements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.files.collecting import Collected
    from torchkeep.files.renaming import Rename
    from torchkeep.rows import Listing, Row
    from torchkeep.storage.base import Storage
    from torchkeep.storage.transfer import Chunk
    from torchkeep.tensors.elements import Elements

_ELEMENTS: Final = 512 * 1024
"""Converted at a time."""
_SHOWN: Final = 10


class ConvertReport(Struct, frozen=True):
    """What was written.

    Attributes:
        path: the file.
        tensors: how many it holds, a tied one once.
        nbytes: its size.
        renamed: how many names are not those of the source.
        cast: how many tensors were converted to another dtype.
        ties: the names of each tied tensor, the owner first.
        left_out: what of the source is not in the file, a phrase each.
        digest: blake3 of the file's header.
    """

    path: str
    tensors: int
    nbytes: int
    renamed: int
    cast: int
    ties: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]
    digest: str


def convert(
    storage: Storage,
    source: str | os.PathLike[str],
    target: str,
    *,
    select: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    dtype: str | None = None,
    force: bool = False,
) -> ConvertReport:
    """Write the tensors of a file, a folder or a checkpoint as one safetensors file, whole or not at all, durably.

    Without ``select`` and ``rename``, plain values, extra state and recipes come along, where the source has any;
    of a checkpoint, extra state and recipe come along where exactly one of its modules is written, under its own
    names.

    Args:
        storage: where both are.
        source: what is read; every byte is verified as far as it has digests.
        target: the file to write.
        select: which tensors; then the file is a flat mapping of them.
        rename: patterns of names and what they become, as for `load_into`; the last that matches wins.
        dtype: what floating-point tensors are converted to, one of `FLOATS`.
        force: whether an existing ``target`` is replaced; it may be ``source``.

    Raises:
        NoMatchError: ``select`` or a rename matches nothing.
        SelectorError: they can't be used, or give one name to two tensors.
        UnsavableError: a name or a value can't be kept, or a number does not fit ``dtype``.
        DamageError: what was read is not what was written; nothing was written.
        FormatError: the source is not what it should be.
        StorageError: the operating system refused, or ``target`` exists.
    """
    if not force and os.path.lexists(target):
        raise _refused(target, "it exists; choose another path, or replace it (--force)")
    with opened_elements(storage, source) as elements:
        found = elements.described
        if isinstance(found, Sharded) and os.path.realpath(target) in map(
            os.path.realpath, (found.path, *found.parts)
        ):
            raise _refused(target, f"it is a part of {found.path!r}; choose another path")
        plan = _whole(storage, elements) if select is None and not rename else _part(elements, select, rename)
        _refuse_unwritable(plan.collected, elements.listing)
        entries = {**plan.collected.tensors, **plan.collected.apart}
        kept_as = [tensor.dtype for tensor in entries.values()]
        cast = _cast(plan.collected, dtype)
        olds = {name: plan.names.get(name, name) for name in plan.collected.tensors}
        left_out = (*plan.left_out, *unshared(elements, set(olds.values())))
        if cast and plan.recipe is not None:
            left_out = (*left_out, "the recipe, which builds a model of the old dtypes")
        layout = lay_out(plan.collected, None if cast else plan.recipe)
        names = [plan.names.get(name, name) for name in entries]
        origin = _Origin(elements, list(zip(names, kept_as, strict=True)), [one.dtype for one in layout.tensors])
        digest = write_layout(storage, target, layout, origin)
    ties: dict[str, list[str]] = {}
    for alias, owner in plan.collected.aliases.items():
        ties.setdefault(owner, [owner]).append(alias)
    return ConvertReport(
        path=target,
        tensors=len(plan.collected.tensors),
        nbytes=layout.nbytes,
        renamed=plan.renamed,
        cast=cast,
        ties=tuple(map(tuple, ties.values())),
        left_out=left_out,
        digest=digest,
    )


class _Plan(NamedTuple):
    """What is to be written.

    Attributes:
        collected: its outline.
        recipe: of a module, or None.
        left_out: what of the source is not part of it.
        names: of each tensor that has another name in the source, that name.
        renamed: how many names are new.
    """

    collected: Collected
    recipe: Any = None
    left_out: tuple[str, ...] = ()
    names: Mapping[str, str] = {}
    renamed: int = 0


def _whole(storage: Storage, elements: Elements) -> _Plan:
    found = elements.described
    if isinstance(found, Sharded | Contents):
        collected, recipe = outline_whole(elements, None)
        return _Plan(collected, recipe=recipe)
    if isinstance(found, DescribedState):
        return _Plan(*outline_state(found))
    with closing(storage.open(found.path)) as file:
        return _Plan(outline_whole(elements, file)[0])


def _part(elements: Elements, select: str | None, rename: Sequence[tuple[str, str]]) -> _Plan:
    listing = elements.listing
    rows: Sequence[Row] = listing.rows
    if select is not None:
        rows = [rows[position] for position in selector_of(select).indices(listing)]
    compiled = renames_of(list(rename))
    names = {name: row.name for row in rows for name in row.names}
    _refuse_unused(compiled, names)
    owners: dict[str, list[str]] = {}
    for name, owner in names.items():
        sources = owners.setdefault(new_name(compiled, name)[0], [])
        if owner not in sources:
            sources.append(owner)
    doubled = [f"{new!r} to {' and '.join(map(repr, found))}" for new, found in owners.items() if len(found) > 1]
    if doubled:
        raise SelectorError(f"--rename gives one name to several tensors: {'; '.join(doubled[:_SHOWN])}")
    made = renamed_listing(listing, rows, lambda name: new_name(compiled, name)[0])
    renamed = {name: new_name(compiled, name)[0] for name in names}
    changed = sum(new != name for name, new in renamed.items())
    olds = {new.name: old.name for new, old in zip(made.rows, rows, strict=True)}
    found = elements.described
    if isinstance(found, DescribedState):
        module = outline_module(found, renamed)
        if module is not None:
            return _Plan(*module, names=olds, renamed=changed)
    return _Plan(outline_rows(made), None, left_behind(elements), olds, changed)


def _refuse_unused(renames: Sequence[Rename], names: Iterable[str]) -> None:
    names = list(names)
    used = {id(by) for name in names if (by := new_name(renames, name)[1]) is not None}
    for rename in renames:
        if id(rename) not in used:
            text = rename.source.text
            error = NoMatchError(f"rename {text!r} matches no name that is converted.{did_you_mean(text, names)}")
            error.wanted = text
            raise error


def _refuse_unwritable(collected: Collected, listing: Listing) -> None:
    problems = [
        f"{name!r} can't be a name in a safetensors file; rename it (--rename)"
        for name in collected.order
        if name == METADATA_KEY or not is_text(name)
    ]
    problems += [
        f"{row.name!r} was saved from the meta device, without values; leave it out (--select)"
        for row in listing.rows
        if row.device == "meta" and row.name in collected.tensors
    ]
    if problems:
        more = len(problems) - _SHOWN
        raise UnsavableError("; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""))


def _cast(collected: Collected, dtype: str | None) -> int:
    """Let floating-point tensors be of another dtype; return how many are that were not."""
    if dtype is None:
        return 0
    wanted = torch_dtype(dtype)
    assert wanted is not None
    cast = 0
    for name, tensor in collected.tensors.items():
        if tensor.dtype != wanted and dtype_name(tensor.dtype) in FLOATS:
            collected.tensors[name] = torch.empty(tensor.shape, dtype=wanted, device="meta")
            cast += 1
    return cast


class _Origin:
    """Gives the bytes of the new file out of the source; see `torchkeep.files.writing.Origin`."""

    def __init__(
        self, elements: Elements, sources: Sequence[tuple[str, torch.dtype]], targets: Sequence[torch.dtype]
    ) -> None:
        self._elements = elements
        self._sources = sources
        self._targets = targets
        self._lock = Lock()

    def give(self, chunk: Chunk, first: int, room: memoryview, address: int) -> None:
        """Copy a part of a chunk to memory that begins at an address."""
        (name, source), target = self._sources[chunk.tensor], self._targets[chunk.tensor]
        step = _ELEMENTS * target.itemsize
        with self._lock:  # a source reads one piece at a time
            begin, end = chunk.offset + first, chunk.offset + first + len(room)
            for start in range(begin, end, step):
                stop = min(start + step, end)
                part = self._read(name, source, target, (start // target.itemsize, stop // target.itemsize))
                memmove(address + start - begin, part.data_ptr(), part.nbytes)

    def _read(self, name: str, source: torch.dtype, target: torch.dtype, span: tuple[int, int]) -> Tensor:
        found = self._elements.read(name, span[0] * source.itemsize, span[1] * source.itemsize)
        if source == target:
            return found
        values = found.clone().view(source)
        made = values.to(target)
        lost = values.to(torch.float64).isfinite() & ~made.to(torch.float64).isfinite()
        if lost.any():
            value = float(values[lost][0])
            raise UnsavableError(
                f"tensor {name!r} can't be kept as {dtype_name(target)}: it holds {value:g}, which is beyond "
                "that dtype; choose another"
            )
        return made

    def finish(self) -> None:
        """Verify what was read."""
        self._elements.finish()


def _refused(target: str, why: str) -> StorageError:
    error = StorageError(f"can't write {target!r}: {why}")
    error.errno, error.filename = errno.EEXIST, target
    return error
