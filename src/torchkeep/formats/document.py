"""What torchkeep keeps in a file beyond names and bytes: one JSON document in the safetensors metadata.

Version 1. Everything that is empty is left out. A reader ignores fields that it does not know, and refuses a
document of a later version.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from torchkeep.errors import FormatError, NewerFormatError

DOCUMENT_KEY: Final = "torchkeep"
VERSION: Final = 1

_Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Lineage = Annotated[tuple[tuple[str, str], ...], Meta(min_length=1)]
_NOTHING: Final = msgspec.Raw(b"null")


class View(Struct, array_like=True):
    """A tensor that shares the memory of another.

    Attributes:
        base: name of the entry whose memory it is.
        dtype: torch's name.
        shape: sizes.
        stride: steps, in elements.
        offset: first element, in elements of ``dtype`` from the base's first byte.
    """

    base: str
    dtype: str
    shape: tuple[_Size, ...]
    stride: tuple[_Size, ...]
    offset: _Size


class ModuleFacts(Struct, omit_defaults=True):
    """What a module knew of its tensors, so that selectors mean the same on its file.

    Attributes:
        lineages: the classes that occur, each with its bases, as `TypeInfo` has them.
        modules: position in ``lineages`` by module path.
        buffers: the names that are buffers; the others are parameters.
        frozen: the parameters that do not require a gradient.
        plain: plain names of parametrized weights.
        extra: extra state (``get_extra_state``) by its key in the state_dict; a tree of values.
    """

    lineages: tuple[_Lineage, ...] = ()
    modules: dict[str, _Size] = {}
    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    plain: dict[str, tuple[str, ...]] = {}
    extra: dict[str, msgspec.Raw] = {}


class Document(Struct, omit_defaults=True):
    """The document.

    Attributes:
        version: of this format.
        chunk: bytes of a chunk.
        digests: of all chunks, in the order of the bytes in the file; base64.
        root: what was saved: a flat ``"dict"`` or ``"ordered"`` (OrderedDict) of tensors, a ``"module"``, or
            anything else, described by ``tree``.
        tree: a tree of values.
        state: for an OrderedDict that a state_dict is: the tree of its ``_metadata``.
        order: all names in order, aliases and views included; left out when the header's order is it.
        aliases: owner's name by alias.
        views: tensors that share memory with an entry, by name.
        dtypes: torch's name of the dtype of an entry that is kept as bytes, with one dimension more.
        strides: the steps of an entry whose memory was dense but in another order than its bytes here.
        hidden: entries that are no tensors of their own: memory that views share, tensors of extra state.
        parameters: names that were an ``nn.Parameter`` (not for a module, whose parameters are known).
        gradients: names that required a gradient (not for a module).
        module: what a module knew of its tensors.
        recipe: how the module is built, as `torchkeep.recipe` wrote it down.
    """

    version: int
    chunk: Annotated[int, Meta(ge=1)]
    digests: str
    root: Literal["dict", "ordered", "module", "tree"] = "dict"
    tree: msgspec.Raw = _NOTHING
    state: msgspec.Raw = _NOTHING
    order: tuple[str, ...] = ()
    aliases: dict[str, str] = {}
    views: dict[str, View] = {}
    dtypes: dict[str, str] = {}
    strides: dict[str, tuple[_Size, ...]] = {}
    hidden: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    module: ModuleFacts | None = None
    recipe: msgspec.Raw = _NOTHING


class _Version(Struct):
    version: int


_version_decoder: Final = msgspec.json.Decoder(_Version)
_decoder: Final = msgspec.json.Decoder(Document)


def encode_document(document: Document) -> str:
    """Return the document's text."""
    return msgspec.json.encode(document).decode()


def decode_document(text: str, path: str) -> Document:
    """Read the document out of the metadata of the file at ``path``; it is not yet compared with the header.

    Raises:
        NewerFormatError: a later version of torchkeep wrote it.
        FormatError: it is not what it should be.
    """
    try:
        version = _version_decoder.decode(text).version
        if version > VERSION:
            raise NewerFormatError(
                f"{path!r} was written in version {version} of torchkeep's file format, and this torchkeep reads "
                f"up to version {VERSION}; install a newer torchkeep"
            )
        return _decoder.decode(text)
    except msgspec.DecodeError as cause:
        raise FormatError(f"torchkeep's metadata in {path!r} is not what it should be: {cause}") from cause
    except RecursionError as cause:
        raise FormatError(f"torchkeep's metadata in {path!r} is nested too deeply") from cause


def as_raw(node: Any) -> msgspec.Raw:
    """Encode a part of the document that readers need not look at."""
    return _NOTHING if node is None else msgspec.Raw(msgspec.json.encode(node))


def decode_json(raw: msgspec.Raw | bytes) -> Any:
    """Decode a part of the document that was left as text."""
    return msgspec.json.decode(raw)
