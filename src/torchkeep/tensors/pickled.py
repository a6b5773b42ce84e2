"""Values and tensors out of a file of torch.save, made from the descriptions that its pickle was read as."""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import closing
from ctypes import memmove
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from torchkeep.dtypes import DTYPES
from torchkeep.errors import FormatError, StorageError
from torchkeep.formats.consistency import is_row_major
from torchkeep.formats.contents import Stored
from torchkeep.formats.digests import Nothing
from torchkeep.formats.opening import differing
from torchkeep.formats.pickles import pickled_of
from torchkeep.formats.pickles.checksums import RunningCrc, joined_crc
from torchkeep.storage.buffers import memory_at
from torchkeep.storage.local import LOCAL
from torchkeep.storage.transfer import WINDOW, Chunk, read_chunks
from torchkeep.tensors.copying import empty
from torchkeep.tensors.dtypes import torch_dtype
from torchkeep.tensors.making import Making
from torchkeep.tensors.reading import Destination, changed, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torchkeep.formats.pickles import Pickled
    from torchkeep.formats.pickles.objects import Extent, TensorRef
    from torchkeep.storage.base import ReadableFile

_CHUNK: Final = 8 * 1024 * 1024


def load_pickled(path: str | os.PathLike[str], *, verify: bool = True, device: str | torch.device = "cpu") -> Any:
    """Return what a file of torch.save holds: what ``torch.load(path, weights_only=True)`` gives.

    Nothing is unpickled. Tensors that share a storage share memory, and those that are one (a tie) are one object.
    A single number of NumPy comes back as a plain number.

    Args:
        path: the file.
        verify: compare what is read with the checksums in the file, where it has any.
        device: where the tensors go, whatever device they were saved from; those on the meta device stay there.

    Raises:
        FormatError: it is no such file, it holds what is not read, or it was changed while it was read.
        UnsafeFileError: it asks for something to be imported, called or changed; nothing was.
        DamageError: it is cut short, or a checksum differs.
        MissingFileError: there is no such file.
        StorageError: the file can't be read.
    """
    with closing(LOCAL.open(os.fspath(path))) as file:
        return PickledReader(file, verify=verify, device=device).value()


class PickledReader:
    """Reads tensors of an open file of torch.save; raises what `load_pickled` does.

    Args:
        file: the file.
        pickled: what it holds, where that has been described before; the file is looked at whether it still does.
        verify: compare what is read with the checksums in the file, where it has any.
        device: where the tensors go.

    Attributes:
        pickled: what it holds, described.
    """

    def __init__(
        self,
        file: ReadableFile,
        pickled: Pickled | None = None,
        *,
        verify: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        if pickled is not None and not pickled.describes(file):
            raise changed(file.path)
        self.pickled = pickled or pickled_of(file)
        self._file = file
        self._verify = verify
        self._device = torch.device(device)
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._tensors: dict[object, torch.Tensor] = {}

    def value(self) -> Any:
        """Return what was saved."""
        self._read(self.pickled.references())
        return Making(self).value(self.pickled.root)

    def item(self, key: str) -> Any:
        """Return what was saved under a key, when a mapping was saved."""
        self._read(self.pickled.references())
        return Making(self).value(self.pickled.root[key])

    def tensors(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return tensors by name, any of a tie's: plain ones without gradients, as state_dicts have them."""
        wanted = {name: self.pickled.tensors[name] for name in names}
        self._read(wanted.values())
        plain = {described.identity: described for described in wanted.values()}
        made = {identity: self._plain(described) for identity, described in plain.items()}
        return {name: made[described.identity] for name, described in wanted.items()}

    def alone(self, names: Iterable[str]) -> list[str]:
        """Return those names of tensors that `fill` can fill targets with: large, and the whole of a storage."""
        wanted = list(names)
        users = Counter(
            tensor.storage.key for name in wanted if (tensor := self.pickled.tensors[name]).storage is not None
        )
        return [name for name in wanted if self._is_alone(self.pickled.tensors[name], users)]

    def _is_alone(self, described: TensorRef, users: Counter[str]) -> bool:
        storage = described.storage
        if storage is None or storage.key in self._storages or users[storage.key] > 1:
            return False
        if described.conj or described.neg or self.pickled.byte_order != "little":
            return False
        extent = self.pickled.extents[storage.key]
        whole = described.numel * DTYPES[described.dtype].itemsize == extent.nbytes
        return whole and extent.nbytes > WINDOW and is_row_major(described.shape, described.stride)

    def fill(self, pairs: Sequence[tuple[str, torch.Tensor]], begun: Callable[[int], object]) -> None:
        """Read tensors straight into targets of their shape, converting where dtypes differ.

        Args:
            pairs: names out of `alone`, and targets.
            begun: is told a pair's position before the first byte of its target changes, perhaps repeatedly, from
                any thread.

        Raises:
            DamageError: bytes are not what was written; they have reached the targets.
        """
        refs = [self.pickled.tensors[name] for name, _ in pairs]
        extents = [self.pickled.extents[ref.storage.key] for ref in refs if ref.storage is not None]
        destinations = [
            Destination(
                Stored(name, ref.dtype, ref.shape, extent.start, extent.start + extent.nbytes, None), target
            )
            for (name, target), ref, extent in zip(pairs, refs, extents, strict=True)
        ]
        sums = _Sums(self._verify)
        fill(self._file, destinations, _CHUNK, sums.check, begun=begun, summing=sums.summing)
        for position, ((name, _), extent) in enumerate(zip(pairs, extents, strict=True)):
            self._compare(extent, sums.of(position), name)
        if self._file.has_changed():
            raise changed(self._file.path)

    def _compare(self, extent: Extent, crc: int | None, name: str) -> None:
        if crc is not None and extent.crc not in {None, crc}:
            stop = extent.start + extent.nbytes
            raise differing(self.pickled.path, extent.start, stop, name, "checksum")

    def tensor(self, described: TensorRef) -> torch.Tensor:
        """Return the tensor that is described, as it was saved, once its storage has been read."""
        found = self._tensors.get(described.identity)
        if found is None:
            found, gradient = self._plain(described), described.requires_grad
            found = nn.Parameter(found, gradient) if described.parameter else found.requires_grad_(gradient)
            self._tensors[described.identity] = found
        return found

    def _plain(self, described: TensorRef) -> torch.Tensor:
        dtype = self.dtype(described.dtype)
        if described.storage is None:
            made = empty(described.shape, dtype, "meta", described.stride)
        else:
            made = empty((0,), dtype, self._device)
            offset = described.start // dtype.itemsize
            made.set_(self._storages[described.storage.key], offset, described.shape, described.stride)
        if described.conj:
            made = made.conj()
        if described.neg:
            made = torch._neg_view(made)  # noqa: SLF001 - nothing public sets this bit alone
        return made

    def dtype(self, name: str) -> torch.dtype:
        """Return torch's dtype of that name."""
        dtype = torch_dtype(name)
        if dtype is None:
            raise FormatError(
                f"{self.pickled.path!r} holds {name}, which torch {torch.__version__} does not know; install a "
                "newer torch"
            )
        return dtype

    def _read(self, wanted: Iterable[TensorRef]) -> None:
        """Read the storages of those tensors that have not been read, each whole, in the file's order."""
        users: dict[str, set[tuple[str, str]]] = {}
        for described in wanted:
            storage = described.storage
            if storage is not None and storage.key not in self._storages:
                users.setdefault(storage.key, set()).add((storage.dtype, described.dtype))
        extents = self.pickled.extents
        keys = sorted(users, key=lambda key: extents[key].start)
        memory = self._allocated([extents[key].nbytes for key in keys])
        crcs = self._fill([(extents[key].start, place) for key, place in zip(keys, memory, strict=True)])
        for key, place, crc in zip(keys, memory, crcs, strict=True):
            if crc is not None and extents[key].crc not in {None, crc}:
                self._compare(extents[key], crc, self._user(key))
            ordered = place if self.pickled.byte_order == "little" else self._swapped(place, key, users[key])
            self._storages[key] = ordered.to(self._device).untyped_storage()
        if self._file.has_changed():
            raise changed(self._file.path)

    def _allocated(self, sizes: list[int]) -> list[torch.Tensor]:
        try:
            return [torch.empty(size, dtype=torch.uint8) for size in sizes]
        except RuntimeError as cause:
            error = StorageError(
                f"can't read {self.pickled.path!r}: its tensors need {sum(sizes)} bytes of memory, which the "
                "system does not give; read fewer of them at a time"
            )
            error.errno, error.filename = errno.ENOMEM, self.pickled.path
            raise error from cause

    def _fill(self, places: list[tuple[int, torch.Tensor]]) -> list[int | None]:
        """Fill memory from positions of the file, and return its checksums where they are to be verified."""
        chunks = [
            Chunk(start + offset, min(_CHUNK, memory.nbytes - offset), position, offset)
            for position, (start, memory) in enumerate(places)
            for offset in range(0, memory.nbytes, _CHUNK)
        ]
        addresses = [memory.data_ptr() for _, memory in places]
        sums = _Sums(self._verify)

        def take(chunk: Chunk, address: int) -> None:
            memmove(addresses[chunk.tensor] + chunk.offset, address, chunk.nbytes)

        def place(chunk: Chunk) -> memoryview:
            return memory_at(addresses[chunk.tensor] + chunk.offset, chunk.nbytes)

        read_chunks(self._file, chunks, take, sums.check, place, summing=sums.summing)
        return [sums.of(position) for position in range(len(places))]

    def _user(self, key: str) -> str:
        """Return the name of a tensor in a storage."""
        tensors = self.pickled.tensors.items()
        return next(name for name, tensor in tensors if tensor.storage is not None and tensor.storage.key == key)

    def _swapped(self, memory: torch.Tensor, key: str, dtypes: set[tuple[str, str]]) -> torch.Tensor:
        """Return the bytes of a storage, given the dtypes that it is kept and used as, with each number turned."""
        ((kept, used), *others) = dtypes
        if others or kept != used:
            raise FormatError(
                f"{self.pickled.path!r} has tensor {self._user(key)!r} as big-endian bytes without a dtype, which "
                "is not read; save the file again on a little-endian machine"
            )
        unit = DTYPES[kept].itemsize // (2 if kept.startswith("complex") else 1)
        return memory.view(-1, unit).flip(1).contiguous().view(-1)


class _Sums:
    """Checksums of storages, made of those of their chunks, which come in any order.

    Attributes:
        summing: begins the checksum of a chunk.
    """

    def __init__(self, verify: bool) -> None:
        self.summing: Callable[[memoryview], RunningCrc | Nothing] = RunningCrc if verify else Nothing
        self._verify = verify
        self._found: dict[int, dict[int, tuple[int, int]]] = {}

    def check(self, chunk: Chunk, found: RunningCrc | Nothing) -> None:
        """Note a chunk's."""
        if isinstance(found, RunningCrc):
            self._found.setdefault(chunk.tensor, {})[chunk.offset] = found.value, chunk.nbytes

    def of(self, position: int) -> int | None:
        """Return the checksum of a storage; None where none is asked for."""
        if not self._verify:
            return None
        crc = 0
        for _, (following, nbytes) in sorted(self._found.get(position, {}).items()):
            crc = joined_crc(crc, following, nbytes)
        return crc
