"""A store may come from anyone: what its manifests say with right digests, and what lies in its folders."""

from __future__ import annotations

import json
import os

import pytest

from archive_states import ROOT, content, state, writer
from torchkeep.archive import Archive, Retention, Writer, verify
from torchkeep.archive.consistency import check_body
from torchkeep.archive.lines import sealed
from torchkeep.archive.manifest import Body, Pack, Piece, Stored
from torchkeep.errors import DamageError, FormatError, StorageError, TorchkeepError
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.storage.memory import MemoryStorage

LONG = bytes(range(200))


def resealed(content, edit):
    """Return a manifest whose body was edited, with the digests that belong to it."""
    first, second = content.splitlines(keepends=True)
    body = json.loads(second)
    del body["blake3"]
    edit(body)
    return first + sealed(json.dumps(body).encode(), first)


def edited(edit):
    """Return the image of a store with one checkpoint, whose manifest was edited."""
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, state(w=LONG, v=LONG[:10]))
    image = disk.image()
    path = next(path for path in image if "checkpoints/" in path)
    return {**image, path: resealed(image[path], edit)}


def pieces(body, name="w"):
    return body["tensors"][name]["pieces"]


def pack_named(text):
    def edit(body):
        body["packs"][0]["id"] = text

    return edit


def aliased(alias, owner):
    def edit(body):
        body["aliases"] = {alias: owner}

    return edit


def changed(position, value, name="w"):
    """Change one field of the first piece of a tensor."""

    def edit(body):
        pieces(body, name)[0][position] = value

    return edit


def shaped(shape):
    def edit(body):
        body["tensors"]["w"]["shape"] = shape

    return edit


def shared(body):
    """Let the piece of one tensor lie where another's does."""
    start = pieces(body)[0][3]
    pieces(body, "v")[0][3:5] = [start + 2, start + 12]


def repeated(body):
    """Let one piece stand for all of a tensor."""
    body["tensors"]["w"]["shape"] = [256]
    pieces(body)[1:] = [[[64 * index], *pieces(body)[0][1:]] for index in range(1, 4)]


def in_header(body):
    """Let a piece begin in the header of its pack."""
    pieces(body, "v")[0][3:5] = [4086, 4096]


def grown(body):
    """Let one piece have more bytes than any may."""
    body["packs"][0]["size"] = 2**40
    body["tensors"] = {
        "w": {"dtype": "uint8", "shape": [2**39], "pieces": [[[0], [2**39], 0, 4096, 4096 + 2**39, ""]]}
    }


def cut_twice(body):
    """Let a pack be listed twice, so that its bytes could be used twice."""
    body["packs"].append(body["packs"][0])


def hollow(body):
    """Let pieces leave a gap, and two overlap, so that their sizes add up."""
    pieces(body)[1][0] = [63]


LIES = {
    **{
        f"pack {text!r}": pack_named(text)
        for text in ["../../x", "/etc/passwd", "", "a\0b", ".", "a/b", "x" * 999]
    },
    "alias of nothing": aliased("a", "b"),
    "alias of an alias": aliased("v", "w"),
    "no such pack": changed(2, 7),
    "before the tensor": changed(0, [-1]),
    "beyond the tensor": changed(0, [190]),
    "other dimensions": changed(1, [8, 8]),
    "a piece of nothing": changed(1, [0]),
    "shape too large": shaped([2**62, 2**62]),
    "shape of many dimensions": shaped([1] * 100_000),
    "shape": shaped([201]),
    "shared": shared,
    "repeated": repeated,
    "in the header": in_header,
    "grown": grown,
    "pack twice": cut_twice,
    "hollow": hollow,
}


@pytest.mark.parametrize("lie", LIES)
def test_what_can_not_be_is_refused(lie):
    """By every way to read it, with the manifest named; no pack is opened, and no memory asked for."""
    image, opened = edited(LIES[lie]), []
    disk = MemoryStorage(image, lambda call, path: opened.append(path) if call == "open" else None)
    store = Archive.open(disk, ROOT)
    for call in (store.latest, lambda: store.at(1), lambda: store.restore(lambda _: None)):
        with pytest.raises(FormatError, match=r"00000001-1\.json"):
            call()
    assert all(path.startswith(f"{ROOT}/") and "packs" not in path for path in opened)
    with pytest.raises(FormatError):
        writer(MemoryStorage(image))


@pytest.mark.parametrize("part", ["tree", "recipe", "metrics"])
def test_what_is_nested_too_deeply_is_refused(part):
    """With an error of torchkeep's, when it is looked at, and not with the interpreter's own."""
    deep = b"[" * 200_000 + b"]" * 200_000
    disk = MemoryStorage({"/runs": None})
    with writer(disk) as store:
        store.commit(1, state(w=LONG), metrics={"loss": 0.25})
    image = disk.image()
    path = next(path for path in image if "checkpoints/" in path)
    first, second = image[path].splitlines(keepends=True)
    if part == "metrics":
        first = sealed(b"{" + first[first.index(b",") + 1 : -1].replace(b"0.25", deep))
    second = b"{" + second[second.index(b",") + 1 : -1]
    if part != "metrics":
        second = second[:-1] + b',"%s":%s}' % (part.encode(), deep)
    store = Archive.open(MemoryStorage({**image, path: first + sealed(second, first)}), ROOT)
    with pytest.raises(FormatError, match=r"is no manifest: maximum recursion|can't be read|contradicts itself"):
        getattr(store.latest(), part)


def box(offset, shape, start):
    nbytes = 1
    for size in shape:
        nbytes *= size
    return Piece(tuple(offset), tuple(shape), 0, start, start + nbytes, "")


def body_of(shape, boxes):
    """Return the body of a manifest with one tensor of bytes, cut into boxes."""
    found, start = [], 10
    for offset, size in boxes:
        found.append(box(offset, size, start))
        start = found[-1].stop
    return Body({"w": Stored("uint8", tuple(shape), tuple(found))}, (Pack("p", start, 10, ""),))


@pytest.mark.parametrize(
    ("boxes", "good"),
    [
        ([((0, 0), (4, 2)), ((0, 2), (4, 4))], True),
        ([((0, 0), (2, 2)), ((2, 0), (2, 2)), ((0, 2), (1, 4)), ((1, 2), (3, 4))], True),
        ([((0, 0), (1, 2)), ((0, 2), (3, 4)), ((1, 0), (3, 2)), ((3, 2), (1, 4))], True),
        ([((0, 0), (4, 3)), ((0, 2), (4, 3))], False),
        ([((0, 0), (4, 2)), ((0, 1), (4, 4))], False),
        ([((0, 0), (4, 2)), ((1, 2), (3, 4)), ((0, 0), (1, 4))], False),
        ([], False),
    ],
)
def test_boxes_that_do_not_fill_a_tensor_are_refused(boxes, good):
    """Whole rows, whole columns and mixtures of both pass; what overlaps or leaves a gap does not."""
    body = body_of((4, 6), boxes)
    if good:
        check_body(body)
    else:
        with pytest.raises(FormatError, match="do not fill"):
            check_body(body)


def test_boxes_are_checked_in_any_number_of_dimensions():
    """Against counting each element: random cuts of a small box, and the same with one box moved."""
    from itertools import product
    from random import Random

    rng, verdicts = Random(0), set()  # noqa: S311 - the same each time
    for _ in range(300):
        shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
        boxes = [([0] * len(shape), shape)]
        for _ in range(rng.randint(0, 5)):
            offset, size = boxes.pop(rng.randrange(len(boxes)))
            axis = rng.randrange(len(shape))
            at = rng.randint(0, size[axis])
            for first, length in ((0, at), (at, size[axis] - at)):
                if length:
                    moved, short = list(offset), list(size)
                    moved[axis], short[axis] = offset[axis] + first, length
                    boxes.append((moved, short))
        if rng.random() < 0.5:
            offset, size = boxes[rng.randrange(len(boxes))]
            offset[:] = [rng.randint(0, whole - length) for whole, length in zip(shape, size, strict=True)]
        rng.shuffle(boxes)
        cells = [
            cell
            for offset, size in boxes
            for cell in product(
                *(range(first, first + length) for first, length in zip(offset, size, strict=True))
            )
        ]
        good = sorted(cells) == sorted(product(*map(range, shape)))
        verdicts.add(good)
        try:
            check_body(body_of(shape, boxes))
        except FormatError:
            assert not good, boxes
        else:
            assert good, boxes
    assert verdicts == {True, False}


def test_pieces_that_cross_without_end_are_refused_in_time():
    """The work is bounded, whatever a manifest says."""
    many = 4000
    tall = [((0, column), (many, 1)) for column in range(many)]
    flat = [((many, 0), (1, 2 * many))]
    crossing = [((row, many), (1, many)) for row in range(many)]
    with pytest.raises(FormatError, match="too many pieces that cross"):
        check_body(body_of((many + 1, 2 * many), [*tall, *crossing, *flat]))


@pytest.fixture
def root(tmp_path):
    with Writer(LOCAL_FOLDERS, str(tmp_path / "store"), chunk=4096) as store:
        for step in range(3):
            store.commit(step, state(w=bytes([step]) * 5000))
    return str(tmp_path / "store")


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.safetensors").write_bytes(b"precious")
    yield folder
    assert (folder / "precious.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["packs", "checkpoints", "staging"])
def test_a_folder_that_is_a_link_is_not_written_to(name, root, outside):
    """Nothing outside the store is removed, whatever a store that came from elsewhere links to."""
    os.rename(f"{root}/{name}", f"{root}-{name}")  # noqa: PTH104 - the store's paths are text
    os.symlink(outside, f"{root}/{name}")  # noqa: PTH211 - same
    with pytest.raises(StorageError, match=f"{name}.*it is a symbolic link, and must be a folder"):
        Writer(LOCAL_FOLDERS, root, wait=0)


def test_links_in_staging_are_removed_and_not_followed(root, outside):
    """What a dead session left there is cleared; a link to a folder, or to a file, loses its name only."""
    os.mkdir(f"{root}/staging/session")  # noqa: PTH102 - same
    os.symlink(outside / "precious.safetensors", f"{root}/staging/session/file")  # noqa: PTH211 - same
    os.symlink(outside, f"{root}/staging/link")  # noqa: PTH211 - same
    with open(f"{root}/staging/.notes", "w", encoding="utf-8") as stray:  # noqa: PTH123 - same
        stray.write("left by something else")
    with Writer(LOCAL_FOLDERS, root, wait=0):
        assert len(LOCAL_FOLDERS.names(f"{root}/staging")) == 1


def test_a_link_in_the_lock_s_place_is_not_signed(root, outside):
    """Who holds the lock is written down in the lock, and never over another file."""
    os.remove(f"{root}/lock")  # noqa: PTH107 - same
    os.symlink(outside / "precious.safetensors", f"{root}/lock")  # noqa: PTH211 - same
    with pytest.raises(StorageError, match=r"can't lock .* symbolic link"):
        Writer(LOCAL_FOLDERS, root, wait=0)
    os.remove(f"{root}/lock")  # noqa: PTH107 - same
    os.link(outside / "precious.safetensors", f"{root}/lock")
    with Writer(LOCAL_FOLDERS, root, wait=0) as store:
        store.prune(Retention(last=1))


@pytest.mark.parametrize("kind", ["pack", "manifest", "marker", "lock"])
def test_a_pipe_in_a_file_s_place_blocks_nobody(kind, root):
    """It is refused by name; reading and writing end at once."""
    store = Archive.open(LOCAL_FOLDERS, root)
    manifest = store.latest()
    path = {
        "pack": store.pack_path(manifest.body.packs[0].id),
        "manifest": manifest.path,
        "marker": f"{root}/torchkeep.json",
        "lock": f"{root}/lock",
    }[kind]
    os.remove(path)  # noqa: PTH107 - same
    os.mkfifo(path)

    def use():
        with Writer(LOCAL_FOLDERS, root, wait=0) as again:
            content(again, again.latest())

    with pytest.raises(StorageError, match=f"{os.path.basename(path)}.*no regular file"):  # noqa: PTH119 - same
        use()
    if kind == "pack":
        with pytest.raises(StorageError, match="no regular file"):
            verify(store, store.names())


def test_a_manifest_that_leads_nowhere_is_damage(root):
    """A link to nothing is listed as what is missing, nobody looks for it for ever, and a restore falls back."""
    os.symlink("nowhere", f"{root}/checkpoints/00000009-9.json")  # noqa: PTH211 - same
    store = Archive.open(LOCAL_FOLDERS, root)
    assert [one.name.step for one in store.listing() if one.error] == [9]
    for call in (store.latest, lambda: store.at(9)):
        with pytest.raises(DamageError, match="is missing, and a checkpoint needs it"):
            call()
    restored = store.restore(lambda manifest: content(store, manifest) and None)
    assert (restored.manifest.step, len(restored.skipped)) == (2, 1)
    assert [found.step for found in verify(store, store.names()).damage] == [9]


def test_a_file_of_holes_is_not_read_into_memory(root):
    """A manifest of a terabyte of zeros takes no memory: it is damage."""
    store = Archive.open(LOCAL_FOLDERS, root)
    os.truncate(store.latest().path, 2**40)
    assert [one.error is None for one in store.listing()] == [True, True, True]
    with pytest.raises(DamageError, match="has 1099511627776 bytes"):
        store.latest()
    with open(store.manifest_path(store.names()[0].file), "w", encoding="utf-8") as empty:  # noqa: PTH123 - same
        empty.truncate(2**40)
    assert isinstance(store.listing()[0].error, DamageError)


def test_a_tensor_larger_than_its_files_is_refused_before_memory_is_asked_for(root):
    """A manifest may promise packs of any size; what they really have is looked at first."""
    store = Archive.open(LOCAL_FOLDERS, root)
    path = store.latest().path
    chunk = 2**24

    def huge(body):
        count = 5000
        body["packs"][0]["size"] = 4096 + chunk * count
        body["tensors"]["w"] = {
            "dtype": "uint8",
            "shape": [chunk * count],
            "pieces": [
                [[index * chunk], [chunk], 0, 4096 + index * chunk, 4096 + (index + 1) * chunk, "0" * 64]
                for index in range(count)
            ],
        }

    with open(path, "rb+") as file:  # noqa: PTH123 - same
        made = resealed(file.read(), huge)
        file.seek(0)
        file.write(made)
    with pytest.raises(TorchkeepError, match="the file has only"):
        store.tensor(store.latest(), "w")
