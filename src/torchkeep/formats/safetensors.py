"""Read and write the header of a safetensors file.

The format (https://github.com/huggingface/safetensors): eight bytes, little-endian, the header's length; the
header, a JSON object that maps each tensor's name to its dtype code, shape and byte range, and ``__metadata__`` to
a mapping of strings; the tensors' bytes, without a gap. We read it ourselves, since chunk digests and positional
reads need byte ranges, which the safetensors package does not give.

Nothing in a header is trusted: what does not hold is a `FormatError`, and nothing is allocated by what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from torchkeep.dtypes import BY_CODE
from torchkeep.errors import FormatError
from torchkeep.formats.kinds import HEAD, known_other
from torchkeep.formats.opening import FileReader, truncated

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torchkeep.formats.opening import Readable

METADATA_KEY: Final = "__metadata__"
LENGTH_BYTES: Final = 8
MAX_HEADER: Final = 100_000_000
"""The longest header, in bytes, that the safetensors package reads."""
MAX_NDIM: Final = 1024
ALIGNMENT: Final = 4096
"""Our own files' data starts at a multiple of this, so that it can be read and written past the page cache."""

_LARGEST: Final = 2**63 - 1
_Size = Annotated[int, Meta(ge=0, le=_LARGEST)]
_SIZES: Final = {code: info.itemsize for code, info in BY_CODE.items()}


class Entry(Struct, gc=False):
    """One tensor as the header describes it.

    Attributes:
        dtype: safetensors' code, such as ``"F32"``.
        shape: sizes of its dimensions.
        data_offsets: its first byte and one past its last, counted from the start of the data.
    """

    # Only ``__metadata__``, read as if it were an entry, has none of them.
    dtype: str = ""
    shape: Annotated[tuple[_Size, ...], Meta(max_length=MAX_NDIM)] = ()
    data_offsets: tuple[_Size, _Size] = (-1, -1)


@dataclass(frozen=True)
class Header:
    """What a safetensors file's header says; checked.

    Attributes:
        path: the file.
        raw: the header's exact bytes, the eight of its length included.
        entries: the tensors by name, in the header's order.
        metadata: the free mapping that the format allows; empty when there is none.
    """

    path: str
    raw: bytes
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def data_start(self) -> int:
        """The position in the file where the tensors' bytes begin."""
        return len(self.raw)

    def span(self, name: str) -> tuple[int, int]:
        """Return a tensor's first byte and one past its last, counted from the start of the file."""
        start, stop = self.entries[name].data_offsets
        return len(self.raw) + start, len(self.raw) + stop


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        FormatError: it is no safetensors file, or its header contradicts itself or the file.
        DamageError: the file is cut short.
        StorageError: the file can't be read.
    """
    with FileReader(path) as file:
        return header_of(file)


def header_of(file: Readable) -> Header:
    """Read and check the header of an open file; raises what `read_header` does."""
    path = file.path
    if file.size == 0:
        raise FormatError(f"{path!r} is empty: a safetensors file was expected; write or copy it again")
    head = file.read(0, min(file.size, HEAD))
    foreign = _foreign(head)
    if foreign:
        raise FormatError(f"{path!r} is {foreign}")
    if file.size < LENGTH_BYTES:
        raise truncated(path, 0, LENGTH_BYTES, file.size)
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise FormatError(
            f"{path!r} is no safetensors file: its first eight bytes would mean a header of {length} bytes, "
            f"and at most {MAX_HEADER} are allowed; check what kind of file it is"
        )
    if LENGTH_BYTES + length > file.size:
        raise truncated(path, 0, LENGTH_BYTES + length, file.size)
    raw = file.read(0, LENGTH_BYTES + length)
    entries, metadata = _decode(path, raw[LENGTH_BYTES:])
    _check_ranges(path, entries, len(raw), file.size)
    return Header(path, raw, entries, metadata)


def _foreign(head: bytes) -> str | None:
    """Say what a known kind of file that is not safetensors is, and what to do with it, by its first bytes."""
    if head[8:9] == b"{":
        return None
    if head.startswith(b"PK\x03\x04"):
        kind = "a zip archive (torch.save writes such files)"
    elif head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        kind = "a pickle (old versions of torch.save wrote such files)"
    else:
        return known_other(head)
    return f"{kind}, where a safetensors file is expected; use torchkeep.load"


class _Metadata(Struct):
    metadata: dict[str, str] = msgspec.field(name=METADATA_KEY, default_factory=dict)


_entries_decoder: Final = msgspec.json.Decoder(dict[str, Entry])
_entry_decoder: Final = msgspec.json.Decoder(Entry)
_parts_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_metadata_decoder: Final = msgspec.json.Decoder(_Metadata)


def _decode(path: str, text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Decode the header's JSON; what it says is not checked yet, beyond its types."""
    if not text.startswith(b"{"):
        raise FormatError(f"{path!r} is no safetensors file: its header does not begin with {{")
    try:
        metadata = _metadata_decoder.decode(text).metadata
        try:
            entries = _entries_decoder.decode(text)
        except msgspec.ValidationError:
            entries = _decode_each(path, text)
    except msgspec.ValidationError as cause:
        raise FormatError(f"the header of {path!r} is not as safetensors defines it: {cause}") from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise FormatError(f"the header of {path!r} is no JSON: {cause}; copy or write it again") from cause
    except RecursionError as cause:
        raise FormatError(f"the header of {path!r} is nested too deeply to be a safetensors header") from cause
    had_metadata = entries.pop(METADATA_KEY, None) is not None
    _refuse_duplicates(path, text, entries, metadata if had_metadata else None)
    return entries, metadata


def _decode_each(path: str, text: bytes) -> dict[str, Entry]:
    """Decode entry by entry: slower, but an odd ``__metadata__`` is no obstacle and an error names the tensor."""
    entries = {}
    for name, part in _parts_decoder.decode(text).items():
        try:
            entries[name] = Entry() if name == METADATA_KEY else _entry_decoder.decode(part)
        except msgspec.ValidationError as cause:
            raise FormatError(f"the header of {path!r} describes tensor {name!r} wrongly: {cause}") from cause
    return entries


def _refuse_duplicates(path: str, text: bytes, entries: dict[str, Entry], metadata: dict[str, str] | None) -> None:
    """Refuse keys that stand in the JSON twice: readers differ in which they take.

    The shortest JSON for what was decoded has exactly the header's length when the header is compact and holds
    nothing else; only another one (with spaces, escapes, unknown fields or duplicates) is looked at key by key.
    """
    whole: dict[str, object] = dict(entries) if metadata is None else {METADATA_KEY: metadata, **entries}
    if len(msgspec.json.encode(whole)) == len(text.rstrip(b" ")):
        return
    import json  # noqa: PLC0415 - only needed here, and not for nothing

    try:
        json.loads(text, object_pairs_hook=_unique, parse_int=str, parse_float=str, parse_constant=str)
    except _DuplicateError as cause:
        (key,) = cause.args
        raise FormatError(f"the header of {path!r} holds the key {key!r} twice; it is damaged") from None
    except RecursionError as cause:
        raise FormatError(f"the header of {path!r} is nested too deeply to be a safetensors header") from cause
    except ValueError as cause:
        raise FormatError(f"the header of {path!r} is no JSON: {cause}; copy or write it again") from cause


class _DuplicateError(Exception):
    """A key that stands in an object twice."""


def _unique(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _DuplicateError(key)
        seen.add(key)


def _check_ranges(path: str, entries: Mapping[str, Entry], data_start: int, file_size: int) -> None:
    """Refuse what does not fit: unknown dtypes, sizes that contradict shapes, gaps, overlaps, a wrong total."""
    numels: dict[tuple[int, ...], int] = {}
    ranges = []
    for name, entry in entries.items():
        shape, (start, stop) = entry.shape, entry.data_offsets
        itemsize = _SIZES.get(entry.dtype)
        if start < 0 or itemsize is None:
            raise _unfit(path, name, entry)
        numel = numels.get(shape)
        if numel is None:
            numel = numels[shape] = _numel(shape)
        if stop - start != numel * itemsize:
            raise _unfit(path, name, entry)
        ranges.append((start, stop))
    ranges.sort()
    reached = 0
    for start, stop in ranges:
        if start != reached:
            raise _misplaced(path, entries, start, reached)
        reached = stop
    data_size = file_size - data_start
    if reached > data_size:
        name, entry = min(
            ((name, entry) for name, entry in entries.items() if entry.data_offsets[1] > data_size),
            key=lambda item: item[1].data_offsets,
        )
        raise truncated(path, *_absolute(data_start, entry), file_size, name)
    if reached < data_size:
        raise FormatError(
            f"{path!r} has {data_size - reached} bytes after its last tensor, which no tensor claims; "
            "it is damaged or was changed by something else; copy or write it again"
        )


def _absolute(data_start: int, entry: Entry) -> tuple[int, int]:
    start, stop = entry.data_offsets
    return data_start + start, data_start + stop


def _numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for size in shape:
        numel *= size
        if numel > _LARGEST and 0 not in shape:
            return _LARGEST + 1
    return numel


def _unfit(path: str, name: str, entry: Entry) -> FormatError:
    """Say what is wrong with one entry by itself."""
    start, stop = entry.data_offsets
    if start < 0:
        return FormatError(f"the header of {path!r} gives no byte range (data_offsets) for tensor {name!r}")
    if entry.dtype not in _SIZES:
        return FormatError(
            f"tensor {name!r} in {path!r} has the dtype {entry.dtype!r}, which is not known here; "
            f"known are {', '.join(_SIZES)}"
        )
    numel = _numel(entry.shape)
    wanted = f"{numel * _SIZES[entry.dtype]} bytes" if numel <= _LARGEST else "more than any file can hold"
    return FormatError(
        f"tensor {name!r} in {path!r} has {stop - start} bytes ({start} to {stop} of the data), but its shape "
        f"{list(entry.shape)} of {entry.dtype} means {wanted}; the header is damaged"
    )


def _misplaced(path: str, entries: Mapping[str, Entry], start: int, reached: int) -> FormatError:
    name = next(name for name, entry in entries.items() if entry.data_offsets[0] == start)
    if start > reached:
        return FormatError(
            f"{path!r} has bytes {reached} to {start} of its data that no tensor claims, before tensor {name!r}; "
            "the header is damaged"
        )
    other = next(
        (other for other, entry in entries.items() if entry.data_offsets[0] <= start and other != name), "another"
    )
    return FormatError(
        f"tensors {name!r} and {other!r} in {path!r} overlap at byte {start} of the data; the header is damaged"
    )


def compose_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytearray:
    """Return the bytes of a header, its length first, padded so that the data starts at a multiple of 4096."""
    text = msgspec.json.encode({METADATA_KEY: dict(metadata), **entries} if metadata else dict(entries))
    padded = -(LENGTH_BYTES + len(text)) % ALIGNMENT + len(text)
    return bytearray(padded.to_bytes(LENGTH_BYTES, "little") + text.ljust(padded))
