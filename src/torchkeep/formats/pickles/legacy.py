"""Files of torch.save before PyTorch 1.6: five pickles one after the other, then the storages' bytes.

The pickles are a magic number, the version of the format, facts of the machine, the value, and the keys of the
storages. Each storage follows in the order of the keys: the number of its elements in eight bytes, then the
elements, all little-endian whatever the machine was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchkeep.errors import DamageError, FormatError
from torchkeep.formats.opening import truncated
from torchkeep.formats.pickles.constructors import StorageType
from torchkeep.formats.pickles.machine import Machine, TruncatedError
from torchkeep.formats.pickles.objects import Extent, StorageRef
from torchkeep.formats.pickles.opcodes import HANDLERS
from torchkeep.formats.pickles.program import MAX_PROGRAM, Parsed, budget, storage_key, storage_numel

if TYPE_CHECKING:
    from torchkeep.formats.opening import Readable

MAGIC: Final = 0x1950A86A20F9469CFC6C
_VERSION: Final = 1001
_FIRST_WINDOW: Final = 1 << 20
_GROWTH: Final = 8
_COUNT_BYTES: Final = 8


def parse_legacy(file: Readable) -> Parsed:
    """Describe what a file of an old torch.save holds.

    Raises:
        FormatError: it is no such file, or what it holds is not read.
        UnsafeFileError: its pickle asks for something to be imported, called or changed.
        DamageError: it is cut short.
    """
    # How long the pickles are is not known before they are read.
    window = min(file.size, _FIRST_WINDOW)
    while True:
        data = file.read(0, window)
        storages = _Storages()
        try:
            machine = _header(file, data)
            machine = _next(file, data, machine.at, storages)
            root, notes = machine.run(HANDLERS), machine.notes
            machine = _next(file, data, machine.at)
            keys = machine.run(HANDLERS)
        except TruncatedError as cause:
            if window == file.size:
                raise _cut_short(file) from cause
            if window >= MAX_PROGRAM:
                raise FormatError(
                    f"the pickle in {file.path!r} has more than {MAX_PROGRAM} bytes, which is not read; save "
                    "large data as tensors"
                ) from cause
            window = min(file.size, window * _GROWTH, MAX_PROGRAM)
            continue
        extents = storages.locate(file, machine, keys)
        return Parsed(root, extents, "little", tuple(sorted(notes)), ((0, machine.at),), "legacy")


def _cut_short(file: Readable) -> DamageError:
    error = DamageError(
        f"{file.path!r} is cut short: its {file.size} bytes end within the pickle; copy or write it again"
    )
    error.file, error.start, error.stop = file.path, 0, file.size
    return error


def _next(file: Readable, data: bytes, at: int, storages: _Storages | None = None) -> Machine:
    resolve = None if storages is None else storages.resolve
    return Machine(data, at=at, path=file.path, base=0, budget=budget(len(data)), resolve=resolve)


def _header(file: Readable, data: bytes) -> Machine:
    """Read the three pickles before the value's, and return the machine that read the last."""
    machine = _next(file, data, 0)
    magic = machine.run(HANDLERS)
    if type(magic) is not int or magic != MAGIC:
        raise FormatError(
            f"{file.path!r} is a pickle, but none that torch.save writes; load it where it came from, and save a "
            "state_dict of tensors and plain values instead"
        )
    machine = _next(file, data, machine.at)
    version = machine.run(HANDLERS)
    if type(version) is not int or version != _VERSION:
        raise machine.malformed(f"is in a version of its format other than {_VERSION}")
    machine = _next(file, data, machine.at)
    if type(machine.run(HANDLERS)) is not dict:
        raise machine.malformed("has no facts of the machine that wrote it")
    return machine


class _Storages:
    """Notes the storages that the pickle names, and finds their bytes afterwards."""

    def __init__(self) -> None:
        self._known: dict[str, StorageRef] = {}

    def resolve(self, m: Machine, wanted: tuple[Any, ...]) -> StorageRef:
        """Describe the storage of a persistent id: ``("storage", class, key, location, numel, view)``.

        A view is None or ``(key, offset, numel)``: a storage that is a part of another, in elements.
        """
        match wanted:
            case [StorageType(dtype), str() as key, str() as location, numel, view]:
                found = StorageRef(storage_key(m, key, location), dtype, storage_numel(m, numel), location)
            case _:
                raise m.malformed("names a storage in a way that is not known")
        known = self._known.setdefault(key, found)
        if (known.dtype, known.numel) != (found.dtype, found.numel):
            raise m.malformed(f"says two different things of the storage {key!r}")
        return known if view is None else _part(m, known, view)

    def locate(self, file: Readable, m: Machine, keys: object) -> dict[str, Extent]:
        """Find the bytes of each storage after the pickles, the last of which ``m`` has read."""
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise m.malformed("has keys of storages that are no texts")
        if len(keys) != len(self._known) or set(keys) != self._known.keys():
            raise m.malformed("does not hold the storages that its tensors name")
        extents = {}
        at = m.at
        for key in keys:
            storage = self._known[key]
            start = at + _COUNT_BYTES
            at = start + storage.nbytes
            if at > file.size:
                raise truncated(file.path, start, at, file.size, f"storage {key}")
            numel = int.from_bytes(file.read(start - _COUNT_BYTES, _COUNT_BYTES), "little", signed=True)
            if numel != storage.numel:
                raise FormatError(
                    f"{file.path!r} has {numel} elements of storage {key!r} (byte {start} of the file) where "
                    f"{storage.numel} are needed; it is damaged"
                )
            extents[key] = Extent(start, storage.nbytes, None)
        return extents


def _part(m: Machine, whole: StorageRef, view: object) -> StorageRef:
    match view:
        case (str(), first, count):
            offset, numel = storage_numel(m, first), storage_numel(m, count)
        case _:
            raise m.malformed("has a view of a storage that is none")
    if offset + numel > whole.numel:
        raise m.malformed(f"has a view that reaches beyond the end of storage {whole.key!r}")
    itemsize = whole.nbytes // whole.numel if whole.numel else 0
    return StorageRef(whole.key, whole.dtype, numel, whole.location, offset * itemsize)
