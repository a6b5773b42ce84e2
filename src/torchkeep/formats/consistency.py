"""Compare torchkeep's metadata with the header and with itself: nothing in a file is trusted."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torchkeep.dtypes import DTYPES
from torchkeep.errors import FormatError
from torchkeep.formats.describing import check_facts, check_within
from torchkeep.formats.digests import CHUNK
from torchkeep.formats.safetensors import MAX_NDIM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.formats.document import Document, View
    from torchkeep.formats.safetensors import Header


_LARGEST = 2**63 - 1
_CHUNK_UNIT = 4096
"""A chunk's size is a multiple of this, so that every chunk ends between elements."""


def check(document: Document, header: Header) -> None:
    """Check a document.

    Raises:
        FormatError: it contradicts the header or itself; the sentence is to be completed with the file's name.
    """
    if document.chunk % _CHUNK_UNIT or document.chunk > CHUNK:
        raise FormatError(f"its chunks have {document.chunk} bytes")
    for name, view in document.views.items():
        _check_view(header, name, view)
    for name, dtype in document.dtypes.items():
        _check_dtype(header, name, dtype)
    for name, strides in document.strides.items():
        _check_strides(document, header, name, strides)
    _check_names(document, header)
    _check_modules(document, header)


def _check_names(document: Document, header: Header) -> None:
    tensors = header.entries.keys() | document.views.keys()
    for alias, owner in document.aliases.items():
        if alias in tensors or owner not in tensors:
            raise FormatError(f"alias {alias!r} of {owner!r} is a tensor itself, or its owner is none")
    hidden = set(document.hidden)
    check_within(hidden, header.entries, "hidden")
    check_within(document.aliases.values(), tensors - hidden, "aliases")
    visible = (tensors | document.aliases.keys()) - hidden
    ordered = document.order or document.aliases or document.views
    if ordered and (set(document.order) != visible or len(document.order) != len(visible)):
        raise FormatError("its order does not name every tensor once")
    check_within(document.parameters, visible, "parameters")
    check_within(document.gradients, visible, "gradients")


def _check_modules(document: Document, header: Header) -> None:
    facts = document.module
    if (document.root == "module") != (facts is not None):
        raise FormatError("it says that a module was saved, but nothing of its classes, or the other way round")
    if facts is None:
        return
    tensors = header.entries.keys() | document.views.keys()
    check_facts(facts, tensors)


def _check_dtype(header: Header, name: str, dtype: str) -> None:
    entry = header.entries.get(name)
    info = DTYPES.get(dtype)
    if entry is None or info is None:
        raise FormatError(f"{name!r} is given the dtype {dtype!r}, but one of them does not exist")
    if entry.dtype != "U8" or info.code is not None or entry.shape[-1:] != (info.itemsize,):
        raise FormatError(
            f"{name!r} is given the dtype {dtype!r}, but is kept as {entry.dtype} {list(entry.shape)}"
        )


def _check_strides(document: Document, header: Header, name: str, strides: tuple[int, ...]) -> None:
    if name not in header.entries:
        raise FormatError(f"strides names {name!r}, which is no tensor of the file")
    shape = header.entries[name].shape
    if name in document.dtypes:
        shape = shape[:-1]
    if not is_dense(shape, strides):
        raise FormatError(f"the strides {list(strides)} of {name!r} leave gaps for the shape {list(shape)}")


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether elements of that shape at those steps fill their memory without gaps or overlaps."""
    if len(shape) != len(strides) or 0 in shape:
        return False
    expected = 1
    for step, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True


def is_row_major(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tell whether elements at those steps lie one after the other, the last dimension's first."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return 0 in shape
        expected *= size
    return True


def _check_view(header: Header, name: str, view: View) -> None:
    if name in header.entries or view.base not in header.entries:
        raise FormatError(f"view {name!r} of {view.base!r} is an entry itself, or its base is none")
    info = DTYPES.get(view.dtype)
    if info is None or len(view.shape) != len(view.stride) or len(view.shape) > MAX_NDIM:
        raise FormatError(f"view {name!r} has an unknown dtype or not as many strides as sizes")
    start, stop = header.entries[view.base].data_offsets
    if prod(view.shape) * info.itemsize > _LARGEST:
        raise FormatError(f"view {name!r} has more elements than any tensor can have")
    last = sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))
    if 0 in view.shape:
        last = -1
    if (view.offset + last + 1) * info.itemsize > stop - start:
        raise FormatError(f"view {name!r} reaches beyond the end of its base {view.base!r}")
