"""Models in folders: an index and the files that it names (Hugging Face's layout), or one file alone.

The index is JSON: ``weight_map`` maps each tensor's name to the file, beside the index, that holds it. It comes
with a download like everything else, so nothing in it is trusted: not its size, not its types, not where its paths
lead, and not that the files hold what it says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from torchkeep.errors import FormatError
from torchkeep.formats.contents import Contents
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.opening import FileReader, refused
from torchkeep.formats.safetensors import MAX_HEADER, header_of
from torchkeep.formats.shards import compare, refuse_changed, refuse_missing, refuse_outside, stamps_of
from torchkeep.rows import Listing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torchkeep.formats.opening import Readable
    from torchkeep.formats.pickles import Pickled
    from torchkeep.rows import Row

Described: TypeAlias = "Contents | Pickled"
"""What one file holds; no tensor is read."""

_INDEX: Final = ".index.json"
_SUFFIXES: Final = ((".safetensors",), (".bin", ".pt", ".pth", ".ckpt"))
"""Endings of model files; in a folder that has both kinds, the first is taken, as Hugging Face does."""
_BESIDES: Final = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""Beginnings of the names that Hugging Face's trainer gives to what is no model."""


class _Index(Struct):
    # What else an index may hold (``metadata``) says nothing that the files don't.
    weight_map: dict[str, Annotated[str, Meta(min_length=1, max_length=4096)]]


_decoder: Final = msgspec.json.Decoder(_Index)


class Sharded:
    """The tensors of several files under one index, compared with it.

    Attributes:
        path: the index.
        parts: what each file holds, by its path, in the order in which the index first names them.
        where: the path of the file that holds it, by tensor's name, aliases included; in the order of the index.

    Raises:
        MissingFileError: files are missing; all of them are named.
        FormatError: the index is none, leads out of its folder, or contradicts the files.
    """

    def __init__(self, index: str) -> None:
        self.path = index
        named = _read_index(index)
        paths = _paths(index, named)
        refuse_missing(index, paths)
        self._stamps = stamps_of([index, *paths.values()])
        self.parts: Mapping[str, Described] = {path: described_at(path) for path in paths.values()}
        compare(index, named, {name: _names(self.parts[path]) for name, path in paths.items()})
        self.where: Mapping[str, str] = {name: paths[part] for name, part in named.items()}
        self.listing = self._listed()

    def refuse_changed(self) -> None:
        """Refuse what was read if a file was changed or replaced meanwhile: it may be of two times.

        Raises:
            FormatError: a file is not the one any more that was there at the beginning.
        """
        refuse_changed(self.path, self._stamps)

    def _listed(self) -> Listing:
        rows: dict[str, Row] = {}
        for part in self.parts.values():
            for row in part.listing.rows:
                rows.update(dict.fromkeys(row.names, row))
        ordered = {rows[name].name: rows[name] for name in self.where if name in rows}
        classes = [part.listing.modules for part in self.parts.values()]
        # Where one part does not know its classes, the whole does not.
        known = [modules for modules in classes if modules is not None]
        merged = {path: info for modules in known for path, info in modules.items()}
        return Listing(list(ordered.values()), merged if len(known) == len(classes) else None, self.path)


def model_at(path: str | os.PathLike[str]) -> str:
    """Return the path of the index or of the file that a path leads to; raises what `located` does of folders."""
    text = os.fspath(path)
    return _model_in(text) if os.path.isdir(text) else text  # noqa: PTH112 - as everywhere here, the path is text


def is_index(path: str) -> bool:
    """Tell of the path of a file whether it is an index."""
    return path.endswith(_INDEX)


def parts_of(index: str) -> list[str]:
    """Return the paths of the files that an index names; raises what `located` does of indexes.

    They were not looked at, and need not be there.
    """
    return list(_paths(index, _read_index(index)).values())


def located(path: str | os.PathLike[str]) -> str | Sharded:
    """Find out what a path leads to.

    Args:
        path: a file, an index, or a folder that holds an index or one model file.

    Returns:
        The path of the one file, or what the index and its files hold.

    Raises:
        MissingFileError: files that an index names are missing.
        FormatError: a folder holds no model or several, or an index is not what it should be.
        StorageError: the folder or an index can't be read.
    """
    found = model_at(path)
    return Sharded(found) if is_index(found) else found


def described_at(path: str) -> Described:
    """Describe what the file at a path holds."""
    with FileReader(path) as file:
        return described(file)


def described(file: Readable) -> Described:
    """Describe what an open file holds, told apart by what it is.

    Raises:
        FormatError: it is no file that can be read, or it contradicts itself.
        UnsafeFileError: it asks for something to be imported, called or changed; nothing was.
        DamageError: it is cut short, or its header is not the one that was written.
        StorageError: the file can't be read.
    """
    if holds_pickle(file):
        from torchkeep.formats.pickles import pickled_of  # noqa: PLC0415 - files of safetensors don't need it

        return pickled_of(file)
    return Contents(header_of(file))


def _paths(index: str, named: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each file by its name in the index."""
    folder = os.path.dirname(index)  # noqa: PTH120 - kept as text
    paths = {name: os.path.join(folder, name) for name in dict.fromkeys(named.values())}  # noqa: PTH118
    refuse_outside(index, folder, paths)
    return paths


def _names(part: Described) -> set[str]:
    names = {name for row in part.listing.rows for name in row.names}
    if not isinstance(part, Contents) and isinstance(part.root, dict):
        names.update(key for key in part.root if isinstance(key, str) and key.rpartition(".")[2] == "_extra_state")
    return names


def _model_in(folder: str) -> str:
    """Return the path of a folder's index, or of its only model file."""
    try:
        found = sorted(os.listdir(folder))  # noqa: PTH208 - as everywhere here, paths are text
    except OSError as cause:
        raise refused(cause, "read", folder) from cause
    for suffixes in _SUFFIXES:
        indexes = [name for name in found if name.endswith(tuple(f"{suffix}{_INDEX}" for suffix in suffixes))]
        models = [name for name in found if name.endswith(suffixes) and not name.startswith((*_BESIDES, "."))]
        # The whole model beside an index of its parts: one of them is from another time.
        both = [name for index in indexes if (name := index.removesuffix(_INDEX)) in models]
        chosen = [*indexes, *both] if indexes else models
        if len(chosen) > 1:
            raise FormatError(
                f"{folder!r} holds {len(chosen)} models: {', '.join(chosen[:_SHOWN])}"
                f"{', ...' if len(chosen) > _SHOWN else ''}; give the path of the one that is meant"
                f"{'' if indexes else f' (they are not parts of one, since there is no *{suffixes[0]}{_INDEX})'}"
            )
        if chosen:
            return os.path.join(folder, chosen[0])  # noqa: PTH118
    raise FormatError(
        f"{folder!r} holds no model: an index (*{_SUFFIXES[0][0]}{_INDEX} or *.bin{_INDEX}) or one file "
        f"({', '.join(suffix for suffixes in _SUFFIXES for suffix in suffixes)}) is expected, and "
        f"{len(found) or 'no'} other file{'' if len(found) == 1 else 's'} found; check the path"
    )


_SHOWN: Final = 6


def _read_index(path: str) -> dict[str, str]:
    """Return the file's name by tensor's name."""
    import json  # noqa: PLC0415 - msgspec does not tell of a key that stands there twice

    with FileReader(path) as file:
        if file.size > MAX_HEADER:
            raise FormatError(
                f"the index {path!r} has {file.size} bytes, and at most {MAX_HEADER} are read; it is no index, or "
                "made to do harm"
            )
        text = file.read(0, file.size)
    try:
        named = _decoder.decode(text).weight_map
        json.loads(text, object_pairs_hook=_unique, parse_int=str, parse_float=str, parse_constant=str)
    except _DuplicateError as cause:
        (key,) = cause.args
        raise FormatError(f"the index {path!r} holds the key {key!r} twice; it is damaged") from None
    except msgspec.ValidationError as cause:
        raise FormatError(
            f"{path!r} is no index of a model: {cause}; expected a JSON object in which weight_map maps names of "
            "tensors to names of files"
        ) from cause
    except RecursionError as cause:
        raise FormatError(f"the index {path!r} is nested too deeply to be one") from cause
    except (msgspec.DecodeError, ValueError) as cause:
        raise FormatError(f"the index {path!r} is no JSON: {cause}; copy or write it again") from cause
    if not named:
        raise FormatError(f"the index {path!r} names no tensors; write it again")
    return named


class _DuplicateError(Exception):
    """A key that stands in an object twice."""


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _DuplicateError(key)
        seen.add(key)
