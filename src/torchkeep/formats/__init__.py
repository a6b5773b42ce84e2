"""What is in files, without torch: headers, digests, the tree of plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.formats.contents import open_contents as open_contents
from torchkeep.formats.sharded import Sharded, described_at, located

if TYPE_CHECKING:
    import os

    from torchkeep.rows import Listing


def listing_of(path: str | os.PathLike[str]) -> Listing:
    """Return the rows of the tensors in a file of safetensors or torch.save, or in a folder of such files.

    Of which kind a file is, is told by what it holds; what a folder needs to hold, `sharded.located` says. Torch
    is not needed, and no tensor is read. Nothing is unpickled.

    A file that `torchkeep.save` made from a module knows the kinds and classes of its tensors, so that selectors
    such as ``:buffer`` and ``@Linear`` mean on it what they mean on the live model.

    Raises:
        FormatError: it is no file that can be read, or it contradicts itself.
        UnsafeFileError: it asks for something to be imported, called or changed; nothing was.
        DamageError: it is cut short, or its header is not the one that was written.
        NewerFormatError: a later version of torchkeep wrote it.
        MissingFileError: there is no such file.
        StorageError: the file can't be read.
    """
    found = located(path)
    return found.listing if isinstance(found, Sharded) else described_at(found).listing
