"""Read files again and compare every byte with the digests in them. No torch is needed."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from blake3 import blake3
from msgspec import Struct

from torchkeep.errors import DamageError, FormatError, TorchkeepError
from torchkeep.formats.contents import Contents
from torchkeep.formats.locations import store_location
from torchkeep.formats.pickles.checksums import RunningCrc, joined_crc
from torchkeep.formats.sharded import Sharded, described, is_index, model_at, parts_of
from torchkeep.storage.transfer import Chunk, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.formats.digests import Running
    from torchkeep.formats.pickles import Pickled
    from torchkeep.storage.base import ReadableFile, Storage

    _Sum = TypeVar("_Sum", bound=Running)

Status: TypeAlias = Literal["sound", "structure only", "damaged", "unreadable"]

_PIECE: Final = 8 * 1024 * 1024


class Damage(Struct, frozen=True):
    """A part of a file that is not what was written.

    Attributes:
        tensor: the tensor that lies there; empty when it is the header.
        start: first byte in the file.
        stop: one past the last.
        problem: what is wrong.
    """

    tensor: str
    start: int
    stop: int
    problem: str


class FileReport(Struct, frozen=True):
    """What was found in one file.

    Attributes:
        path: the file.
        format: ``"torchkeep"``, ``"safetensors"``, ``"pytorch"`` or ``"legacy pytorch"``; None where its header
            is damaged.
        tensors: how many it holds, a tied one once.
        nbytes: bytes of their elements in the file.
        checked: how many of these were compared with a digest or checksum.
        damage: in the order of the file.
    """

    path: str
    format: str | None
    tensors: int
    nbytes: int
    checked: int
    damage: tuple[Damage, ...]

    @property
    def verified(self) -> bool:
        """Whether every byte of the tensors, and what describes them, was compared."""
        return self.format in {"torchkeep", "pytorch"} and self.checked == self.nbytes


class KeptReport(Struct, frozen=True):
    """What was found of one checkpoint in a store.

    Attributes:
        step: its step.
        sequence: its number of commit.
        sound: whether every byte of it is what was written.
    """

    step: int
    sequence: int
    sound: bool


class StoreReport(Struct, frozen=True):
    """What was found in a store.

    Attributes:
        checkpoints: those that were verified, in the order they were committed.
        nbytes: bytes of tensors that were compared, those that checkpoints share once.
    """

    checkpoints: tuple[KeptReport, ...]
    nbytes: int


class SourceReport(Struct, frozen=True):
    """What was found at one path that was given.

    Attributes:
        source: as it was given.
        files: the file, or those that an index names; of a store, only the damaged ones.
        error: why it can't be read, where it can't.
        store: of a store or one of its checkpoints, what was found in it.
    """

    source: str
    files: tuple[FileReport, ...]
    error: str | None
    store: StoreReport | None = None

    @property
    def status(self) -> Status:
        """The answer: the worst of its files."""
        if any(file.damage for file in self.files):
            return "damaged"
        if self.error is not None:
            return "unreadable"
        return "sound" if all(file.verified for file in self.files) else "structure only"


def verify_source(storage: Storage, source: str | os.PathLike[str]) -> SourceReport:
    """Verify a file, all files of an index, a checkpoint or a store; what is wrong is returned, not raised."""
    location = store_location(source)
    if location is not None:
        from torchkeep.files.rereading import verify_stored  # noqa: PLC0415 - it builds on this module

        return verify_stored(location)
    files: list[FileReport] = []
    error: str | None = None
    try:
        path = model_at(source)
        for part in parts_of(path) if is_index(path) else [path]:
            try:
                files.append(verify_file(storage, part))
            except TorchkeepError as problem:
                error = str(problem) if error is None else f"{error}; {problem}"
        if is_index(path) and error is None and not any(file.damage for file in files):
            Sharded(path)  # compares the index with its files
    except TorchkeepError as problem:
        error = str(problem)
    return SourceReport(os.fspath(source), tuple(files), error)


def verify_file(storage: Storage, path: str) -> FileReport:
    """Verify one file.

    Raises:
        FormatError: it is no file that can be read, or it was changed meanwhile.
        StorageError: it can't be read.
    """
    with closing(storage.open(path)) as file:
        try:
            part = described(file)
        except DamageError as error:
            found = Damage(error.tensor, error.start, error.stop, str(error))
            return FileReport(path, None, 0, 0, 0, (found,))
        damage, checked, nbytes = (
            _of_contents(file, part) if isinstance(part, Contents) else _of_pickled(file, part)
        )
        if file.has_changed():
            raise FormatError(f"{path!r} was changed while it was read; verify it again")
    return FileReport(path, _format(part), len(part.listing.rows), nbytes, checked, tuple(damage))


def _format(part: Contents | Pickled) -> str:
    if isinstance(part, Contents):
        return "safetensors" if part.document is None else "torchkeep"
    return "pytorch" if part.container == "zip" else "legacy pytorch"


def _of_contents(file: ReadableFile, contents: Contents) -> tuple[list[Damage], int, int]:
    """Return what is damaged, how many bytes were compared, and how many there are."""
    names = list(contents.header.entries)
    spans = [contents.header.span(name) for name in names]
    nbytes = sum(stop - start for start, stop in spans)
    digests = contents.digests
    if digests is None or contents.document is None:
        return [], 0, nbytes
    size = contents.document.chunk
    wrong: list[Chunk] = []

    def check(chunk: Chunk, found: blake3) -> None:
        if found.digest() != digests.of(names[chunk.tensor], chunk.offset // size):
            wrong.append(chunk)

    _read(file, spans, size, check, blake3)
    return (
        [
            Damage(names[tensor], start, stop, "the digest of these bytes differs")
            for tensor, start, stop in _ranges(sorted(wrong))
        ],
        nbytes,
        nbytes,
    )


def _of_pickled(file: ReadableFile, pickled: Pickled) -> tuple[list[Damage], int, int]:
    """Do the same for a file of torch.save: it has a checksum for each storage."""
    users: dict[str, str] = {}
    for name, tensor in pickled.tensors.items():
        if tensor.storage is not None:
            users.setdefault(tensor.storage.key, name)
    nbytes = sum(extent.nbytes for extent in pickled.extents.values())
    summed = {key: extent for key, extent in pickled.extents.items() if extent.crc is not None}
    spans = [(extent.start, extent.start + extent.nbytes) for extent in summed.values()]
    crcs: dict[tuple[int, int], tuple[int, int]] = {}

    def check(chunk: Chunk, found: RunningCrc) -> None:
        crcs[chunk.tensor, chunk.offset] = found.value, chunk.nbytes

    _read(file, spans, _PIECE, check, RunningCrc)
    found = [0] * len(spans)
    for (position, _), (crc, length) in sorted(crcs.items()):
        found[position] = joined_crc(found[position], crc, length)
    damage = [
        Damage(users.get(key, ""), start, stop, "the checksum (CRC-32) of these bytes differs")
        for (key, extent), (start, stop), crc in zip(summed.items(), spans, found, strict=True)
        if crc != extent.crc
    ]
    return sorted(damage, key=lambda one: one.start), sum(stop - start for start, stop in spans), nbytes


def _read(
    file: ReadableFile,
    spans: Sequence[tuple[int, int]],
    size: int,
    check: Callable[[Chunk, _Sum], None],
    summing: Callable[[memoryview], _Sum],
) -> None:
    """Read ranges of a file in chunks, each numbered by its range."""
    chunks = [
        Chunk(at, min(size, stop - at), position, at - start)
        for position, (start, stop) in enumerate(spans)
        for at in range(start, stop, size)
    ]
    read_chunks(file, sorted(chunks), None, check, summing=summing)


def _ranges(wrong: Sequence[Chunk]) -> list[tuple[int, int, int]]:
    """Join neighbouring chunks of one tensor: tensor, first byte, one past the last."""
    ranges: list[tuple[int, int, int]] = []
    for chunk in wrong:
        stop = chunk.start + chunk.nbytes
        if ranges and ranges[-1][0] == chunk.tensor and ranges[-1][2] == chunk.start:
            ranges[-1] = (chunk.tensor, ranges[-1][1], stop)
        else:
            ranges.append((chunk.tensor, chunk.start, stop))
    return ranges
