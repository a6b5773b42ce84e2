"""Replace a file whole or not at all.

The new bytes go to a hidden file beside the target; it is synced, renamed into place, and the directory is synced
(what borg's SaveFile and SQLite's journal do). Whatever fails before the rename leaves the target as it was, byte
for byte, and no other file behind.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from torchkeep.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.storage.base import Storage, WritableFile


@contextmanager
def replacing(storage: Storage, path: str) -> Iterator[WritableFile]:
    """Yield the new file to write; when the block ends without an exception, it stands in place of ``path``.

    Symbolic links are followed and kept. An existing file's permission bits are kept, its owner and its other
    links are not. The directory must exist.

    Raises:
        StorageError: the operating system refused; only after the rename is the target not the old file.
    """
    target = storage.resolve(path)
    mode = storage.replaceable_mode(target)
    unfinished = os.path.join(os.path.dirname(target), f".torchkeep-{secrets.token_hex(8)}.tmp")  # noqa: PTH118, PTH120
    try:
        file = storage.create(unfinished, mode)
        try:
            try:
                yield file
                file.sync()
            finally:
                file.close()
            storage.rename(unfinished, target)
        except BaseException:
            # What went wrong first is what must be told; nothing more can be done about a file that stays.
            with suppress(StorageError):
                storage.remove(unfinished)
            raise
    except StorageError as error:
        # Who asked for the target knows nothing of the unfinished file.
        error.args = (str(error).replace(repr(unfinished), repr(path)),)
        if error.filename == unfinished:
            error.filename = path
        raise
    try:
        storage.sync_directory(target)
    except StorageError as cause:
        raise StorageError.wrap(
            cause,
            f"{path!r} is written and complete, but its directory could not be synced, so after a power failure "
            f"the old file may stand there again: {cause}",
        ) from cause
