"""What comes out of a pickled file: descriptions that do nothing, plain containers and plain values.

Containers are Python's own ``dict``, ``list``, ``tuple``, ``set``, ``frozenset`` and ``collections.Counter``;
plain values are None, bool, int, float, complex, str, bytes and bytearray. All else is one of the classes below.
"""

from __future__ import annotations

from math import prod
from typing import Any

from msgspec import Struct

from torchkeep.dtypes import DTYPES
from torchkeep.names import with_article


class Extent(Struct, frozen=True, gc=False):
    """The bytes of one storage in the file.

    Attributes:
        start: its first byte, counted from the start of the file.
        nbytes: how many there are.
        crc: the CRC-32 that the file gives for them; None where it gives none.
    """

    start: int
    nbytes: int
    crc: int | None


class StorageRef(Struct, frozen=True, gc=False):
    """The memory that tensors lie in, as the file names it.

    Attributes:
        key: its key in the file's table of storages.
        dtype: torch's name of the dtype it was saved as; ``"uint8"`` for untyped bytes.
        numel: elements of that dtype.
        location: the device it was saved from, such as ``"cpu"`` or ``"cuda:0"``. Only told, never obeyed.
        start: its first byte within the extent; not 0 for a view that the format from before 1.6 describes.
    """

    key: str
    dtype: str
    numel: int
    location: str
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * DTYPES[self.dtype].itemsize


class TensorRef(Struct, eq=False):
    """A tensor, described. Two references are equal only when they are one object.

    Attributes:
        storage: where its elements are; None for one on the meta device, which has none.
        dtype: torch's name.
        offset: its first element, in elements of ``dtype`` from the start of ``storage``.
        shape: sizes of its dimensions.
        stride: steps, in elements, as many as sizes. It lies inside its storage: that has been checked.
        requires_grad: what it was when it was saved.
        parameter: whether it was an ``nn.Parameter``.
        conj: whether the elements are kept conjugated.
        neg: whether the elements are kept negated.
    """

    storage: StorageRef | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    parameter: bool = False
    conj: bool = False
    neg: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def start(self) -> int:
        """Its first byte within the storage's extent."""
        inside = 0 if self.storage is None else self.storage.start
        return inside + self.offset * DTYPES[self.dtype].itemsize

    @property
    def identity(self) -> object:
        """A key that is equal for references to one tensor: the same elements, and told apart by nothing else."""
        if self.storage is None:
            return id(self)
        # The stride of a dimension of size 1 is never used, so it tells nothing apart.
        steps = tuple(step if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True))
        place = self.storage.key, self.start, self.dtype, self.shape, steps
        return place, self.conj, self.neg, self.parameter, self.requires_grad


class Ordered(dict[Any, Any]):
    """A ``collections.OrderedDict``.

    Attributes:
        metadata: what a state_dict carries as ``_metadata`` (versions of its modules); None where it carries none.
    """

    __slots__ = ("metadata",)

    def __init__(self) -> None:
        self.metadata: dict[Any, Any] | None = None


class Size(tuple[int, ...]):
    """A ``torch.Size``."""

    __slots__ = ()


class Dtype(Struct, frozen=True):
    """A ``torch.dtype``.

    Attributes:
        name: torch's name, such as ``"float32"``.
    """

    name: str


class Device(Struct, frozen=True):
    """A ``torch.device``.

    Attributes:
        text: such as ``"cuda:0"``; of the form that torch takes, though it may not exist here.
    """

    text: str


class Layout(Struct, frozen=True):
    """A ``torch.layout``.

    Attributes:
        name: such as ``"strided"``.
    """

    name: str


def kind_of(value: object) -> str:
    """Name the kind of a value for a sentence, by what its description stands for, with an article."""
    name = type(value).__name__
    return _STANDS_FOR.get(name) or with_article(name)


_STANDS_FOR = {
    "Constructor": "a class or function",
    "Device": "a torch.device",
    "Dtype": "a torch.dtype",
    "Layout": "a torch.layout",
    "NoneType": "None",
    "NumpyDtype": "a numpy.dtype",
    "Ordered": "an OrderedDict",
    "Size": "a torch.Size",
    "StorageRef": "a storage",
    "StorageType": "a class of storages",
    "TensorRef": "a tensor",
}
