"""Move tensors' bytes between memory and a file in parallel, taking every chunk's digest on the way.

A few threads, each with a buffer of its own: one computes (copying and blake3 both release the GIL) while others
wait for the disk. Small chunks travel together and are handed out only when their digests are right; a large one
travels window by window, each digested while the processor's cache still holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from blake3 import blake3

from torchkeep.formats.digests import Running, digest
from torchkeep.storage.buffers import PAGE, Buffer
from torchkeep.storage.crews import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torchkeep.storage.base import ReadableFile, WritableFile

_Sum = TypeVar("_Sum", bound=Running)

WINDOW: Final = 1024 * 1024
"""Bytes moved at a time. Chunks of no more than this are never read to their place before they are checked."""
MOVERS: Final = 6
"""More than cores: disks are fastest when several requests wait while others copy and digest."""
_GAP: Final = 32 * 1024
"""Unwanted bytes between two chunks that are rather read than jumped over."""


class Chunk(NamedTuple):
    """Bytes that have one digest.

    Attributes:
        start: position in the file.
        nbytes: how many, at most 16 MiB.
        tensor: which tensor they are part of, as the caller numbers them.
        offset: their first byte's position within that tensor.
    """

    start: int
    nbytes: int
    tensor: int
    offset: int


class Group(NamedTuple):
    """Chunks that travel together: one, or several of no more than a window in all.

    Attributes:
        first: position of the first one among all chunks.
        chunks: in the order of the file.
    """

    first: int
    chunks: Sequence[Chunk]

    @property
    def start(self) -> int:
        """Its first byte in the file."""
        return self.chunks[0].start

    @property
    def stop(self) -> int:
        """One past its last byte."""
        return self.chunks[-1].start + self.chunks[-1].nbytes

    @property
    def is_large(self) -> bool:
        """Whether it is a chunk of several windows."""
        return self.stop - self.start > WINDOW


def write_chunks(
    file: WritableFile,
    chunks: Sequence[Chunk],
    give: Callable[[Chunk, int, memoryview, int], None],
    *,
    whole: bool = False,
) -> list[bytes]:
    """Write chunks and return their digests.

    Args:
        file: the file.
        chunks: in the order of the file, without gaps; each begins at a multiple of its elements' size.
        give: copies a part of a chunk, from its byte ``first`` on, to memory of the part's size that begins at an
            address: (chunk, first, room, address); called from several threads.
        whole: whether ``give`` is asked for whole chunks only, which takes memory for two of the largest.

    Raises:
        StorageError: the operating system refused.
    """
    largest = max((chunk.nbytes for chunk in chunks), default=0)
    window = max(WINDOW, largest + PAGE) if whole else WINDOW
    digests = [b""] * len(chunks)

    def move(group: Group, buffer: Buffer) -> None:
        if group.is_large:
            digests[group.first] = write_windows(group.chunks[0], buffer)
            return
        shift = group.start % PAGE - group.start
        for position, chunk in enumerate(group.chunks, group.first):
            begin = chunk.start + shift
            room = buffer.view[begin : begin + chunk.nbytes]
            give(chunk, 0, room, buffer.address + begin)
            digests[position] = digest(room)
        file.write(group.start, buffer, group.start + shift, group.stop + shift)

    def write_windows(chunk: Chunk, buffer: Buffer) -> bytes:
        running = blake3()
        for start, stop in windows_of(chunk, window):
            begin, end = start % PAGE, start % PAGE + stop - start
            room = buffer.view[begin:end]
            give(chunk, start - chunk.start, room, buffer.address + begin)
            running.update(room)
            file.write(start, buffer, begin, end)
        return running.digest()

    if chunks:
        file.reserve(chunks[-1].start + chunks[-1].nbytes)
    run(list(groups_of(chunks, gap=0)), move, window + 2 * PAGE, threads=2 if whole else MOVERS)
    return digests


def read_chunks(
    file: ReadableFile,
    chunks: Sequence[Chunk],
    take: Callable[[Chunk, int], None] | None,
    check: Callable[[Chunk, _Sum], None],
    place: Callable[[Chunk], memoryview | None] | None = None,
    *,
    begun: Callable[[Chunk], object] = bool,
    summing: Callable[[memoryview], _Sum],
) -> None:
    """Read chunks and hand each out at an address, where it stays only until ``take`` returns.

    Args:
        file: the file.
        chunks: in the order of the file.
        take: copies a chunk's bytes from an address; called from several threads. None where chunks are only
            checked.
        check: raises when a chunk's digest is not what it should be; called before ``take``.
        place: memory where a chunk of several windows may be read to at once, or None. There it is checked, and
            ``take`` is not called. Left out, every chunk is taken.
        begun: called before the first byte of such memory changes.
        summing: begins a digest with the first bytes of a chunk.

    Raises:
        StorageError: the operating system refused.
        DamageError: the file ends too early.
    """
    groups = list(groups_of(chunks, gap=_GAP))
    # What of the room is never touched takes no memory.
    largest = WINDOW if take is None else max((group.stop - group.start for group in groups), default=0)
    reading = _Reading(file, take, check, place, begun, summing)
    run(groups, reading.move, max(WINDOW, largest) + 2 * PAGE, threads=MOVERS)


@dataclass(frozen=True)
class _Reading(Generic[_Sum]):
    """What `read_chunks` was given."""

    file: ReadableFile
    take: Callable[[Chunk, int], None] | None
    check: Callable[[Chunk, _Sum], None]
    place: Callable[[Chunk], memoryview | None] | None
    begun: Callable[[Chunk], object]
    summing: Callable[[memoryview], _Sum]

    def move(self, group: Group, buffer: Buffer) -> None:
        """Read a group, check each chunk and hand it out."""
        if group.is_large:
            self._move_large(group.chunks[0], buffer)
            return
        shift = group.start % PAGE - group.start
        self.file.fill(group.start, buffer, group.start + shift, group.stop + shift)
        for chunk in group.chunks:
            begin = chunk.start + shift
            self.check(chunk, self.summing(buffer.view[begin : begin + chunk.nbytes]))
            if self.take is not None:
                self.take(chunk, buffer.address + begin)

    def _move_large(self, chunk: Chunk, buffer: Buffer) -> None:
        room = None if self.place is None else self.place(chunk)
        if room is not None:
            self.check(chunk, self._sum(self._placed(chunk, room, buffer)))
            return
        self.check(chunk, self._sum(self._buffered(chunk, buffer)))
        if self.take is not None:
            self.take(chunk, buffer.address + chunk.start % PAGE)

    def _sum(self, windows: Iterator[memoryview]) -> _Sum:
        running = self.summing(next(windows))
        for window in windows:
            running.update(window)
        return running

    def _placed(self, chunk: Chunk, room: memoryview, buffer: Buffer) -> Iterator[memoryview]:
        """Read a chunk to its place, window by window."""
        for start, stop in windows_of(chunk):
            window = room[start - chunk.start : stop - chunk.start]
            self.file.fill_view(start, window, buffer, lambda: self.begun(chunk))
            yield window

    def _buffered(self, chunk: Chunk, buffer: Buffer) -> Iterator[memoryview]:
        """Read a chunk into the buffer, window by window: in a row, or each over the last if nobody takes it."""
        for start, stop in windows_of(chunk):
            begin = start % PAGE if self.take is None else start - chunk.start + chunk.start % PAGE
            self.file.fill(start, buffer, begin, begin + stop - start)
            yield buffer.view[begin : begin + stop - start]


def groups_of(chunks: Sequence[Chunk], *, gap: int) -> Iterator[Group]:
    """Cut chunks, in the order of the file, into groups that travel together."""
    first = 0
    for position, (before, chunk) in enumerate(pairwise(chunks), 1):
        reach = chunk.start + chunk.nbytes - chunks[first].start
        if reach > WINDOW or chunk.start - before.start - before.nbytes > gap:
            yield Group(first, chunks[first:position])
            first = position
    if chunks:
        yield Group(first, chunks[first:])


def windows_of(chunk: Chunk, window: int = WINDOW) -> Iterator[tuple[int, int]]:
    """Cut a chunk into windows that meet where pages of the file do: first byte in the file, one past the last.

    They are as few as there can be and about of one size: a small one at the end would go through the page cache.
    """
    start, stop = chunk.start, chunk.start + chunk.nbytes
    span = start % PAGE + chunk.nbytes
    step = -(-span // (max(1, -(-span // window)) * PAGE)) * PAGE
    while start < stop:
        end = min(stop, start - start % PAGE + step)
        yield start, end
        start = end
