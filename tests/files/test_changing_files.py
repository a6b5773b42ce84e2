"""A file that is changed while it is read: what was there before, or an error, and never a mixture."""

from __future__ import annotations

import os
from threading import Lock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from sharded_files import write_sharded
from torchkeep.errors import DamageError, FormatError
from torchkeep.files.filling import load_into_from
from torchkeep.files.loading import load_from
from torchkeep.files.matching import Options
from torchkeep.storage.local import LOCAL

NAMES = [f"w{number}" for number in range(6)]


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(400_000, generator=generator) for name in NAMES}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            self.register_buffer(name, torch.zeros(400_000))


class Changing:
    """The local storage, whose second read of tensors' bytes finds the files changed."""

    def __init__(self, change):
        self._change, self._reads, self._lock = change, 0, Lock()

    def open(self, path):
        return ChangingFile(self, LOCAL.open(path))

    def reading(self):
        with self._lock:
            self._reads += 1
            if self._reads == 2:
                self._change()


class ChangingFile:
    """A file of it."""

    def __init__(self, storage, file):
        self._storage, self._file = storage, file
        self.path, self.size = file.path, file.size
        self.read, self.has_changed, self.close = file.read, file.has_changed, file.close

    def fill(self, *arguments):
        self._storage.reading()
        return self._file.fill(*arguments)

    def fill_view(self, *arguments):
        self._storage.reading()
        return self._file.fill_view(*arguments)


def save_sharded(tensors, folder):
    write_sharded(folder, tensors)


def save_sharded_by_torch(tensors, folder):
    write_sharded(folder, tensors, write=torch.save, suffix=".bin", stem="pytorch_model")


def save_old(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


KINDS = {
    "torchkeep": tk.save,
    "safetensors": save_file,
    "zip": torch.save,
    "legacy": save_old,
    "sharded": save_sharded,
    "sharded by torch": save_sharded_by_torch,
}


def files_of(path):
    return sorted(path.iterdir()) if path.is_dir() else [path]


def rewrite(old, new):
    """Other tensors are written over the same files."""
    for file, other in zip(files_of(old), files_of(new), strict=True):
        with file.open("r+b") as target:
            target.write(other.read_bytes())


def truncate(old, _):
    """The files lose their second half."""
    for file in files_of(old):
        os.truncate(file, file.stat().st_size // 2)


def grow(old, _):
    """Something is written behind their end."""
    for file in files_of(old):
        with file.open("ab") as target:
            target.write(b"more")


def replace(old, new):
    """Other files get their names."""
    for file, other in zip(files_of(old), files_of(new), strict=True):
        other.replace(file)


@pytest.fixture
def pair(request, tmp_path):
    """Give a file, or a folder of files, and another one of the same names, shapes and size."""
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / str(seed))
        KINDS[request.param](state(seed), paths[-1])
        for file in files_of(paths[-1]):
            os.utime(file, ns=(0, 10**18))  # long ago, whatever the clock's steps are
    return paths


def outcome(pair, change, read):
    """Read while the file changes; return the state that came out, or the error."""
    found, error = read(Changing(lambda: change(*pair)), pair[0])
    if error is None:
        return found
    assert str(pair[0]) in str(error)
    touched = {name for name, tensor in found.items() if tensor.any()}
    told = error.replaced if isinstance(error, DamageError) else ["".join(getattr(error, "__notes__", ""))]
    assert all(any(name in text for text in told) for name in touched)
    return error


def loaded(storage, path):
    try:
        return load_from(storage, path), None
    except FormatError as error:
        return {}, error


def loaded_into(storage, path):
    net = Model()
    try:
        load_into_from(storage, net, path, Options(), atomic=False)
    except FormatError as error:
        return net.state_dict(), error
    return net.state_dict(), None


READS = pytest.mark.parametrize("read", [loaded, loaded_into])


@READS
@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize("change", [rewrite, truncate])
def test_a_file_written_over_or_cut_while_it_is_read_is_an_error(pair, change, read):
    """Digests, checksums or the file's own times tell; nothing is handed out as if nothing were."""
    assert isinstance(outcome(pair, change, read), FormatError)


@READS
@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize("change", [grow, replace])
def test_a_file_that_grows_or_is_replaced_gives_what_was_there_or_an_error(pair, change, read):
    """An open file stays what it was when another gets its name; of several files all must be of one time."""
    found = outcome(pair, change, read)
    is_folder = pair[0].is_dir()
    if isinstance(found, FormatError):
        assert is_folder or change is grow
    else:
        assert not is_folder
        for name, tensor in state(1).items():
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("pair", ["sharded", "sharded by torch"], indirect=True)
def test_parts_replaced_between_two_reads_are_an_error(pair):
    """A part that another got the name of, before it was opened, is not mixed with those read before."""

    class Late(Changing):
        def open(self, path):
            if path.rpartition("/")[2] == files_of(pair[0])[1].name:
                replace(*pair)
            return LOCAL.open(path)

    with pytest.raises(FormatError, match=r"two times|was changed"):
        load_from(Late(None), pair[0])
