"""Compare an index with its folder and with the files that it names; each problem is told with all its names."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from torchkeep.errors import FormatError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_SHOWN: Final = 20


def refuse_outside(index: str, folder: str, paths: Mapping[str, str]) -> None:
    """Refuse names of files that lead out of the folder, by what they say or through symbolic links.

    Links into the ``blobs`` of Hugging Face's cache are followed, since its folders consist of them.

    Args:
        index: path of the index.
        folder: where it is.
        paths: path of each file by its name in the index.

    Raises:
        FormatError: names lead out of the folder.
    """
    odd = [name for name in paths if not _is_plain(name)]
    if odd:
        raise FormatError(
            f"the index {index!r} names files that may lie outside its folder: {_listed(odd)}; nothing was read; "
            "a name must be that of a file in the folder, without `..`"
        )
    allowed = [os.path.realpath(folder or "."), *_blobs(folder)]
    astray = [
        name
        for name, path in paths.items()
        if not any(os.path.realpath(path).startswith(os.path.join(home, "")) for home in allowed)  # noqa: PTH118
    ]
    if astray:
        raise FormatError(
            f"the index {index!r} names files that symbolic links lead out of its folder: {_listed(astray)}; "
            "nothing was read; put the files themselves there if you trust them"
        )


def _is_plain(name: str) -> bool:
    if "\0" in name or "\\" in name or os.path.isabs(name) or os.path.splitdrive(name)[0]:  # noqa: PTH117
        return False
    return not {"", ".", ".."} & set(name.split("/"))


def _blobs(folder: str) -> list[str]:
    """Return where the cache that a folder ``models--*/snapshots/<revision>`` is part of keeps its files."""
    above, inner = os.path.split(os.path.abspath(folder))  # noqa: PTH100 - links are not to be followed
    while inner:
        if os.path.basename(above) == "snapshots":  # noqa: PTH119
            return [os.path.realpath(os.path.join(os.path.dirname(above), "blobs"))]  # noqa: PTH118, PTH120
        above, inner = os.path.split(above)
    return []


def stamps_of(paths: Sequence[str]) -> dict[str, object]:
    """Return what tells whether a file is still the same one, by its path."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> object:
    try:
        status = os.stat(path)  # noqa: PTH116 - as everywhere here, paths are text
    except OSError as cause:
        return cause.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refuse_changed(index: str, stamps: Mapping[str, object]) -> None:
    """Refuse files that are not any more what they were when `stamps_of` looked.

    Raises:
        FormatError: some were changed or replaced.
    """
    changed = [path for path, stamp in stamps.items() if _stamp(path) != stamp]
    if changed:
        raise FormatError(
            f"while the model of {index!r} was read, files of it were changed or replaced: {_listed(changed)}; "
            "what was read may be of two times; read it again"
        )


def refuse_missing(index: str, paths: Mapping[str, str]) -> None:
    """Refuse an index of which files are missing.

    Raises:
        MissingFileError: names all that are missing.
    """
    missing = [name for name, path in paths.items() if not os.path.exists(path)]  # noqa: PTH110 - kept as text
    if missing:
        error = MissingFileError(
            f"{len(missing)} of the {len(paths)} files that the index {index!r} names "
            f"{'is' if len(missing) == 1 else 'are'} missing: {_listed(missing)}; copy or download "
            f"{'it' if len(missing) == 1 else 'them'} again"
        )
        error.errno, error.filename = errno.ENOENT, paths[missing[0]]
        raise error


def compare(index: str, named: Mapping[str, str], held: Mapping[str, Collection[str]]) -> None:
    """Compare what an index says with what the files hold.

    Args:
        index: path of the index.
        named: file's name by tensor's name.
        held: names of the tensors in each file.

    Raises:
        FormatError: they contradict each other; all of it is told.
    """
    lacking: dict[str, list[str]] = {}
    for name, part in named.items():
        if name not in held[part]:
            lacking.setdefault(part, []).append(name)
    problems = [f"{part} lacks {_listed(names)}, which the index says it holds" for part, names in lacking.items()]
    holders: dict[str, list[str]] = {}
    for part, names in held.items():
        for name in names:
            holders.setdefault(name, []).append(part)
    doubled = sorted(name for name, parts in holders.items() if len(parts) > 1)
    problems += [f"{name!r} is in {' and in '.join(holders[name])}" for name in doubled[:_SHOWN]]
    if len(doubled) > _SHOWN:
        problems.append(f"{len(doubled) - _SHOWN} more are in several files")
    for part, names in held.items():
        if unknown := sorted(name for name in names if name not in named):
            problems.append(f"{part} holds {_listed(unknown)}, of which the index says nothing")
    if problems:
        raise FormatError(
            f"the index {index!r} and its files contradict each other: {'; '.join(problems)}; copy or download "
            "all of them again"
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
