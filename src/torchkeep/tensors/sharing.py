"""Which tensors are kept as bytes, which as other names of one, and which as views of another's memory."""

from __future__ import annotations

from ctypes import c_char
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from torchkeep.errors import UnsavableError
from torchkeep.formats.consistency import is_dense
from torchkeep.formats.document import View
from torchkeep.names import natural_key
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import Span, overlapping, span, tensor_key

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from torch import Tensor

_ALIGNMENT = 16
"""No element is larger, so whatever begins at a multiple of this can be a base for any dtype."""


@dataclass
class Kept:
    """How a set of tensors is kept.

    Attributes:
        entries: tensors that are kept as bytes, by name.
        aliases: owner by alias.
        views: tensors that share memory with an entry.
        hidden: entries that were none of the given tensors, but the memory that some of them share.
    """

    entries: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)


class _Member(NamedTuple):
    """A tensor of a group that shares memory."""

    name: str
    tensor: Tensor
    span: Span


def suspects(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that may share memory with another: all that do are among them.

    Finding out for ten thousands of tensors how exactly they share is slow; that most don't is quickly seen.
    """
    spans: list[tuple[int, int, str]] = []
    found = set()
    for name, tensor in tensors.items():
        if type(tensor) in _PLAIN and tensor.is_cpu and tensor.is_contiguous():
            start = tensor.data_ptr()
            spans.append((start, start + tensor.nbytes, name))
            if not tensor.nbytes:
                found.add(name)
        elif (lying := span(tensor)) is not None and lying.memory == _IN_MEMORY and lying.start < lying.stop:
            spans.append((lying.start, lying.stop, name))
        else:
            found.add(name)
    spans.sort()
    reached, last = 0, ""
    for start, stop, name in spans:
        if start < reached:
            found.update((name, last))
        if stop > reached:
            reached, last = stop, name
    return {name: tensor for name, tensor in tensors.items() if name in found} if found else {}


_PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter})
_IN_MEMORY: Final = ("address", "cpu")
"""What `span` calls the memory of the CPU."""


def tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the owner's name, the naturally smallest, for every other name of a tensor.

    Tensors are one when they lie in the same memory with the same shape, strides and dtype, and are told apart by
    nothing: not by being a Parameter, nor by requiring a gradient.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, tensor in suspects(tensors).items():
        kind = (isinstance(tensor, torch.nn.Parameter), tensor.requires_grad, tensor_key(tensor))
        groups.setdefault(kind, []).append(name)
    owners = {}
    for names in groups.values():
        if len(names) > 1:
            owner = min(names, key=natural_key)
            owners.update({name: owner for name in names if name != owner})
    return owners


def kept(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Kept:
    """Decide how tensors are kept.

    Of tensors whose bytes overlap, one that covers all the others is kept as bytes and they as views of it; where
    none does, the memory that they lie in is. Tensors that lie in one storage without overlapping are kept apart.

    Args:
        tensors: by name, strided, without lazy conjugation; owners only.
        aliases: owner by alias.

    Raises:
        UnsavableError: tensors overlap at a place that is no multiple of their elements' size.
    """
    result = Kept(entries=dict(tensors), aliases=dict(aliases))
    suspected = list(suspects(tensors).items())
    for group in overlapping([tensor for _, tensor in suspected]):
        members = []
        for position in group:
            name, tensor = suspected[position]
            found = span(tensor)
            assert found is not None
            members.append(_Member(name, tensor, found))
        _share(result, members)
    return result


def _share(result: Kept, members: Sequence[_Member]) -> None:
    base = _covering(members)
    if base is None:
        name = unused_name(f"{members[0].name}#storage", {*result.entries, *result.aliases, *result.views})
        tensor, start = _memory_of(members)
        result.entries[name] = tensor
        result.hidden.append(name)
    else:
        name, start = base.name, base.span.start
    for member in members:
        if member is not base:
            size = member.tensor.element_size()
            if (member.span.start - start) % size:
                raise UnsavableError(
                    f"{member.name} and {members[0].name} can't be saved: they overlap at a place that is no "
                    "multiple of their elements' size; save clone() of one"
                )
            result.views[member.name] = View(
                base=name,
                dtype=dtype_name(member.tensor.dtype),
                shape=tuple(member.tensor.shape),
                stride=member.tensor.stride(),
                offset=(member.span.start - start) // size,
            )
            del result.entries[member.name]


def _covering(members: Sequence[_Member]) -> _Member | None:
    """Return the member whose bytes are all the group's bytes; a row-major one first."""
    start = min(member.span.start for member in members)
    stop = max(member.span.stop for member in members)
    candidates = [
        member
        for member in members
        if (member.span.start, member.span.stop) == (start, stop)
        and is_dense(tuple(member.tensor.shape), member.tensor.stride())
        and all((other.span.start - start) % other.tensor.element_size() == 0 for other in members)
    ]
    return min(
        candidates, key=lambda member: (not member.tensor.is_contiguous(), natural_key(member.name)), default=None
    )


def _memory_of(members: Sequence[_Member]) -> tuple[Tensor, int]:
    """Return the memory that a group lies in as one tensor, and where it begins."""
    first = min(members, key=lambda member: member.span.start)
    stop = max(member.span.stop for member in members)
    dtypes = {member.tensor.dtype for member in members}
    in_storage = int(first.tensor.storage_offset()) * first.tensor.element_size()
    dtype, lead = first.tensor.dtype, 0
    if len(dtypes) > 1:
        dtype, lead = torch.uint8, in_storage % _ALIGNMENT
    start = first.span.start - lead
    if first.tensor.device.type == "cpu":
        # Not through the storage: there may be several over this memory, none of which holds all of it.
        return torch.frombuffer((c_char * (stop - start)).from_address(start), dtype=dtype), start
    memory = torch.empty(0, dtype=dtype, device=first.tensor.device)
    size = (stop - start) // dtype.itemsize
    memory.set_(first.tensor.untyped_storage(), (in_storage - lead) // dtype.itemsize, (size,), (1,))
    return memory, start


def unused_name(wanted: str, taken: Collection[str]) -> str:
    """Return ``wanted``, or the first of ``wanted#2``, ``wanted#3``, ... that is not taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    return name
