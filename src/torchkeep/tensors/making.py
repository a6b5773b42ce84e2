"""Make the values that the pickle in a file of torch.save was read as descriptions of."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from torchkeep.errors import FormatError
from torchkeep.formats.pickles.objects import Device, Dtype, Layout, Ordered, Size, TensorRef

if TYPE_CHECKING:
    from torchkeep.formats.pickles import Pickled


class Reader(Protocol):
    """Gives the tensors.

    Attributes:
        pickled: what the file holds, described.
    """

    pickled: Pickled

    def tensor(self, described: TensorRef) -> torch.Tensor:
        """Return the tensor that is described."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Return torch's dtype of that name."""
        ...


class Making:
    """Makes values of descriptions; what is shared in the file is shared in what comes out."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._made: dict[int, Any] = {}

    def value(self, described: Any) -> Any:
        """Return what is described; containers lie at most 100 deep."""
        kind = type(described)
        if kind is TensorRef:
            return self._reader.tensor(described)
        if kind not in _CONTAINERS:
            return self._plain(described)
        if id(described) not in self._made:
            self._made[id(described)] = self._container(described)
        return self._made[id(described)]

    def _container(self, described: Any) -> Any:
        kind = type(described)
        if kind is dict:
            return self._items(described)
        if kind is Counter:
            counts: Counter[Any] = Counter()
            # Counter's own update would add.
            dict.update(counts, self._items(described))
            return counts
        if kind is Ordered:
            ordered = OrderedDict(self._items(described))
            if described.metadata is not None:
                # The one attribute that a state_dict has: versions of modules, for load_state_dict.
                ordered.__dict__["_metadata"] = self.value(described.metadata)
            return ordered
        if kind in {set, frozenset}:
            return kind(map(self._plain, described))
        return kind(map(self.value, described))

    def _items(self, described: dict[Any, Any]) -> dict[Any, Any]:
        return {self._plain(key): self.value(value) for key, value in described.items()}

    def _plain(self, described: Any) -> Any:
        """Return a value that may be a key: tuples of them, too."""
        kind = type(described)
        if kind is Dtype:
            return self._reader.dtype(described.name)
        if kind is Size:
            return torch.Size(described)
        if kind is Device:
            return self._device(described.text)
        if kind is Layout:
            return torch.strided
        return tuple(map(self._plain, described)) if kind is tuple else described

    def _device(self, text: str) -> torch.device:
        try:
            return torch.device(text)
        except RuntimeError as cause:
            raise FormatError(
                f"{self._reader.pickled.path!r} holds the device {text!r}, which torch {torch.__version__} does "
                "not know; save its name instead"
            ) from cause


_CONTAINERS: Final = {dict, Ordered, Counter, list, tuple, set, frozenset}
