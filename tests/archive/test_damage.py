"""Damage is found wherever it is, told with tensor, file and byte range, and only it makes a restore fall back."""

from __future__ import annotations

import errno
import os
from random import Random

import pytest

from archive_states import ROOT, content, state, writer
from torchkeep.archive import Archive, verify
from torchkeep.archive.lines import sealed
from torchkeep.errors import DamageError, FormatError, NewerFormatError, StorageError, TorchkeepError
from torchkeep.formats.opening import refused
from torchkeep.storage.memory import MemoryStorage

LONG = bytes(range(200))
STATES = [state(w=LONG), state(w=LONG[::-1])]


@pytest.fixture
def image():
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        for step, tensors in enumerate(STATES):
            store.commit(step, tensors, tree={"step": step}, metrics={"loss": 0.5})
    return disk.image()


def restored_from(image):
    """Return what a restore gives: the step, the tensors, and how many were skipped."""
    store = Archive.open(MemoryStorage(image), ROOT)
    found = []
    restored = store.restore(lambda manifest: found.append((manifest.tree, content(store, manifest))))
    return restored.manifest.step, found[-1], len(restored.skipped)


def path_of(image, part):
    """Return the last path, as they were made, that has a part."""
    return [path for path in image if part in path][-1]


def flips_of(image):
    """Yield every bit of every file: the path, the byte and the bit."""
    for path, data in image.items():
        for at in range(len(data or b"")):
            for bit in range(8):
                yield path, at, bit


def check_flips(image, flips):
    """Flip one bit at a time: a restore gives one of the states, whole, or says what is wrong."""
    whole = {step: ({"step": step}, {"w": tensor}) for step, tensor in enumerate([LONG, LONG[::-1]])}
    named = set()
    for path, at, bit in flips:
        flipped = bytearray(image[path])
        flipped[at] ^= 1 << bit
        damaged = {**image, path: bytes(flipped)}
        try:
            step, found, skipped = restored_from(damaged)
        except TorchkeepError as error:
            named.add(path if path in str(error) else f"{path}: {error}")
            continue
        assert found == whole[step]
        assert skipped == 1 - step
        store = Archive.open(MemoryStorage(damaged), ROOT)
        assert not verify(store, store.names()).ok or path.endswith("/lock")
    assert named == {f"{ROOT}/torchkeep.json"}


def test_bits_that_flip_are_found_or_harmless(image):
    """In every file, some thousand bits drawn with a fixed seed, fewer in the padding of headers."""
    rng = Random(0)  # noqa: S311 - the same bits each time
    assert len(image[f"{ROOT}/torchkeep.json"]) > 100
    check_flips(
        image,
        [
            (path, at, bit)
            for path, at, bit in flips_of(image)
            if rng.random() < (0.01 if image[path][at] == ord(" ") else 0.3)
        ],
    )


@pytest.mark.long
def test_every_bit_that_flips_is_found_or_harmless(image):
    """The same for each bit of each byte of each file."""
    check_flips(image, flips_of(image))


@pytest.mark.parametrize("nbytes", [1, 64, 512, 4096])
@pytest.mark.parametrize("value", [0, 255])
def test_pages_that_are_lost_are_found(image, nbytes, value):
    """Blocks of zeros, or of ones, in place of what was written: damage, wherever they lie."""
    for path, data in image.items():
        for at in range(0, len(data or b""), max(nbytes, 97)):
            lost = data[:at] + bytes([value]) * len(data[at : at + nbytes]) + data[at + nbytes :]
            if lost == data or path.endswith("/lock"):
                continue
            damaged = {**image, path: lost}
            if path.endswith("torchkeep.json"):
                with pytest.raises(TorchkeepError, match=r"torchkeep\.json"):
                    restored_from(damaged)
                continue
            assert restored_from(damaged)[0] in {0, 1}
            store = Archive.open(MemoryStorage(damaged), ROOT)
            assert {one.file for one in verify(store, store.names()).damage} == {path}


@pytest.mark.parametrize("part", ["packs/", "checkpoints/"])
def test_files_that_were_swapped_are_found(image, part):
    """Each under the name of the other, and one in place of both: nothing is taken for what it is not."""
    first, second = [path for path in image if part in path]
    for damaged, left in [
        ({**image, first: image[second], second: image[first]}, set()),
        ({**image, second: image[first]}, {0}),
        ({**image, first: image[second]}, {1}),
    ]:
        store = Archive.open(MemoryStorage(damaged), ROOT)
        bad = {found.step for found in verify(store, store.names()).damage}
        assert {0, 1} - bad == left
        if left:
            assert restored_from(damaged)[0] in left
        else:
            with pytest.raises(DamageError):
                restored_from(damaged)


def test_a_pack_that_has_grown_is_told_by_verify(image):
    """Its pieces are intact, so a restore is; but it is not what was written."""
    path = path_of(image, "packs/")
    damaged = {**image, path: image[path] + b"more"}
    assert restored_from(damaged)[::2] == (1, 0)
    store = Archive.open(MemoryStorage(damaged), ROOT)
    (found,) = verify(store, store.names()).damage
    assert (found.file, found.problem) == (
        path,
        f"it has {len(image[path]) + 4} bytes, {len(image[path])} were written",
    )


@pytest.mark.parametrize("part", ["packs/", "checkpoints/"])
def test_every_length_that_a_file_may_be_cut_to_is_found(image, part):
    """A file that is cut short anywhere, and one that is gone: the restore falls back and verify lists it."""
    path = path_of(image, part)
    for length in [*range(0, len(image[path]), 61), len(image[path]) - 1]:
        damaged = {**image, path: image[path][:length]}
        assert restored_from(damaged)[::2] == (0, 1)
        store = Archive.open(MemoryStorage(damaged), ROOT)
        assert {found.file for found in verify(store, store.names()).damage} == {path}
    if part == "packs/":
        missing = {**image}
        del missing[path]
        assert restored_from(missing)[::2] == (0, 1)


def test_damage_is_told_with_tensor_file_and_bytes(image):
    """By a read and by verify, and the checkpoints that it is in by verify."""
    path = path_of(image, "packs/")
    data = bytearray(image[path])
    data[-130] ^= 4  # in the second of four pieces of 64 bytes
    store = Archive.open(MemoryStorage({**image, path: bytes(data)}), ROOT)
    with pytest.raises(DamageError) as caught:
        store.tensor(store.latest(), "w")
    (found,) = verify(store, store.names()).damage
    start = 4096 + 64
    for one in (caught.value, found):
        assert (one.tensor, one.file, one.start, one.stop) == ("w", path, start, start + 64)
    assert (found.sequence, found.step) == (2, 1)


def test_where_nothing_is_intact_the_restore_fails(image):
    """It raises the damage of the latest, and says that no other helps."""
    damaged = {path: data[:-1] if data and "packs/" in path else data for path, data in image.items()}
    with pytest.raises(DamageError) as caught:
        restored_from(damaged)
    assert caught.value.file == path_of(image, "packs/")
    assert "None of the 2 checkpoints" in caught.value.__notes__[0]


def test_a_disk_that_fails_is_no_damage(image):
    """An I/O error is raised, and not taken for a reason to go back in time."""
    path = path_of(image, "packs/")

    def fail(call, at):
        if (call, at) == ("fill", path):
            cause = OSError(errno.EIO, os.strerror(errno.EIO), at)
            raise refused(cause, "read", at) from cause

    disk = MemoryStorage(image, fail)
    store = Archive.open(disk, ROOT)
    with pytest.raises(StorageError, match="the device reported an error"):
        store.restore(lambda manifest: content(store, manifest) and None)


def test_a_listing_reads_only_first_lines(image):
    """Damage in the second line is no matter to it; in the first it is told, and the others are listed."""
    path = path_of(image, "checkpoints/")
    first = image[path].index(b"\n") + 1
    store = Archive.open(MemoryStorage({**image, path: image[path][:first] + b"rubbish"}), ROOT)
    assert [summary.step for summary in store.summaries()] == [0, 1]
    assert store.summaries()[1].values() == {"loss": 0.5}
    store = Archive.open(MemoryStorage({**image, path: b"x" + image[path][1:]}), ROOT)
    assert [(one.name.step, one.summary is None) for one in store.listing()] == [(0, False), (1, True)]
    with pytest.raises(DamageError, match="first line"):
        store.summaries()


def test_a_long_first_line_is_read_whole():
    """Metrics may take more than what is read at once."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, STATES[0], metrics={f"metric {index}": index for index in range(2000)})
        assert store.summaries()[0].values()["metric 1999"] == 1999


def test_a_manifest_under_another_name_is_refused(image):
    """A copy of an old manifest under a later name is not the latest checkpoint."""
    old = next(path for path in image if "checkpoints/" in path)
    copied = {**image, f"{ROOT}/checkpoints/00000009-9.json": image[old]}
    assert restored_from(copied)[::2] == (1, 1)


@pytest.mark.parametrize("what", ["torchkeep.json", "checkpoints/"])
def test_what_a_later_version_wrote_is_refused(image, what):
    """It is not taken for damage, nobody falls back from it, and nobody writes beside it."""
    path = path_of(image, what)
    line, _, rest = image[path].partition(b"\n")
    text = b"{" + line[line.index(b",") + 1 :].replace(b'"version":1', b'"version":2,"new":[]')
    newer = {**image, path: sealed(text) + rest}
    with pytest.raises(NewerFormatError, match=r"version 2 .* up to version 1; install a newer torchkeep"):
        restored_from(newer)
    with pytest.raises(NewerFormatError):
        writer(MemoryStorage(newer))


def test_unknown_fields_are_ignored(image):
    """What a later torchkeep adds without a new version does not disturb."""
    path = path_of(image, "torchkeep.json")
    text = b"{" + image[path][image[path].index(b",") + 1 : -1].replace(b'"id"', b'"later":{"a":1},"id"')
    assert restored_from({**image, path: sealed(text)})[0] == 1


def test_a_manifest_that_contradicts_itself_is_refused(image):
    """Its digest may be right: what it says is checked as well."""
    path = path_of(image, "checkpoints/")
    first, second = image[path].splitlines(keepends=True)
    text = b"{" + second[second.index(b",") + 1 : -1].replace(b'"shape":[200]', b'"shape":[201]')
    wrong = {**image, path: first + sealed(text, first)}
    with pytest.raises(FormatError, match=r"pieces of tensor 'w' do not fill its shape \[201\]"):
        restored_from(wrong)
