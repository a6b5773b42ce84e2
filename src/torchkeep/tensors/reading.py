"""Read tensors of a file, each byte verified before it is handed on."""

from __future__ import annotations

from ctypes import memmove
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from blake3 import blake3

from torchkeep.errors import FormatError, NoMatchError
from torchkeep.formats.digests import CHUNK, Nothing
from torchkeep.formats.opening import differing
from torchkeep.storage.buffers import memory_at
from torchkeep.storage.local import LOCAL
from torchkeep.storage.transfer import Chunk, read_chunks
from torchkeep.tensors.copying import cast_in, copy_in, empty, plain_address
from torchkeep.tensors.dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from torchkeep.formats.contents import Contents, Stored
    from torchkeep.formats.digests import Running
    from torchkeep.formats.document import View
    from torchkeep.storage.base import ReadableFile

    _Sum = TypeVar("_Sum", bound=Running)


class Destination(NamedTuple):
    """Where an entry of a file goes.

    Attributes:
        stored: the entry.
        target: a tensor of its shape; of its dtype too, else the values are converted.
    """

    stored: Stored
    target: Tensor


def read_tensor(
    contents: Contents, name: str, *, device: str | torch.device = "cpu", verify: bool = True
) -> Tensor:
    """Read one tensor.

    Args:
        contents: what the file holds, as it was opened before.
        name: the tensor's name or any alias.
        device: where it goes.
        verify: whether its bytes are compared with the digests in the file.

    Raises:
        NoMatchError: the file has no such tensor.
        DamageError: its bytes are not what was written.
        FormatError: the file was replaced since it was opened, or holds a dtype that torch does not have.
        StorageError: the file can't be read.
    """
    if name not in contents.names:
        raise NoMatchError(f"{contents.path!r} has no tensor {name!r}")
    with LOCAL.open(contents.path) as file:
        if (
            file.size < contents.header.data_start
            or file.read(0, contents.header.data_start) != contents.header.raw
        ):
            raise changed(contents.path)
        return read_tensors(file, contents, [name], device=device, verify=verify)[name]


def read_tensors(
    file: ReadableFile,
    contents: Contents,
    names: Iterable[str],
    *,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> dict[str, Tensor]:
    """Read tensors from an open file; raises what `read_tensor` does.

    Args:
        file: the file.
        contents: what it holds.
        names: of the tensors, in the order in which they are wanted.
        device: where they go.
        verify: whether their bytes are compared with the digests in the file.

    Returns:
        Each tensor by name; a tie is one object, and tensors that shared memory share it again.
    """
    names = list(names)
    owners = {name: contents.owner(name) for name in names}
    views = {owner: view for owner in owners.values() if (view := contents.view(owner)) is not None}
    entries: dict[str, Tensor] = {}
    destinations = []
    for owner in owners.values():
        entry = views[owner].base if owner in views else owner
        if entry not in entries:
            stored = contents.stored(entry)
            dtype = _dtype(stored.dtype, entry, contents.path)
            entries[entry] = empty(stored.shape, dtype, device, stored.strides)
            destinations.append(Destination(stored, entries[entry]))
    read_into(file, contents, destinations, verify=verify)
    for owner, view in views.items():
        entries[owner] = _as_view(view, entries[view.base], owner, contents.path)
    return {name: entries[owner] for name, owner in owners.items()}


def read_into(
    file: ReadableFile,
    contents: Contents,
    destinations: Sequence[Destination],
    *,
    verify: bool = True,
    begun: Callable[[int], object] = bool,
) -> None:
    """Read entries of an open file into tensors, in parallel; autograd is told nothing.

    Large chunks are read straight into their targets and verified there.

    Args:
        file: the file.
        contents: what it holds.
        destinations: where each entry goes.
        verify: whether bytes are compared with the digests in the file.
        begun: is told a destination's position before the first byte of its target changes, perhaps repeatedly,
            from any thread.

    Raises:
        DamageError: bytes are not what was written. What was read before has reached its targets, and of a large
            tensor the damaged bytes, too.
        FormatError: the file was changed while it was read.
        StorageError: the file can't be read.
    """
    digests = contents.digests if verify else None
    size = CHUNK if contents.document is None else contents.document.chunk

    if digests is None:
        fill(file, destinations, size, lambda *_: None, begun=begun, summing=Nothing)
        if file.has_changed():
            raise changed(contents.path)
        return

    def check(chunk: Chunk, found: blake3) -> None:
        name = destinations[chunk.tensor].stored.name
        if found.digest() != digests.of(name, chunk.offset // size):
            raise differing(contents.path, chunk.start, chunk.start + chunk.nbytes, name)

    fill(file, destinations, size, check, begun=begun, summing=blake3)


def fill(
    file: ReadableFile,
    destinations: Sequence[Destination],
    size: int,
    check: Callable[[Chunk, _Sum], None],
    *,
    begun: Callable[[int], object],
    summing: Callable[[memoryview], _Sum],
) -> None:
    """Read entries into tensors in chunks of ``size`` bytes; see `read_into` and `read_chunks`."""
    takers = [_Taker(destination) for destination in destinations]

    def take(chunk: Chunk, address: int) -> None:
        begun(chunk.tensor)
        takers[chunk.tensor].take(chunk, address)

    def place(chunk: Chunk) -> memoryview | None:
        return takers[chunk.tensor].place(chunk)

    chunks = sorted(_chunks(destinations, size))
    read_chunks(file, chunks, take, check, place, begun=lambda chunk: begun(chunk.tensor), summing=summing)


class _Taker:
    """Puts an entry's chunks where they belong in one target."""

    __slots__ = ("_dtype", "_pointer", "_target")

    def __init__(self, destination: Destination) -> None:
        stored, self._target = destination
        dtype = torch_dtype(stored.dtype)
        assert dtype is not None
        self._dtype = dtype
        self._pointer = plain_address(self._target) if dtype == self._target.dtype else None

    def take(self, chunk: Chunk, address: int) -> None:
        """Copy a chunk from an address."""
        if self._pointer is not None:
            memmove(self._pointer + chunk.offset, address, chunk.nbytes)
        elif self._dtype == self._target.dtype:
            copy_in(self._target, chunk.offset, chunk.nbytes, address)
        else:
            cast_in(self._target, self._dtype, chunk.offset, chunk.nbytes, address)

    def place(self, chunk: Chunk) -> memoryview | None:
        """Return the target's own memory for a chunk, where its elements lie in the file's order."""
        if self._pointer is None:
            return None
        return memory_at(self._pointer + chunk.offset, chunk.nbytes)


def is_makeable(dtype: str) -> bool:
    """Tell whether tensors of the dtype of that name can be made with this torch; quantized ones need more."""
    return torch_dtype(dtype) is not None and not dtype.startswith(("qint", "quint"))


def changed(path: str) -> FormatError:
    """Return the error for a file that is not any more what it was when its header was read."""
    return FormatError(f"{path!r} was changed after it was opened; open it again")


def _chunks(destinations: Sequence[Destination], size: int) -> list[Chunk]:
    return [
        Chunk(stored.start + offset, min(size, stored.nbytes - offset), position, offset)
        for position, (stored, _) in enumerate(destinations)
        for offset in range(0, stored.nbytes, size)
    ]


def _dtype(name: str, tensor: str, path: str) -> torch.dtype:
    dtype = torch_dtype(name)
    if dtype is None or not is_makeable(name):
        raise FormatError(
            f"tensor {tensor!r} in {path!r} has the dtype {name}, which torch {torch.__version__} can't make"
        )
    return dtype


def _as_view(view: View, base: Tensor, name: str, path: str) -> Tensor:
    dtype = _dtype(view.dtype, name, path)
    return empty((0,), dtype, base.device).set_(base.untyped_storage(), view.offset, view.shape, view.stride)
