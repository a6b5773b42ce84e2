"""Rows: what is known of each tensor of a model, a state_dict or a file, in plain Python.

Everything that looks at parameters (selectors, tables, plans, the command line) reads a `Listing` of `Row`s and
never needs the tensors themselves, nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal, TypeAlias

from msgspec import Struct

from torchkeep.dtypes import DTYPES

Kind: TypeAlias = Literal["parameter", "buffer"]


class TypeInfo(Struct, frozen=True):
    """A module's class, by name.

    Attributes:
        lineage: ``(module, qualname)`` of the class and its bases in method resolution order, the class first,
            ``torch.nn.Module`` last.
    """

    lineage: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The class's own name, such as ``"Linear"``."""
        return self.lineage[0][1].rpartition(".")[2]

    @property
    def qualified(self) -> str:
        """The class's full name, such as ``"torch.nn.modules.linear.Linear"``."""
        return ".".join(self.lineage[0])


class Row(Struct, frozen=True, gc=False):  # rows hold no cycles, and there may be 100,000 of them
    """One tensor, under its owner's name.

    Attributes:
        name: canonical, fully qualified name; for a tie, the owner.
        shape: None while the parameter is lazy.
        dtype: torch's name without ``torch.``, such as ``"float32"``.
        device: such as ``"cpu"``, ``"cuda:0"``, ``"meta"``.
        kind: None where the source does not say (a plain state_dict).
        persistent: whether it is part of the state_dict.
        trainable: ``requires_grad`` of a parameter, False for a buffer, None where the source does not say.
        module_type: name of the class of the owning module, None where the source does not say.
        aliases: the other names of the same tensor, in natural order.
        plain: for a parametrized weight, the names it answers to besides its own: ``layer.weight`` for
            ``layer.parametrizations.weight.original0``.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str = "cpu"
    kind: Kind | None = None
    persistent: bool = True
    trainable: bool | None = None
    module_type: str | None = None
    aliases: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    @property
    def lazy(self) -> bool:
        """Whether the parameter has no shape yet."""
        return self.shape is None

    @property
    def ndim(self) -> int:
        """Number of dimensions; 0 while lazy."""
        return len(self.shape or ())

    @property
    def numel(self) -> int:
        """Number of elements; 0 while lazy."""
        return 0 if self.shape is None else prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the elements, without gaps; 0 while lazy."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """The owner and the aliases."""
        return (self.name, *self.aliases)


class Listing(Struct, frozen=True, weakref=True):
    """The rows of one source, in its own order.

    Attributes:
        rows: one for each tensor; a tie is one row.
        modules: class of each module by path (the root is ``""``); a shared module stands under each of its
            paths. None where the source does not know classes.
        source: what errors call the source, such as ``"the model"`` or ``"model.safetensors"``.
    """

    rows: Sequence[Row]
    modules: Mapping[str, TypeInfo] | None
    source: str
