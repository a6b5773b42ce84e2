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


def known_other(head: bytes) -> str | None:
    """Say what a file is that is often taken for one of tensors, and what to do; None where that is not known."""
    text = head.lstrip().lower()
    for start, what in _OTHERS:
        if (text if start.islower() else head).startswith(start):
            return what
    return None


_OTHERS: Final = (
    (b"version https://git-lfs", "the pointer of Git LFS, not the file itself; get that with `git lfs pull`"),
    (b"<!doctype", "a web page, not the file itself; look at it in a browser, and download the file again"),
    (b"<html", "a web page, not the file itself; look at it in a browser, and download the file again"),
    (b"GGUF", "a GGUF file, which is not read; get the model as safetensors"),
    (b"\x89HDF", "an HDF5 file (Keras writes such), which is not read; convert it with what wrote it"),
    (b"\x93NUMPY", "an array of NumPy, which is not read; save it with torchkeep.save(torch.from_numpy(...))"),
    (b"\x1f\x8b", "compressed by gzip; unpack it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it (unzstd)"),
    (b"PK\x05\x06", "an empty zip archive; copy or write it again"),
)
"""First bytes, those of text in lower case, and what they mean."""


def is_tar(head: bytes) -> bool:
    """Tell whether it is a tar archive."""
    return head[257:262] == b"ustar"


def _is_pickle(head: bytes) -> bool:
    # The first instruction says which protocol it is in.
    return head[:1] == b"\x80" and head[1:2] in {b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"}
