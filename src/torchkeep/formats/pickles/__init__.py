"""Files of torch.save, read without unpickling anything and without torch.

`open_pickled` reads the pickle in such a file with an interpreter of its own, which only describes: tensors,
containers and plain values. docs/pytorch-files.md says what is read and what is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchkeep.caching import cached_property
from torchkeep.errors import FormatError
from torchkeep.formats.digests import digest
from torchkeep.formats.kinds import HEAD, is_pickled, is_tar
from torchkeep.formats.opening import FileReader
from torchkeep.formats.pickles.legacy import parse_legacy
from torchkeep.formats.pickles.naming import named_tensors
from torchkeep.formats.pickles.soundness import check, references
from torchkeep.formats.pickles.zipped import parse_zip
from torchkeep.names import natural_key
from torchkeep.rows import Listing, Row

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torchkeep.formats.opening import Readable
    from torchkeep.formats.pickles.objects import Extent, TensorRef
    from torchkeep.formats.pickles.program import Parsed


class Pickled:
    """What a file of torch.save holds, described; no tensor is read.

    Attributes:
        path: the file.
        root: the value that was saved: containers, plain values and `torchkeep.formats.pickles.objects`. It has no
            circles, but parts of it may be shared.
        extents: where the bytes of each storage are, by `StorageRef.key`.
        byte_order: ``"little"`` or ``"big"``: of the numbers in the storages.
        container: ``"zip"``, or ``"legacy"`` for the format from before PyTorch 1.6.
        left_out: names of attributes of tensors that are not read.
        seal: a digest of all that this was read from.

    Raises:
        FormatError: it contains itself, is nested too deeply, or holds what is no value.
    """

    def __init__(self, file: Readable, parsed: Parsed) -> None:
        self.path = file.path
        self._bearing = check(parsed.root, file.path)
        self._read = parsed.read
        self.seal = self._sealed(file)
        self.root: Any = parsed.root
        self.extents: Mapping[str, Extent] = parsed.extents
        self.byte_order = parsed.byte_order
        self.container = parsed.container
        self.left_out = parsed.left_out

    def describes(self, file: Readable) -> bool:
        """Tell whether an open file still is what this was read from, as far as it was read."""
        return file.size >= max(stop for _, stop in self._read) and self._sealed(file) == self.seal

    def _sealed(self, file: Readable) -> bytes:
        return digest(b"".join(file.read(start, stop - start) for start, stop in self._read))

    @cached_property
    def tensors(self) -> Mapping[str, TensorRef]:
        """Every tensor by its dotted name, in order; a tie under each of its names."""
        return named_tensors(self.root, self._bearing, self.path)

    def references(self) -> list[TensorRef]:
        """Return every tensor, one that occurs in several places once."""
        return references(self.root, self._bearing)

    @cached_property
    def ties(self) -> Mapping[str, tuple[str, ...]]:
        """The names of each tensor by its owner: the owner first, then the others in natural order."""
        groups: dict[object, list[str]] = {}
        for name, tensor in self.tensors.items():
            groups.setdefault(tensor.identity, []).append(name)
        ordered = (sorted(names, key=natural_key) if len(names) > 1 else names for names in groups.values())
        return {names[0]: tuple(names) for names in ordered}

    @cached_property
    def listing(self) -> Listing:
        """The rows of the tensors: kind and trainability are known of an ``nn.Parameter`` only."""
        return Listing([_row(names, self.tensors) for names in self.ties.values()], None, self.path)


def open_pickled(path: str | os.PathLike[str]) -> Pickled:
    """Describe what a file of torch.save holds.

    Raises:
        FormatError: it is no such file, it contradicts itself, or it holds what is not read.
        UnsafeFileError: it asks for something to be imported, called or changed; nothing was.
        DamageError: it is cut short, or its pickle is not the one that was written.
        MissingFileError: there is no such file.
        StorageError: the file can't be read.
    """
    with FileReader(path) as file:
        return pickled_of(file)


def pickled_of(file: Readable) -> Pickled:
    """Describe what an open file holds; raises what `open_pickled` does."""
    head = file.read(0, min(file.size, HEAD))
    if is_tar(head):
        raise FormatError(
            f"{file.path!r} is a tar archive, as PyTorch wrote before version 0.1.10 (2017), which is not read; "
            "load it with torch.load(path, weights_only=False), if you trust where it came from, and save it again"
        )
    if not is_pickled(head):
        raise FormatError(f"{file.path!r} is no file of torch.save: it is neither a zip archive nor a pickle")
    parsed = parse_zip(file) if head.startswith(b"PK") else parse_legacy(file)
    return Pickled(file, parsed)


def pickled_listing(path: str | os.PathLike[str]) -> Listing:
    """Return the rows of the tensors in a file of torch.save; raises what `open_pickled` does."""
    return open_pickled(path).listing


def _row(names: tuple[str, ...], tensors: Mapping[str, TensorRef]) -> Row:
    tensor = tensors[names[0]]
    parameter = next((tensors[name] for name in names if tensors[name].parameter), None)
    return Row(
        name=names[0],
        shape=tensor.shape,
        dtype=tensor.dtype,
        device="meta" if tensor.storage is None else "cpu",
        kind=None if parameter is None else "parameter",
        trainable=None if parameter is None else parameter.requires_grad,
        aliases=names[1:],
    )
