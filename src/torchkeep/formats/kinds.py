"""Which kind of file it is, by what it holds: a file's name says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torchkeep.formats.opening import Readable

HEAD: Final = 512
"""How many of a file's first bytes tell its kind."""


def is_pickled(head: bytes) -> bool:
    """Tell from a file's first bytes (`HEAD` of them, or all) whether torch.save may have written it.

    That is a zip archive, a pickle, or a tar archive.
    """
    if head[8:9] == b"{":  # a safetensors header, whatever its length looks like
        return False
    return head.startswith(b"PK\x03\x04") or _is_pickle(head) or is_tar(head)


def holds_pickle(file: Readable) -> bool:
    """Tell of an open file whether torch.save may have written it; raises what reading it raises."""
    return is_pickled(file.read(0, min(file.size, HEAD)))


def is_tar(head: bytes) -> bool:
    """Tell whether it is a tar archive."""
    return head[257:262] == b"ustar"


def _is_pickle(head: bytes) -> bool:
    # The first instruction says which protocol it is in.
    return head[:1] == b"\x80" and head[1:2] in {b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"}
