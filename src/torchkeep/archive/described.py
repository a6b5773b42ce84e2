"""What the tree of a checkpoint means: parts, values, and what modules knew of their tensors. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from torchkeep.errors import FormatError, NewerFormatError
from torchkeep.formats.document import ModuleFacts

VERSION: Final = 1
_NOTHING: Final = msgspec.Raw(b"null")


class StateTree(Struct, omit_defaults=True):
    """How a saved state is put together. It is the tree of a manifest.

    Tensors are named by where they are in the state: ``model.0.weight`` is ``0.weight`` of the module kept as
    ``model``. Where the state is a module and nothing else, its prefix is empty and the names are its own.

    Attributes:
        version: of this format; a later one is refused.
        value: a tree of values (`torchkeep.formats.values`) with two more tags: ``{"tensor": name}`` and
            ``{"module": prefix}``.
        modules: what each module knew, by its prefix, which its tensors' names begin with, a dot between.
        order: all names, aliases included, in order; left out where the order of the manifest's tensors is it.
    """

    version: Annotated[int, Meta(ge=1)] = VERSION
    value: msgspec.Raw = _NOTHING
    modules: dict[str, ModuleFacts] = {}
    order: tuple[str, ...] = ()


def encode_state(tree: StateTree) -> Any:
    """Return the tree in JSON's own types, as a commit takes it."""
    return msgspec.json.decode(msgspec.json.encode(tree))


def decode_state(path: str, raw: msgspec.Raw) -> StateTree:
    """Read the tree of the manifest at ``path``.

    Raises:
        NewerFormatError: a later version wrote it.
        FormatError: it is not what it should be.
    """
    try:
        tree = msgspec.json.decode(raw, type=StateTree)
    except msgspec.DecodeError as cause:
        raise FormatError(f"the manifest {path!r} describes no state that can be read: {cause}") from cause
    if tree.version > VERSION:
        raise NewerFormatError(
            f"the state in {path!r} was described in version {tree.version}, and this torchkeep reads up to "
            f"version {VERSION}; install a newer torchkeep"
        )
    return tree
