"""Files of torch.save since PyTorch 1.6: a zip archive with a pickle and one record for each storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal
from zlib import crc32

from torchkeep.errors import DamageError, FormatError
from torchkeep.formats.pickles.constructors import StorageType
from torchkeep.formats.pickles.machine import Machine, TruncatedError
from torchkeep.formats.pickles.objects import Extent, StorageRef
from torchkeep.formats.pickles.opcodes import HANDLERS
from torchkeep.formats.pickles.program import MAX_PROGRAM, Parsed, budget, storage_key, storage_numel
from torchkeep.formats.pickles.records import locate, read_directory

if TYPE_CHECKING:
    from torchkeep.formats.opening import Readable
    from torchkeep.formats.pickles.records import Record

_PROGRAM: Final = "data.pkl"
_LAST_VERSION: Final = 10
"""The latest version of the archive's layout that PyTorch knows (caffe2/serialize/versions.h)."""
_SMALL: Final = 64


def parse_zip(file: Readable) -> Parsed:
    """Describe what a file of torch.save holds.

    Raises:
        FormatError: it is another kind of zip archive, or what it holds is not read.
        UnsafeFileError: its pickle asks for something to be imported, called or changed.
        DamageError: its pickle is not the one that was written.
    """
    directory = read_directory(file)
    folder = _folder(file, directory.records)
    records = locate(file, directory)
    _check_version(file, records, folder)
    order = _byte_order(file, records, folder)
    record = records[folder + _PROGRAM]
    if record.nbytes > MAX_PROGRAM:
        raise FormatError(
            f"the pickle in {file.path!r} has {record.nbytes} bytes, and at most {MAX_PROGRAM} are read; save "
            "large data as tensors"
        )
    program = file.read(record.start, record.nbytes)
    if record.crc is not None and crc32(program) != record.crc:
        error = DamageError(
            f"the pickle in {file.path!r} (bytes {record.start} to {record.start + record.nbytes}) is damaged: "
            "its checksum differs; copy or write the file again"
        )
        error.file, error.start, error.stop = file.path, record.start, record.start + record.nbytes
        raise error
    storages = _Storages(records, folder)
    machine = Machine(
        program, path=file.path, base=record.start, budget=budget(len(program)), resolve=storages.resolve
    )
    try:
        root = machine.run(HANDLERS)
    except TruncatedError as cause:
        raise machine.malformed("ends before it is complete") from cause
    if machine.at != len(program):
        raise machine.malformed("goes on after its end")
    read = ((record.start, record.start + record.nbytes), (directory.start, file.size))
    return Parsed(root, storages.extents, order, tuple(sorted(machine.notes)), read, "zip")


class _Storages:
    """Finds the records that the pickle names as storages."""

    def __init__(self, records: dict[str, Extent], folder: str) -> None:
        self.extents: dict[str, Extent] = {}
        self._prefix = f"{folder}data/"
        self._records = records

    def resolve(self, m: Machine, wanted: tuple[Any, ...]) -> StorageRef:
        """Describe the storage of a persistent id: ``("storage", class, key, location, numel)``."""
        match wanted:
            case [StorageType(dtype), str() as key, str() as location, numel]:
                found = StorageRef(storage_key(m, key, location), dtype, storage_numel(m, numel), location)
            case _:
                raise m.malformed("names a storage in a way that is not known")
        extent = self._records.get(self._prefix + key)
        if extent is None:
            raise m.malformed(f"names the storage {key!r}, which the file does not hold")
        if found.nbytes > extent.nbytes:
            raise m.malformed(f"has {extent.nbytes} bytes of storage {key!r}, where {found.nbytes} are needed")
        self.extents[key] = extent
        return found


def _folder(file: Readable, records: dict[str, Record]) -> str:
    """Return the folder that the file's records are in, with its slash."""
    found = [
        name.removesuffix(_PROGRAM) for name in records if name.endswith("/" + _PROGRAM) and name.count("/") == 1
    ]
    if len(found) != 1:
        raise FormatError(
            f"{file.path!r} is a zip archive, but none that torch.save writes: it holds {len(found)} pickles "
            f"(<folder>/{_PROGRAM}) where one is expected; unpack it, and give the file inside"
        )
    (folder,) = found
    if folder + "constants.pkl" in records or any(name.startswith(folder + "code/") for name in records):
        raise FormatError(
            f"{file.path!r} is a TorchScript archive (torch.jit.save), which holds a program; load it with "
            "torch.jit.load, if you trust where it came from, and save its state_dict() with torchkeep.save"
        )
    if folder + ".data/extern_modules" in records:
        raise FormatError(
            f"{file.path!r} is a package of code (torch.package); load it with torch.package.PackageImporter, if "
            "you trust where it came from, and save its state_dict() with torchkeep.save"
        )
    return folder


def _check_version(file: Readable, records: dict[str, Extent], folder: str) -> None:
    text = _small(file, records, folder + "version")
    if text is None:
        return
    version = text.strip()
    if not version.isdigit() or not 1 <= int(version) <= _LAST_VERSION:
        raise FormatError(
            f"{file.path!r} is in version {version.decode(errors='replace')!r} of PyTorch's format, and 1 to "
            f"{_LAST_VERSION} are read; save it again with another PyTorch"
        )


def _byte_order(file: Readable, records: dict[str, Extent], folder: str) -> Literal["little", "big"]:
    text = _small(file, records, folder + "byteorder")
    if text in {None, b"little"}:
        return "little"
    if text == b"big":
        return "big"
    raise FormatError(f"{file.path!r} has numbers in the byte order {text!r}, and 'little' or 'big' is expected")


def _small(file: Readable, records: dict[str, Extent], name: str) -> bytes | None:
    record = records.get(name)
    if record is None:
        return None
    if record.nbytes > _SMALL:
        raise FormatError(
            f"{file.path!r} has {record.nbytes} bytes in its record {name!r}, where a word is expected"
        )
    return file.read(record.start, record.nbytes)
