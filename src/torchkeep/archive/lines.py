"""Lines of JSON that carry the digest of themselves: what a store says about itself.

A line is ``{"blake3":"<64 hex digits>","...": ...}`` and a newline. The digest is taken of what comes before the
line in its file, if that belongs to it, and of everything in the line after the digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blake3 import blake3

from torchkeep.errors import DamageError

if TYPE_CHECKING:
    from torchkeep.formats.opening import Readable

_BEFORE: Final = b'{"blake3":"'
_AFTER: Final = b'",'
_REST: Final = len(_BEFORE) + 64 + len(_AFTER)
_GUESS: Final = 4096
_MOST_LINE: Final = 64 * 1024 * 1024
_MOST: Final = 1024 * 1024 * 1024


def sealed(text: bytes, before: bytes = b"") -> bytes:
    """Return the line for a JSON object that is not empty.

    Args:
        text: the object.
        before: what the digest covers as well.
    """
    rest = text[1:] + b"\n"
    return _BEFORE + _digits(before, rest) + _AFTER + rest


def holds(line: bytes, before: bytes = b"") -> bool:
    """Tell whether a line, its newline included, is bit for bit the one that was sealed."""
    digits = line[len(_BEFORE) : _REST - len(_AFTER)]
    return line[:_REST] == _BEFORE + digits + _AFTER and digits == _digits(before, line[_REST:])


def _digits(before: bytes, rest: bytes) -> bytes:
    hasher = blake3(before)
    hasher.update(rest)
    return hasher.hexdigest().encode()


def first_line(file: Readable) -> bytes:
    """Read the first line of a file, its newline included; all of it where there is no newline."""
    length, most = min(_GUESS, file.size), min(_MOST_LINE, file.size)
    while True:
        start = file.read(0, length)
        end = start.find(b"\n")
        if end >= 0 or length == most:
            return start if end < 0 else start[: end + 1]
        length = min(2 * length, most)


def all_of(file: Readable) -> bytes:
    """Read a whole file.

    Raises:
        DamageError: it is larger than anything that is written in lines.
    """
    if file.size > _MOST:
        raise damaged(file.path, 0, file.size, f"it has {file.size} bytes, and no more than {_MOST} make sense")
    return file.read(0, file.size)


def damaged(path: str, start: int, stop: int, problem: str, tensor: str = "") -> DamageError:
    """Return the error for bytes of a store that are not what was written."""
    what = f"tensor {tensor!r} in {path!r}" if tensor else repr(path)
    error = DamageError(f"{what} is damaged in bytes {start} to {stop}: {problem}; copy it again from elsewhere")
    error.tensor, error.file, error.start, error.stop, error.problem = tensor, path, start, stop, problem
    return error
