"""What tables are read from: a live module, a mapping of tensors; files stand in `torchkeep.tables.filed`.

A source gives a listing of rows, and the tensor that hangs under a name now. It is asked anew each time, so that a
table never shows what was true when it was made.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.errors import SourceError
from torchkeep.names import natural_key, with_article
from torchkeep.rows import Listing, Row
from torchkeep.tables.modules import unwrap
from torchkeep.tables.survey import OWNERS_ATTRIBUTE, Survey, survey
from torchkeep.tensors.checkpoints import Checkpoint
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.identity import Key, tensor_key
from torchkeep.tensors.sharing import suspects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from torchkeep.tables.survey import Place

T = TypeVar("T")
PLAIN: Final = (torch.Tensor, nn.Parameter)
_FACTS: Final = attrgetter("requires_grad", "dtype", "device", "layout", "shape")
ACCEPTED = (
    "a torch.nn.Module, a mapping from names to tensors (a state_dict), the path of a .safetensors, .pt, .pth or "
    ".bin file or of a folder of them, or a checkpoint in a store (STORE@STEP)"
)


class Source(ABC):
    """Where rows and tensors come from.

    Attributes:
        notes: sentences that a table shows below its rows.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def listing(self) -> Listing:
        """Return the rows as they are now; the same object as long as nothing has changed."""

    def known(self) -> Listing:
        """Return the listing last returned, without looking whether something has changed."""
        return self.listing()

    @abstractmethod
    def tensor(self, position: int) -> Tensor:
        """Return the tensor of one row of the listing last returned."""

    def each(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the tensors of some rows of the listing last returned, each when its turn comes."""
        return map(self.tensor, positions)

    def is_current(self, listing: Listing, position: int, name: str) -> bool:
        """Tell, quickly, whether ``name`` still leads to a tensor as that row of that listing says."""
        del listing, position, name
        return True

    def named(self, position: int, name: str) -> Tensor:
        """Return the tensor under one of the names of a row of the listing last returned."""
        del name
        return self.tensor(position)

    @abstractmethod
    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` reads the same thing."""


class ModuleSource(Source):
    """A live module, surveyed again whenever it has changed since.

    The check compares each module's class, children, parameters and buffers with what they were: identity,
    ``requires_grad``, dtype, device, shape, address, contiguous, conjugated, negated or not. It costs about a
    tenth of a survey.
    """

    def __init__(self, net: nn.Module) -> None:
        self._given = net
        self._look()

    def _look(self) -> None:
        net = unwrap(self._given)
        self.survey: Survey = survey(net)
        self._net = net
        self._holders = _with_wrappers(self.survey.modules.values())
        self._seen = [_state(module) for module in self._holders]

    def known(self) -> Listing:
        """Return the rows as they were at the last look."""
        return self.survey.listing

    def listing(self) -> Listing:
        """Return the rows as they are now."""
        if unwrap(self._given) is not self._net or any(
            _state(module) != seen for module, seen in zip(self._holders, self._seen, strict=True)
        ):
            self._look()
        return self.survey.listing

    def tensor(self, position: int) -> Tensor:
        """Return the live parameter or buffer."""
        return self.survey.tensors[position]

    def is_current(self, listing: Listing, position: int, name: str) -> bool:
        """Tell whether the modules on the way to ``name`` are still the same, and something hangs there."""
        if listing is not self.survey.listing:
            return False
        place = self._place(position, name)
        if _held(place.registry, place.key) is None:
            return False
        modules = self.survey.modules
        path = name.removesuffix(place.key).removesuffix(".")
        while path:
            above, _, key = path.rpartition(".")
            child = _held(modules[above]._modules, key) if above in modules else None  # noqa: SLF001 - get_submodule raises
            if child is None or unwrap(child) is not modules[path]:
                return False
            path = above
        return True

    def named(self, position: int, name: str) -> Tensor:
        """Return what hangs under ``name`` now."""
        return self._place(position, name).tensor

    def _place(self, position: int, name: str) -> Place:
        return next(place for place in self.survey.places[position] if place.name == name)

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same module, wrapped or not."""
        return isinstance(other, ModuleSource) and self._net is other._net  # noqa: SLF001 - its own kind


class MappingSource(Source):
    """A mapping from names to tensors, as it was when the table was made. Kinds and classes are not known."""

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        self._mapping = mapping
        tensors: dict[str, Tensor] = {}
        left_out = []
        for name, value in mapping.items():
            if not isinstance(name, str):
                raise SourceError(f"the mapping's keys must be names, but one is {name!r} ({type(name).__name__})")
            if isinstance(value, torch.Tensor):
                if value.is_nested:
                    raise SourceError(f"{name} is a nested tensor, which has no shape; keep its parts instead")
                tensors[name] = value
            elif name.rpartition(".")[2] == "_extra_state":
                left_out.append(name)
            else:
                raise SourceError(
                    f"the mapping holds {with_article(type(value).__name__)} under {name!r}, where a tensor is "
                    "expected; give the mapping of tensors itself, such as checkpoint['model']"
                )
        if left_out:
            self.notes = (f"left out, since they are no tensors: {', '.join(left_out)}",)
        self._listing, self._tensors = _mapped(tensors), tensors

    def listing(self) -> Listing:
        """Return the rows."""
        return self._listing

    def tensor(self, position: int) -> Tensor:
        """Return the tensor under the owner's name."""
        return self._tensors[self._listing.rows[position].name]

    def named(self, position: int, name: str) -> Tensor:
        """Return the very tensor under that name: a state_dict holds a tied one as several objects."""
        del position
        return self._tensors[name]

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same mapping object."""
        return isinstance(other, MappingSource) and self._mapping is other._mapping  # noqa: SLF001 - its own kind


def open_source(source: object) -> Source:
    """Return the source that reads ``source``.

    Raises:
        SourceError: it is nothing that parameters can be read from.
        FormatError: the file is not what it should be.
        StorageError: the file can't be read.
    """
    if isinstance(source, nn.Module):
        return ModuleSource(source)
    if isinstance(source, Checkpoint):
        from torchkeep.tables.checkpointed import CheckpointSource  # noqa: PLC0415 - it builds on this module

        return CheckpointSource(source)
    if isinstance(source, Mapping):
        return MappingSource(source)
    if isinstance(source, str | os.PathLike):
        from torchkeep.tables.filed import open_path  # noqa: PLC0415 - it builds on this module

        return open_path(source)
    found = f"the class {source.__name__}; make an instance of it first" if isinstance(source, type) else None
    raise SourceError(f"expected {ACCEPTED}; found {found or with_article(type(source).__name__)}")


def _with_wrappers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return modules, each once, and the wrappers between them, which no name tells of."""
    known = {id(module): module for module in modules}
    found = list(known.values())
    for module in found:  # which grows as wrappers are found
        for child in module._modules.values():  # noqa: SLF001 - children() is slower
            if child is not None and id(child) not in known:
                known[id(child)] = child
                found.append(child)
    return found


def _state(module: nn.Module) -> list[Any]:
    """Describe what rows say of one module's tensors; flat, so that it is cheap to make and to compare."""
    children = module._modules  # noqa: SLF001 - children() hides a shared child's second place
    transient = module._non_persistent_buffers_set  # noqa: SLF001 - there is no public way
    strided = torch.strided
    state = [type(module), module.__dict__.get(OWNERS_ATTRIBUTE), len(children)]
    state += children.keys()  # TorchScript's dict can't be iterated itself
    state += map(id, children.values())  # a module may have an == of its own
    if transient:
        state.append(set(transient))
    for registry in (module._parameters, module._buffers):  # noqa: SLF001 - the public ways hide ties
        state.append(len(registry))
        for key, tensor in registry.items():
            state += (key, id(tensor))
            if tensor is None:
                continue
            if type(tensor) in PLAIN:
                state += _FACTS(tensor)
                if tensor.layout is strided:
                    state += (tensor.is_contiguous(), tensor.is_conj(), tensor.is_neg(), tensor.data_ptr())
            else:  # a lazy tensor has no shape, and a fake one warns of its address
                state += (tensor.requires_grad, tensor.dtype, tensor.device, _shape(tensor))
    return state


def _held(registry: Mapping[str, T | None], key: str) -> T | None:
    return registry[key] if key in registry else None  # noqa: SIM401 - TorchScript's dicts have no get


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if is_lazy(tensor) else tuple(tensor.shape)


def _mapped(tensors: Mapping[str, Tensor]) -> Listing:
    """List a mapping's tensors, each tie as one row under its naturally smallest name."""
    suspected = suspects(tensors)
    groups: dict[Key, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor_key(tensor) if name in suspected else name, []).append(name)
    rows = []
    for names in groups.values():
        owner, *aliases = sorted(names, key=natural_key) if len(names) > 1 else names
        tensor = tensors[owner]
        rows.append(
            Row(
                name=owner,
                shape=_shape(tensor),
                dtype=dtype_name(tensor.dtype),
                device=str(tensor.device),
                aliases=tuple(aliases),
            )
        )
    return Listing(rows, None, "the mapping")
