"""Move tensors' bytes between memory and a file in parallel, taking every chunk's digest on the way.

A few threads, each with a buffer of its own: one computes (copying and blake3 both release the GIL) while another
waits for the disk. Neighbouring small chunks travel together. A chunk is handed out only when its digest is right.
"""

from __future__ import annotations

from threading import Lock, Thread
from typing import TYPE_CHECKING, Final, NamedTuple

from torchkeep.formats.digests import digest
from torchkeep.storage.buffers import PAGE, Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torchkeep.storage.base import ReadableFile, WritableFile

MOVERS: Final = 4
"""More than cores: disks are fastest when several requests wait while others copy and digest."""
_GROUP: Final = 8 * 1024 * 1024
"""Small chunks travel together up to this many bytes."""
IN_PLACE: Final = 256 * 1024
"""Shorter chunks are never read to their place before they are checked."""
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
    """Chunks that travel together.

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


def write_chunks(file: WritableFile, chunks: Sequence[Chunk], give: Callable[[Chunk, int], None]) -> list[bytes]:
    """Write chunks and return their digests.

    Args:
        file: the file.
        chunks: in the order of the file, without gaps.
        give: copies a chunk's bytes to an address; called from several threads.

    Raises:
        StorageError: the operating system refused.
    """
    digests = [b""] * len(chunks)

    def move(group: Group, buffer: Buffer) -> None:
        shift = group.start % PAGE - group.start
        for position, chunk in enumerate(group.chunks, group.first):
            begin = chunk.start + shift
            give(chunk, buffer.address + begin)
            digests[position] = digest(buffer.view[begin : begin + chunk.nbytes])
        file.write(group.start, buffer, group.start + shift, group.stop + shift)

    _run(list(groups_of(chunks, gap=0)), move, MOVERS)
    return digests


def read_chunks(
    file: ReadableFile,
    chunks: Sequence[Chunk],
    take: Callable[[Chunk, int], None],
    check: Callable[[Chunk, memoryview], None],
    place: Callable[[Chunk], memoryview | None] | None = None,
    *,
    begun: Callable[[Chunk], object] = bool,
) -> None:
    """Read chunks and hand each out at an address, where it stays only until ``take`` returns.

    Args:
        file: the file.
        chunks: in the order of the file.
        take: copies a chunk's bytes from an address; called from several threads.
        check: raises when a chunk's bytes are not what they should be; called before ``take``.
        place: memory where a large chunk may be read to at once, or None. There it is checked, and ``take`` is not
            called. Left out, every chunk is taken.
        begun: called before the first byte of such memory changes.

    Raises:
        StorageError: the operating system refused.
        DamageError: the file ends too early.
    """

    def move(group: Group, buffer: Buffer) -> None:
        chunk = group.chunks[0]
        if place is not None and chunk.nbytes >= IN_PLACE and len(group.chunks) == 1:
            room = place(chunk)
            if room is not None:
                file.fill_view(chunk.start, room, buffer, lambda: begun(chunk))
                check(chunk, room)
                return
        shift = group.start % PAGE - group.start
        file.fill(group.start, buffer, group.start + shift, group.stop + shift)
        for chunk in group.chunks:
            begin = chunk.start + shift
            check(chunk, buffer.view[begin : begin + chunk.nbytes])
            take(chunk, buffer.address + begin)

    _run(list(groups_of(chunks, gap=_GAP)), move, MOVERS)


def groups_of(chunks: Sequence[Chunk], *, gap: int) -> Iterator[Group]:
    """Cut chunks, in the order of the file, into groups that travel together."""
    first = 0
    for position in range(1, len(chunks)):
        before, chunk = chunks[position - 1], chunks[position]
        reach = chunk.start + chunk.nbytes - chunks[first].start
        if reach > _GROUP or chunk.start - before.start - before.nbytes > gap:
            yield Group(first, chunks[first:position])
            first = position
    if chunks:
        yield Group(first, chunks[first:])


def _run(groups: Sequence[Group], move: Callable[[Group, Buffer], None], threads: int) -> None:
    """Let threads, this one among them, move the groups; raise what fails first, in the order of the file."""
    crew = _Crew(groups, move)
    helpers = [
        Thread(target=crew.work, name="torchkeep", daemon=True) for _ in range(min(threads, len(groups)) - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        crew.work()
    finally:
        crew.stopped = True
        _wait_for(helpers)
    if crew.failures:
        # An interrupt goes before any error that it may have caused.
        raise min(crew.failures, key=lambda failure: (isinstance(failure[1], Exception), failure[0]))[1]


def _wait_for(helpers: Sequence[Thread]) -> None:
    """Wait until no helper uses the file any more, even when interrupted meanwhile."""
    interrupt: BaseException | None = None
    for helper in helpers:
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as found:  # noqa: BLE001 - raised again below
                interrupt = found
    if interrupt is not None:
        raise interrupt


class _Crew:
    """What the threads share.

    Attributes:
        failures: what was raised, with the position of the group.
        stopped: no further group is begun.
    """

    def __init__(self, groups: Sequence[Group], move: Callable[[Group, Buffer], None]) -> None:
        self.failures: list[tuple[int, BaseException]] = []
        self.stopped = False
        self._pending = iter(groups)
        self._lock = Lock()
        self._move = move
        self._room = 2 * PAGE + max((group.stop - group.start for group in groups), default=0)

    def work(self) -> None:
        """Move groups until none is left or something failed."""
        buffer = Buffer(self._room)
        while not self.stopped:
            with self._lock:
                group = next(self._pending, None)
            if group is None:
                break
            try:
                self._move(group, buffer)
            except BaseException as failure:  # noqa: BLE001 - raised again in the thread that asked
                self.failures.append((group.first, failure))
                self.stopped = True
