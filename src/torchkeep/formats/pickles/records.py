"""The records of a zip archive, as far as torch.save writes them: not compressed, each at its place in the file.

The layout is that of https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Readers of zip archives differ
in what they believe when an archive contradicts itself, so a contradiction is an error here: names that occur
twice, local headers that say something else than the directory, records that overlap, bytes outside the file.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from torchkeep.errors import DamageError, FormatError
from torchkeep.formats.pickles.machine import shown
from torchkeep.formats.pickles.objects import Extent

if TYPE_CHECKING:
    from torchkeep.formats.opening import Readable

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_U16: Final = struct.Struct("<H")
_U64: Final = struct.Struct("<Q")
_MAX_COMMENT: Final = 0xFFFF
_MAX_DIRECTORY: Final = 1 << 30
_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF
_DESCRIPTOR: Final = 0x0008
_UTF8: Final = 0x0800
_KNOWN_FLAGS: Final = _UTF8 | _DESCRIPTOR | 0x0006
"""Names in UTF-8, sizes that follow the bytes, and two that mean nothing where nothing is compressed."""
_ZIP64: Final = 0x0001


class Record(Struct, frozen=True, gc=False):
    """One record as the directory describes it.

    Attributes:
        name: its name, folders included.
        header: where in the file its own header is.
        nbytes: bytes of what it holds.
        crc: their CRC-32; None where the archive gives none.
        compressed: whether they are kept in another form.
    """

    name: str
    header: int
    nbytes: int
    crc: int | None
    compressed: bool


class Directory(Struct, frozen=True):
    """What an archive says of itself.

    Attributes:
        records: its records by name, in its order.
        start: where in the file it begins, after the last record.
    """

    records: dict[str, Record]
    start: int


def read_directory(file: Readable) -> Directory:
    """Read an archive's directory.

    Raises:
        FormatError: it contradicts itself, or it holds what torch.save never writes.
        DamageError: it is cut short.
        StorageError: the file can't be read.
    """
    count, start, size = _place(file)
    if size > _MAX_DIRECTORY:
        raise _bad(file, f"has a directory of {size} bytes, and at most {_MAX_DIRECTORY} are read")
    directory = file.read(start, size)
    records: dict[str, Record] = {}
    at = 0
    for _ in range(count):
        record, at = _entry(file, directory, at)
        if record.name in records:
            raise _bad(file, f"holds the record {shown(record.name)} twice")
        records[record.name] = record
    if at != size:
        raise _bad(file, "has a directory that is longer than its records")
    return Directory(records, start)


def locate(file: Readable, directory: Directory) -> dict[str, Extent]:
    """Return where the bytes of all records are, by name.

    Raises:
        FormatError: a record is compressed, lies outside the file or over another, or its own header says
            something else than the directory.
        StorageError: the file can't be read.
    """
    extents = {}
    before, reached = "", 0
    for record in sorted(directory.records.values(), key=lambda record: record.header):
        if record.compressed:
            raise FormatError(
                f"{file.path!r} holds the compressed record {shown(record.name)}, and torch.save compresses none; "
                "unpack it and pack it again without compression (zip -0), if you trust where it came from"
            )
        if record.header < reached:
            raise _bad(file, f"has records that overlap: {shown(before)} and {shown(record.name)}")
        extent = extents[record.name] = _located(file, record)
        before, reached = record.name, extent.start + extent.nbytes
    if reached > directory.start:
        raise _bad(file, f"has records that overlap: {shown(before)} and the directory")
    return extents


def _place(file: Readable) -> tuple[int, int, int]:
    """Return how many records there are, and the first byte and the size of the directory."""
    start = max(0, file.size - _END.size - _MAX_COMMENT)
    tail = file.read(start, file.size - start)
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    # A comment may follow, up to the end of the file.
    while at >= 0 and at + _END.size + _END.unpack_from(tail, at)[-1] != len(tail):
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        error = DamageError(
            f"{file.path!r} begins like a zip archive but has no directory at its end; it is cut short or "
            "damaged; copy or write it again"
        )
        error.file, error.start, error.stop = file.path, 0, file.size
        raise error
    _, disk, first_disk, *narrow, _ = _END.unpack_from(tail, at)
    end = start + at
    here, count, size, directory = narrow
    locator = tail[at - _LOCATOR.size : at] if at >= _LOCATOR.size else b""
    if locator.startswith(b"PK\x06\x07"):
        end, wide = _wide_place(file, locator, end - _LOCATOR.size)
        here, count, size, directory = wide
        for small, large, limit in zip(narrow, wide, (_MAX16, _MAX16, _MAX32, _MAX32), strict=True):
            if small not in {large, limit}:
                raise _bad(file, "has two directories that contradict each other")
    if disk or first_disk or here != count or directory + size != end or size < count * _CENTRAL.size:
        raise _bad(file, "has a directory that is not where it says")
    return count, directory, size


def _wide_place(file: Readable, locator: bytes, end: int) -> tuple[int, list[int]]:
    """Return where the wide end of the directory is, and the four numbers in it."""
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk == 0 and disks <= 1 and at + _END64.size <= end:
        signature, length, _, _, disk, first_disk, *wide = _END64.unpack(file.read(at, _END64.size))
        if signature == b"PK\x06\x06" and at + 12 + length == end and not disk and not first_disk:
            return at, wide
    raise _bad(file, "has a directory that is not where it says")


def _entry(file: Readable, directory: bytes, at: int) -> tuple[Record, int]:
    """Return the record that the directory's entry at ``at`` describes, and where the next entry is."""
    begin = at + _CENTRAL.size
    if begin > len(directory):
        raise _bad(file, "has a directory that is shorter than its records")
    fields = _CENTRAL.unpack_from(directory, at)
    signature, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, header = fields
    _, extra, comment, stop = accumulate(lengths, initial=begin)
    if signature != b"PK\x01\x02" or stop > len(directory) or disk:
        raise _bad(file, "has a directory that is damaged")
    name = _name(file, directory[begin:extra], flags)
    if _MAX32 in {packed, size, header}:
        size, packed, header = _wide_sizes(file, name, directory[extra:comment], (size, packed, header))
    if flags & ~_KNOWN_FLAGS:
        raise _bad(file, f"holds the record {shown(name)} encrypted, or in another way that is not known")
    return Record(name, header, size, crc or None, bool(method) or packed != size), stop


def _name(file: Readable, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as cause:
        raise _bad(file, f"holds a record whose name is no text: {raw[:100]!r}") from cause
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise _bad(file, f"holds a record whose name leads out of the archive: {shown(name)}")
    return name


def _wide_sizes(file: Readable, name: str, extra: bytes, narrow: tuple[int, int, int]) -> list[int]:
    """Return the size, the packed size and the header's place; those beyond 32 bits are in the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = _U16.unpack_from(extra, at)[0], _U16.unpack_from(extra, at + 2)[0]
        at += 4
        if kind == _ZIP64 and at + length <= len(extra):
            large = iter([_U64.unpack_from(extra, place)[0] for place in range(at, at + length - 7, 8)])
            sizes = [next(large, -1) if value == _MAX32 else value for value in narrow]
            if -1 not in sizes:
                return sizes
        at += length
    raise _bad(file, f"does not say where the record {shown(name)} is")


def _located(file: Readable, record: Record) -> Extent:
    """Return where a record's bytes are, after its own header has been compared with the directory's entry."""
    raw = record.name.encode()
    length = _LOCAL.size + len(raw)
    if record.header + length > file.size:
        raise _bad(file, f"has the record {shown(record.name)} outside of itself")
    head = file.read(record.header, length)
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(head)
    if signature != b"PK\x03\x04" or name_length != len(raw) or head[_LOCAL.size :] != raw:
        raise _bad(file, f"has something else where the record {shown(record.name)} should be")
    # Sizes and checksum may follow the bytes, and sizes beyond 32 bits stand elsewhere.
    later = bool(flags & _DESCRIPTOR) and not size and not packed
    agrees = later or _MAX32 in {size, packed} or (size == packed == record.nbytes and crc == (record.crc or 0))
    if method or flags & ~_KNOWN_FLAGS or not agrees:
        raise _bad(file, f"says two different things of the record {shown(record.name)}")
    return Extent(record.header + length + extra_length, record.nbytes, record.crc)


def _bad(file: Readable, problem: str) -> FormatError:
    return FormatError(f"the zip archive {file.path!r} {problem}; it is damaged, or not written by torch.save")
