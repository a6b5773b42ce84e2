"""Bytes move in parallel, in groups, past the page cache where that is possible, and always to the right place."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from torchkeep.errors import DamageError
from torchkeep.formats.digests import Nothing, digest
from torchkeep.storage import local_reader
from torchkeep.storage.buffers import PAGE, Buffer, aligned_part
from torchkeep.storage.crews import run
from torchkeep.storage.local import LOCAL
from torchkeep.storage.local_reader import PAYS_FROM
from torchkeep.storage.transfer import WINDOW, Chunk, groups_of, read_chunks, windows_of, write_chunks


def chunks_over(sizes, start):
    chunks = []
    for number, size in enumerate(sizes):
        chunks.append(Chunk(start, size, number, 0))
        start += size
    return chunks


def moved(path, sizes, start, *, in_place=False, whole=False):
    """Write random bytes in chunks of these sizes, read them back into other memory, and return both.

    With ``in_place``, large ones are read straight to where they belong; with ``whole``, none is cut when written.
    """
    chunks = chunks_over(sizes, start)
    total = sum(sizes)
    given_bytes = random.Random(0).randbytes(total)  # noqa: S311 - no secret
    source, target = Buffer(total), Buffer(total)
    source.view[:total] = given_bytes

    def give(chunk, first, room, address):
        assert len(room) == chunk.nbytes if whole else len(room) <= WINDOW
        ctypes.memmove(address, source.address + chunk.start - start + first, len(room))

    def take(chunk, address):
        ctypes.memmove(target.address + chunk.start - start, address, chunk.nbytes)

    def check(chunk, found):
        assert found.digest() == digests[chunk.tensor]

    file = LOCAL.create(str(path), None)
    digests = write_chunks(file, chunks, give, whole=whole)
    file.close()

    def place(chunk):
        begin = chunk.start - start
        return target.view[begin : begin + chunk.nbytes]

    reader = LOCAL.open(str(path))
    read_chunks(reader, chunks, take, check, place if in_place else None, summing=blake3)
    read_chunks(reader, chunks, None, check, summing=blake3)
    reader.close()
    assert digests == [digest(source.view[c.start - start : c.start - start + c.nbytes]) for c in chunks]
    return given_bytes, bytes(target.view[:total])


SIZES = {
    "nothing": ([], 0),
    "one byte": ([1], 4096),
    "small ones": ([7] * 5000, 4096),
    "whole pages": ([8 * 2**20] * 3, 4096),
    "odd ends": ([5_000_001, 3, 6_000_002, 4095, 4097], 4096),
    "odd start": ([3_000_000, 3_000_000], 12_345),
    "large and small": ([16 * 2**20, 1, 2, 16 * 2**20 - 1, 0, 5], 8192),
}


@pytest.mark.parametrize(("sizes", "start"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("how", ["direct", "refused at once", "refused when used", "short"])
def test_every_byte_arrives_however_the_system_carries_it(tmp_path, monkeypatch, sizes, start, how):
    """With direct I/O, without it, with a system that refuses it late, and with one that does half of it."""
    if how == "refused at once":
        monkeypatch.setattr(local_reader, "_DIRECT", 0)
    direct = set()
    real = {name: getattr(os, name) for name in ("open", "pwrite", "preadv")}

    def note(path, flags, mode=0o777):
        descriptor = real["open"](path, flags, mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def pwrite(descriptor, data, offset):
        if how == "refused when used" and descriptor in direct:
            raise OSError(errno.EINVAL, "direct I/O is not for this file system")
        return real["pwrite"](descriptor, data[: len(data) // 2 or 1] if how == "short" else data, offset)

    def preadv(descriptor, buffers, offset, flags=0):
        if how == "refused when used" and (descriptor in direct or flags):
            raise OSError(errno.EOPNOTSUPP, "not for this file system")
        if how == "short":
            buffers = [buffers[0][: len(buffers[0]) // 2 or 1]]
        return real["preadv"](descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "preadv", preadv)
    sent, received = moved(tmp_path / "file", sizes, start)
    assert received == sent
    if sent:
        assert (tmp_path / "file").read_bytes()[start:] == sent


@pytest.mark.parametrize(("sizes", "start"), SIZES.values(), ids=SIZES)
def test_chunks_that_can_only_be_given_whole_are(tmp_path, sizes, start):
    """Where cutting costs more than memory, every chunk is asked for once; the file is the same."""
    sent, received = moved(tmp_path / "file", sizes, start, whole=True)
    assert received == sent


@pytest.mark.parametrize("start", [4096, 12_345])
@pytest.mark.parametrize("cached", ["whole", "beginning", "with holes", "not"])
@pytest.mark.parametrize("direct", ["direct", "refused", "refused when used", "short"])
def test_large_chunks_reach_their_place_whatever_the_cache_holds(tmp_path, monkeypatch, start, cached, direct):
    """Bytes in the page cache, some of them, none; with direct I/O, without, half of it: always the same bytes."""
    real = os.preadv
    asked = iter(range(10**9))

    def preadv(descriptor, buffers, offset, flags=0):
        by_direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        if by_direct and direct == "refused when used":
            raise OSError(errno.EINVAL, "direct I/O is not for this file system")
        if not flags:
            limit = 3 * PAGE if by_direct and direct == "short" else len(buffers[0])
            return real(descriptor, [buffers[0][:limit]], offset)
        is_probe = len(buffers[0]) == 1
        if cached == "not" or (not is_probe and cached == "with holes" and next(asked) % 3 == 1):
            raise OSError(errno.EAGAIN, "not in the cache")
        if is_probe:
            return 1
        if cached == "beginning" and offset >= 2_000_000:
            raise OSError(errno.EAGAIN, "not in the cache")
        return real(descriptor, [buffers[0][:1_000_000]], offset)

    if direct == "refused":
        monkeypatch.setattr(local_reader, "_DIRECT", 0)
    monkeypatch.setattr(os, "preadv", preadv)
    sent, received = moved(tmp_path / "file", [9_000_000, 12_000_005, 300_000], start, in_place=True)
    assert received == sent


@pytest.mark.parametrize("how", ["cached", "not cached", "refused"])
def test_a_place_is_begun_before_its_first_byte_changes_and_only_if_there_is_one(tmp_path, monkeypatch, how):
    """What was not begun is as it was, however it is read; a chunk beyond the end of the file begins nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 7_000_000)
    if how == "refused":
        monkeypatch.setattr(local_reader, "_DIRECT", 0)
    if how == "not cached":
        monkeypatch.setattr(local_reader, "_IF_CACHED", 0)
    reader = LOCAL.open(str(path))
    room = memoryview(bytearray(9_000_000))
    seen = []

    def read(start):
        chunk = Chunk(start, 3_000_000, 0, 0)
        place = room[start : start + 3_000_000]
        read_chunks(
            reader,
            [chunk],
            lambda *_: None,
            lambda *_: None,
            lambda _: place,
            begun=lambda chunk: seen.append((chunk.start, bytes(place).count(1))),
            summing=Nothing,
        )

    read(0)
    with pytest.raises(DamageError):
        read(6_000_000)
    assert dict(reversed(seen)) == {0: 0, 6_000_000: 0}
    os.truncate(path, 6_000_000)
    room[6_000_000:] = bytes(3_000_000)
    seen.clear()
    with pytest.raises(DamageError):
        read(6_000_000)
    assert not seen
    assert bytes(room).count(1) == 3_000_000
    reader.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs")  # noqa: S108
@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_system_without_direct_io_is_written_and_read(in_place):
    """A real tmpfs, which may refuse direct I/O, takes and gives the same bytes."""
    path = Path("/dev/shm") / f"torchkeep-{os.getpid()}"  # noqa: S108
    try:
        sent, received = moved(path, [5_000_001, 6_000_000], 4096, in_place=in_place)
    finally:
        path.unlink()
    assert received == sent


def test_a_file_cut_short_while_it_is_read_is_damage(tmp_path):
    """Reading beyond the end is an error that names the bytes, however they are carried."""
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    reader = LOCAL.open(str(tmp_path / "file"))
    os.truncate(tmp_path / "file", 4_100_000)
    for start, length in ((0, 5_000_000), (4_500_000, 100)):
        with pytest.raises(DamageError, match="4100000 bytes" if start == 0 else "cut short"):
            reader.fill(start, Buffer(length), 0, length)
    assert reader.has_changed()
    reader.close()


@given(st.integers(0, 3 * PAGE), st.integers(0, 5 * PAGE), st.integers(0, 2 * PAGE))
def test_the_part_that_direct_io_carries_is_aligned_and_inside(start, length, begin):
    """Position, address and length are multiples of a page, and nothing outside is touched."""
    buffer = Buffer(8 * PAGE)
    first, last = aligned_part(start, buffer, begin, begin + length)
    assert begin <= first <= last <= begin + length
    if first < last:
        assert (start + first - begin) % PAGE == (last - first) % PAGE == (buffer.address + first) % PAGE == 0
    elif (start - begin) % PAGE == 0:
        assert length < 2 * PAGE  # where addresses suit, a whole page inside is always found


@given(
    st.lists(st.tuples(st.integers(0, 9 * 2**20), st.integers(0, 100_000)), max_size=30),
    st.sampled_from([0, 2**15]),
)
def test_groups_hold_every_chunk_once_in_order(pieces, gap):
    """Groups are contiguous but for small gaps, bounded in size, and lose nothing."""
    chunks, start = [], 0
    for number, (size, hole) in enumerate(pieces):
        chunks.append(Chunk(start, size, number, 0))
        start += size + hole
    groups = list(groups_of(chunks, gap=gap))
    assert [chunk for group in groups for chunk in group.chunks] == chunks
    assert [group.first for group in groups] == [group.chunks[0].tensor for group in groups]
    for group in groups:
        assert len(group.chunks) == 1 or group.stop - group.start <= WINDOW
        for before, after in zip(group.chunks, group.chunks[1:], strict=False):
            assert after.start - before.start - before.nbytes <= gap


@given(st.integers(0, 3 * PAGE), st.integers(1, 5 * WINDOW))
@example(0, WINDOW + 1)
def test_windows_cover_a_chunk_and_meet_where_pages_do(start, nbytes):
    """No byte is left out or moved twice, direct I/O can carry all but the ends, and sizes are such as pay."""
    windows = list(windows_of(Chunk(start, nbytes, 0, 0)))
    assert windows[0][0] == start
    assert windows[-1][1] == start + nbytes
    assert all(0 < stop - first <= WINDOW for first, stop in windows)
    assert len(windows) == 1 or all(stop - first >= PAYS_FROM for first, stop in windows)
    for (_, stop), (first, _) in pairwise(windows):
        assert stop == first
        assert first % PAGE == 0


def test_the_first_failure_in_the_order_of_the_file_is_raised_and_threads_end(tmp_path):
    """Two threads may fail; the earlier chunk's error is told, and no thread is left working."""
    chunks = chunks_over([8 * 2**20] * 6, 0)
    (tmp_path / "file").write_bytes(bytes(48 * 2**20))
    reader = LOCAL.open(str(tmp_path / "file"))
    taken = []

    def check(chunk, _):
        if chunk.tensor >= 2:
            raise ValueError(chunk.tensor)

    with pytest.raises(ValueError, match="2"):
        read_chunks(reader, chunks, lambda chunk, _: taken.append(chunk.tensor), check, summing=Nothing)
    reader.close()
    assert sorted(taken) == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name == "torchkeep"]


def test_where_there_can_be_no_more_threads_one_moves_everything(tmp_path, monkeypatch):
    """As while the interpreter ends, from Python 3.12 on, or at the limit of a user's processes."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    given_bytes, found = moved(tmp_path / "file", [2 * 2**20] * 4, 4096, in_place=True)
    assert found == given_bytes


def test_two_threads_that_wait_for_the_last_hole_end_a_cached_region(tmp_path, monkeypatch):
    """Both count it; what was below zero then would count as cached for ever."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))
    reader = LOCAL.open(str(path))
    reader._direct = os.dup(reader._descriptor) if reader._direct is None else reader._direct
    reader._holes[0] = 1
    read = reader._read

    def read_beside_another(start, view):
        read(start, view)
        reader._holes[0] -= 1

    monkeypatch.setattr(reader, "_read", read_beside_another)
    monkeypatch.setattr(reader, "_is_cached", lambda _: True)
    monkeypatch.setattr(reader, "_get", lambda *_: 0)
    assert 0 < reader._fill_cached(0, memoryview(bytearray(2**20))) < 2**20
    assert reader._fill_cached(0, memoryview(bytearray(2**20))) == 0
    reader.close()


def test_memory_that_is_not_to_be_had_for_a_buffer_is_told(monkeypatch):
    """Every thread of a crew may find none; the one that asked gets the MemoryError, and no thread is left."""

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refuse)
    done = []
    with pytest.raises(MemoryError):
        run([1, 2, 3], lambda task, _: done.append(task), 4096, threads=3)
    assert done == []
    assert not [thread for thread in threading.enumerate() if thread.name == "torchkeep"]
