"""Drawing: values that depend only on seed, name, global shape and global index.

The elements of a tensor, in row-major order of its global shape, are cut into chunks of 65,536. Each chunk is
drawn whole, under its own keyed stream, so any chunk can be drawn by any thread, or alone for a shard.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from threading import Thread
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

from torchkeep.init.distributions import Desk, Distribution
from torchkeep.tensors.streams import secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCHEME: Final = 1
"""Version of the scheme: it changes whenever the value of any element does."""
CHUNK: Final = 1 << 16
_LANES: Final = 16
"""Chunks are drawn in multiples of this: torch's normal_ treats what is left over in another way."""
_SMALL: Final = 1 << 12
"""Below this many elements a tensor takes less time than handing it to a thread."""
_NUMBER: Final = Struct("<Q").pack

_Task: TypeAlias = "tuple[Job, bytes, int]"
"""A chunk to draw: its job, the job's message, and the index of its first element."""


def seed_secret(seed: int) -> bytes:
    """Return the 32 bytes that stand for a seed, an integer of any size and sign."""
    return secret("torchkeep.init", SCHEME, seed)


@dataclass(slots=True, eq=False)
class Job:
    """One tensor, or a contiguous part of one, to be drawn.

    Attributes:
        distribution: what its elements are drawn from.
        secret: from `seed_secret`.
        name: canonical name.
        shape: global shape.
        out: where the values go: contiguous, 1-D, on the CPU, of a real floating dtype. A complex element is two
            reals here.
        start: index of the first real of ``out`` in the flattened tensor.
        total: how many reals the whole tensor has.
    """

    distribution: Distribution
    secret: bytes
    name: str
    shape: tuple[int, ...]
    out: torch.Tensor
    start: int
    total: int

    @property
    def message(self) -> bytes:
        """Spell the rest of the key: name and shape, with their lengths, so that no two are spelled alike."""
        name = self.name.encode("utf-8", "surrogatepass")
        return b"".join((_NUMBER(len(name)), name, _NUMBER(len(self.shape)), *map(_NUMBER, self.shape)))


def drawing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the real dtype that values of ``dtype`` are drawn in, before they are rounded."""
    return torch.float64 if dtype in {torch.float64, torch.complex128} else torch.float32


def draw(jobs: Iterable[Job]) -> None:
    """Draw every job, with as many threads as torch uses on the CPU. The values don't depend on how many.

    Args:
        jobs: what to draw; their outputs must not overlap.
    """
    large: list[_Task] = []
    with one_torch_thread() as threads:
        desk = Desk()
        for job in jobs:
            size, message = job.out.numel(), job.message
            if size >= _SMALL or job.total > size:
                first = job.start - job.start % CHUNK
                large.extend((job, message, chunk) for chunk in range(first, job.start + size, CHUNK))
            elif size:
                _fill(desk, job, message, 0, job.out)
        _in_threads(threads, large, desk)


@contextmanager
def one_torch_thread() -> Iterator[int]:
    """Let torch use one thread for each operation inside, and yield how many it used before.

    Two threads of ours that each start torch's own would share the cores with them; and results of LAPACK, say,
    may depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _in_threads(threads: int, tasks: Iterable[_Task], desk: Desk) -> None:
    """Draw all chunks with up to ``threads`` threads, this one included, and raise the first thing that failed."""
    waiting = deque(tasks)
    inference = torch.is_inference_mode_enabled()
    failures: list[BaseException] = []

    def work(desk: Desk | None = None) -> None:
        try:
            # Modes are a thread's own, and only in inference mode may what was made in it be filled.
            with torch.inference_mode(inference):
                desk = desk or Desk()
                while waiting and not failures:
                    try:
                        task = waiting.popleft()
                    except IndexError:  # another thread took the last one
                        return
                    _fill_chunk(desk, *task)
        except BaseException as failure:  # noqa: BLE001 - raised again below, in the thread that was called
            failures.append(failure)

    helpers = [Thread(target=work, name="torchkeep-init") for _ in range(min(threads, len(waiting)) - 1)]
    for helper in helpers:
        helper.start()
    work(desk)
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]


def _fill_chunk(desk: Desk, job: Job, message: bytes, chunk: int) -> None:
    """Draw the chunk that begins at ``chunk``, or what ``job.out`` holds of it."""
    stop = min(chunk + CHUNK, job.total)
    low, high = max(chunk, job.start), min(stop, job.start + job.out.numel())
    part = job.out[low - job.start : high - job.start]
    if high - low == stop - chunk:
        _fill(desk, job, message, chunk, part)
    else:
        whole = torch.empty(stop - chunk, dtype=drawing_dtype(part.dtype), device="cpu")
        _fill(desk, job, message, chunk, whole)
        part.copy_(whole[low - chunk : high - chunk])


def _fill(desk: Desk, job: Job, message: bytes, chunk: int, out: torch.Tensor) -> None:
    """Draw the whole chunk that begins at ``chunk`` into ``out``, rounded to its dtype."""
    size = out.numel()
    drawn = size + -size % _LANES
    dtype = drawing_dtype(out.dtype)
    desk.stream.restart(
        job.secret, message + _NUMBER(chunk // CHUNK), drawn * (2 if dtype is torch.float64 else 1)
    )
    if drawn == size and out.dtype is dtype:
        job.distribution.fill(out, desk)
    else:
        room = desk.room("chunk", drawn, dtype)
        job.distribution.fill(room, desk)
        out.copy_(room[:size])
