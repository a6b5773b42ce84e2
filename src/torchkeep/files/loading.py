"""`load`: what a file holds, as it was saved."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.archive.locating import locate
from torchkeep.errors import FormatError
from torchkeep.formats.contents import Contents
from torchkeep.formats.document import decode_json
from torchkeep.formats.kinds import holds_pickle
from torchkeep.formats.safetensors import header_of
from torchkeep.formats.sharded import Sharded, located
from torchkeep.formats.values import decode
from torchkeep.selectors import Selector, as_selector
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.tensors.pausing import without_collections
from torchkeep.tensors.pickled import PickledReader
from torchkeep.tensors.plain import PLAIN_READERS
from torchkeep.tensors.reading import read_tensors

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import msgspec
    from torch import Tensor

    from torchkeep.formats.document import Document
    from torchkeep.formats.values import Reader
    from torchkeep.rows import Listing
    from torchkeep.storage.base import ReadableFile, Storage


def load(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    select: str | Selector | None = None,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Any:
    """Load what `save` or ``torch.save`` saved: the same containers, values and tensors. Nothing in it is run.

    Tied tensors come back as one object; tensors that shared memory share it again; an ``nn.Parameter`` is one
    again, and what required a gradient does. A module's file gives the flat dict of its state, aliases included,
    with plain tensors, as ``state_dict`` does. So do a safetensors file that something else wrote, and an index.

    Args:
        path: the file; of which kind it is, is told by what it holds. Or an index of several files, such as
            ``model.safetensors.index.json``, or a folder with an index or one model file; that of an index is
            loaded as a flat dict. Or a checkpoint, written ``"STORE@STEP"``: of it come the parts of the state,
            modules as their flat dicts.
        select: which tensors; then the result is a flat dict from names to tensors, each tied one under its
            owner's name and every alias, and only their bytes are read.
        device: where the tensors go.
        verify: whether every byte that is read is compared with the digests in the file. A safetensors file that
            something else wrote has none, nor has a file of ``torch.save`` before 1.6; later ones have checksums.
            Checkpoints always are.

    Returns:
        What was saved; with ``select``, a dict.

    Raises:
        DamageError: bytes are not what was written; the tensor, the file and the byte range are named.
        FormatError: it is no file that can be read, or it contradicts itself.
        UnsafeFileError: it asks for something to be imported, called or changed; nothing was.
        NewerFormatError: a later version of torchkeep wrote it.
        NoMatchError: ``select`` matches nothing.
        StoreError: there is no such store or checkpoint.
        MissingFileError: there is no such file.
        StorageError: the file can't be read.
    """
    return load_from(LOCAL, path, select=select, device=device, verify=verify)


@without_collections()
def load_from(
    storage: Storage,
    path: str | os.PathLike[str] | Checkpoint,
    *,
    select: str | Selector | None = None,
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> Any:
    """Load through any storage; see `load`."""
    checkpoint = path if isinstance(path, Checkpoint) else _checkpoint_at(path)
    if checkpoint is not None:
        from torchkeep.files.checkpointed import load_checkpoint  # noqa: PLC0415 - it builds on this module

        chosen = None if select is None else _chosen(checkpoint.listing, select)
        return load_checkpoint(checkpoint, chosen, device)
    assert not isinstance(path, Checkpoint)
    found = located(path)
    if isinstance(found, Sharded):
        names = list(found.where) if select is None else _chosen(found.listing, select)
        return _of_parts(storage, found, names, device, verify=verify)
    with closing(storage.open(found)) as file:
        if holds_pickle(file):
            reader = PickledReader(file, verify=verify, device=device)
            return reader.value() if select is None else reader.tensors(_chosen(reader.pickled.listing, select))
        contents = Contents(header_of(file))
        if select is not None:
            names = _chosen(contents.listing, select)
            return read_tensors(file, contents, names, device=device, verify=verify)
        if contents.document is None:
            return read_tensors(file, contents, contents.names, device=device, verify=verify)
        return _whole(file, contents, contents.document, device, verify=verify)


def _checkpoint_at(path: str | os.PathLike[str]) -> Checkpoint | None:
    found = locate(path)
    return None if found is None else Checkpoint.of(*found)


def _of_parts(
    storage: Storage, sharded: Sharded, names: Sequence[str], device: str | torch.device, *, verify: bool
) -> dict[str, Any]:
    """Load some of what the files under an index hold."""
    by_part: dict[str, list[str]] = {}
    for name in names:
        by_part.setdefault(sharded.where[name], []).append(name)
    found: dict[str, Any] = {}
    for part, held in by_part.items():
        with closing(storage.open(part)) as file:
            sharded.refuse_changed()
            if holds_pickle(file):
                reader = PickledReader(file, verify=verify, device=device)
                tensors = [name for name in held if name in reader.pickled.tensors]
                found.update(reader.tensors(tensors))
                found.update({name: reader.item(name) for name in held if name not in found})
            else:
                found.update(read_tensors(file, Contents(header_of(file)), held, device=device, verify=verify))
    sharded.refuse_changed()
    return {name: found[name] for name in names}


def _chosen(listing: Listing, select: str | Selector) -> list[str]:
    return [name for index in as_selector(select).indices(listing) for name in listing.rows[index].names]


def _whole(
    file: ReadableFile, contents: Contents, document: Document, device: str | torch.device, *, verify: bool
) -> Any:
    """Load everything and put it together as it was."""
    hidden = set(document.hidden) - {view.base for view in document.views.values()}
    tensors = read_tensors(file, contents, [*contents.names, *hidden], device=device, verify=verify)
    apart = {name: tensors.pop(name) for name in hidden}
    made = _as_saved(tensors, contents, document)
    if document.root == "dict":
        return made
    if document.root == "ordered":
        ordered = OrderedDict(made)
        state = values_at(contents.path, document.state, {})
        if state is not None:
            ordered.__dict__["_metadata"] = state
        return ordered
    if document.root == "tree":
        return values_at(contents.path, document.tree, made)
    assert document.module is not None
    return {**made, **extra_state(contents, apart)}


def _as_saved(tensors: dict[str, Tensor], contents: Contents, document: Document) -> dict[str, Tensor]:
    """Make Parameters of what was Parameters, and let require gradients what did; a tie stays one object."""
    parameters, gradients = set(document.parameters), set(document.gradients)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner = contents.owner(name)
        if owner not in made:
            made[owner] = _grown(
                tensor, parameter=name in parameters, gradient=name in gradients, path=contents.path
            )
    return {name: made[contents.owner(name)] for name in tensors}


def _grown(tensor: Tensor, *, parameter: bool, gradient: bool, path: str) -> Tensor:
    if gradient and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"{path!r} says that a tensor of {tensor.dtype} requires a gradient, which none can")
    return nn.Parameter(tensor, requires_grad=gradient) if parameter else tensor.requires_grad_(gradient)


def extra_state(contents: Contents, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a module's extra state by its key in the state_dict.

    Args:
        contents: what the file holds.
        tensors: the tensors in it, by name.

    Raises:
        FormatError: what the file holds is no tree of values.
    """
    facts = contents.document.module if contents.document else None
    return {key: values_at(contents.path, raw, tensors) for key, raw in (facts.extra if facts else {}).items()}


def values_at(
    path: str, raw: msgspec.Raw, tensors: Mapping[str, Tensor], readers: Mapping[str, Reader] | None = None
) -> Any:
    """Make the values that a tree in torchkeep's metadata in the file at ``path`` describes.

    Args:
        path: the file.
        raw: the tree.
        tensors: by the names that the tree has for them.
        readers: of further tags.

    Raises:
        FormatError: it is no tree of values.
    """

    def tensor(name: Any) -> Tensor:
        if not isinstance(name, str) or name not in tensors:
            raise FormatError(f"its values hold a tensor {name!r}, which is not in the file")
        return tensors[name]

    try:
        return decode(decode_json(raw), readers={**PLAIN_READERS, "tensor": tensor, **(readers or {})})
    except FormatError as cause:
        raise FormatError(f"torchkeep's metadata in {path!r} contradicts itself: {cause}") from cause
