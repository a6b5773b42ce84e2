"""What of a source goes into one file of torchkeep: names, shapes, dtypes and plain values; no tensor is read."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from torchkeep.archive.described import Described as DescribedState
from torchkeep.errors import FormatError
from torchkeep.files.collecting import Collected
from torchkeep.files.modules import module_facts
from torchkeep.formats.contents import Contents
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.sharded import Sharded
from torchkeep.formats.values import Encoder
from torchkeep.rows import Listing
from torchkeep.tensors.dtypes import torch_dtype
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.plain import encode_plain
from torchkeep.tensors.reading import is_makeable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from torchkeep.formats.pickles import Pickled
    from torchkeep.formats.pickles.objects import TensorRef
    from torchkeep.rows import Row
    from torchkeep.storage.base import ReadableFile
    from torchkeep.tensors.elements import Elements


def outline_whole(elements: Elements, file: ReadableFile | None) -> tuple[Collected, Any]:
    """Outline all that a source holds, plain values and extra state included.

    Args:
        elements: the source.
        file: it, when it is one file of torch.save; else None.

    Returns:
        What is to be saved, with tensors of the meta device, and the recipe of a module or None.

    Raises:
        UnsavableError: it holds a value that can't be kept.
    """
    found = elements.described
    if isinstance(found, Sharded):
        return outline_rows(elements.listing), None
    if isinstance(found, Contents):
        collected = outline_rows(elements.listing)
        return collected, _add_document(collected, found)
    assert file is not None
    assert not isinstance(found, DescribedState)  # `torchkeep.files.extracting` outlines checkpoints
    return _of_pickled(elements, found, file), None


def outline_rows(listing: Listing) -> Collected:
    """Outline some tensors of a source, perhaps under other names: kinds and classes, and nothing else."""
    known = listing.modules is not None and all(row.kind is not None for row in listing.rows)
    collected = Collected("module" if known else "dict")
    for row in listing.rows:
        assert row.shape is not None
        collected.tensors[row.name] = stand_in(row.name, row.shape, row.dtype, listing.source)
        collected.aliases.update(dict.fromkeys(row.aliases, row.name))
    collected.order = tuple(name for row in listing.rows for name in row.names)
    if known:
        collected.module = module_facts(listing, {})
    return collected


def stand_in(name: str, shape: Sequence[int], dtype: str, source: str) -> Tensor:
    """Return a tensor of the meta device.

    Raises:
        FormatError: torch can't make the dtype.
    """
    made = torch_dtype(dtype)
    if made is None or not is_makeable(dtype):
        raise FormatError(
            f"tensor {name!r} in {source!r} has the dtype {dtype}, which torch {torch.__version__} can't make"
        )
    return torch.empty(tuple(shape), dtype=made, device="meta")


def renamed_listing(listing: Listing, rows: Iterable[Row], rename: Callable[[str], str]) -> Listing:
    """Return a listing of some rows under new names; classes follow the names of what is in their modules."""
    made = [
        msgspec.structs.replace(
            row,
            name=rename(row.name),
            aliases=tuple(name for name in dict.fromkeys(map(rename, row.aliases)) if name != rename(row.name)),
            plain=tuple(map(rename, row.plain)),
        )
        for row in rows
    ]
    modules = None
    if listing.modules is not None:
        modules = dict(listing.modules)
        for path, info in listing.modules.items():
            inside = f"{path}._" if path else "_"
            new = rename(inside)
            if new != inside and (new == "_" or new.endswith("._")):
                modules[new[:-2]] = info
    return Listing(made, modules, listing.source)


def _add_document(collected: Collected, contents: Contents) -> Any:
    """Add what torchkeep's metadata says besides the rows, and return the recipe."""
    document = contents.document
    if document is None:
        return None
    collected.root = document.root
    collected.order = contents.names
    collected.tree, collected.state = _or_none(document.tree), _or_none(document.state)
    collected.parameters, collected.gradients = document.parameters, document.gradients
    collected.module = document.module
    bases = {view.base for view in document.views.values()}
    for name in document.hidden:
        if name not in bases:
            stored = contents.stored(name)
            collected.apart[name] = stand_in(name, stored.shape, stored.dtype, contents.path)
    return _or_none(document.recipe)


def _or_none(raw: msgspec.Raw) -> msgspec.Raw | None:
    return None if bytes(raw) == b"null" else raw


def _of_pickled(elements: Elements, pickled: Pickled, file: ReadableFile) -> Collected:
    collected = outline_rows(elements.listing)
    collected.order = tuple(pickled.tensors)
    collected.parameters = tuple(name for name, tensor in pickled.tensors.items() if tensor.parameter)
    collected.gradients = tuple(name for name, tensor in pickled.tensors.items() if tensor.requires_grad)
    outline = _Outline(file, pickled)
    root = outline.value()
    if _is_flat(root, pickled):
        if isinstance(root, OrderedDict):
            collected.root = "ordered"
            encoder = Encoder(encode_plain_at)
            collected.state = encoder.encode(getattr(root, "_metadata", None), Path(ROOT, "_metadata"))
            encoder.raise_problems()
        return collected
    encoder = Encoder(outline.encoded)
    collected.root, collected.tree = "tree", encoder.encode(root)
    encoder.raise_problems()
    return collected


def encode_plain_at(value: object, path: Path) -> tuple[str, Any] | None:
    """Encode plain values of torch and NumPy, wherever they are."""
    del path
    return encode_plain(value)


def _is_flat(root: Any, pickled: Pickled) -> bool:
    if type(root) not in {dict, OrderedDict} or set(getattr(root, "__dict__", ())) - {"_metadata"}:
        return False
    return list(root) == list(pickled.tensors) and all(isinstance(value, torch.Tensor) for value in root.values())


class _Outline(PickledReader):
    """Makes what was saved, with tensors that have no values: nothing is read."""

    def __init__(self, file: ReadableFile, pickled: Pickled) -> None:
        super().__init__(file, pickled)
        self._owners = {pickled.tensors[names[0]].identity: names[0] for names in pickled.ties.values()}
        self._names: dict[int, str] = {}

    def _read(self, wanted: Iterable[TensorRef]) -> None:
        del wanted

    def tensor(self, described: TensorRef) -> Tensor:
        """Return what stands for the tensor; for a tie the same object."""
        found = self._tensors.get(described.identity)
        if found is None:
            found = self._tensors[described.identity] = torch.empty(0, device="meta")
            self._names[id(found)] = self._owners[described.identity]
        return found

    def encoded(self, value: object, path: Path) -> tuple[str, Any] | None:
        """Encode a tensor as its name, and plain values of torch and NumPy."""
        if isinstance(value, torch.Tensor):
            return "tensor", self._names[id(value)]
        return encode_plain_at(value, path)
