"""What a part of a state is made of at one moment: tensors under names, and values around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from torchkeep.errors import UnsavableError
from torchkeep.training.state.holding import Held, hold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from torchkeep.archive import TensorBytes
    from torchkeep.formats.paths import Path
    from torchkeep.formats.values import Node


@dataclass
class Content:
    """A part of a state.

    Attributes:
        names: of the tensors, as they are in the checkpoint.
        tensors: one for each name.
        node: the values around them, as they are in the checkpoint's tree.
        layout: equal to that of another moment where the same names led to tensors in the same memory; None where
            only the tensors themselves tell.
        problems: path and sentence of what can't be kept.
        stepped: how many of the tensors, from the first on, only an optimizer's step changes.
        parameters: those that an optimizer's step changes.
        aliases: owner by alias, within the part.
        order: all names, aliases included.
        further: other tensors over the memory of one of the names.
        restless: parameters that a forward changes, whatever optimizer has them.
        facts: what a module knew, in JSON's own types.
        left_out: non-persistent buffers.
        fresh: whether nothing else can share the tensors' memory.
        lasting: whether every tensor has the same memory, in row-major order, dtype and shape as long as this very
            object is given out.
    """

    names: Sequence[str] = ()
    tensors: Sequence[Tensor] = ()
    node: Node = None
    layout: object = None
    problems: Sequence[tuple[Path | str, str]] = ()
    stepped: int = 0
    parameters: Sequence[Tensor] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[str] = ()
    further: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    restless: Sequence[Tensor] = ()
    facts: Any = None
    left_out: tuple[str, ...] = ()
    fresh: bool = False
    lasting: bool = False
    _lying: Sequence[tuple[int | None, int, TensorBytes]] | None = None

    def held(self) -> Sequence[Held]:
        """Return the tensors as they lie in memory now, in the order of ``tensors``."""
        if self._lying is not None:
            return [Held(one.detach(), *lying) for one, lying in zip(self.tensors, self._lying, strict=True)]
        found = list(map(hold, self.tensors))
        if self.lasting:  # all but what would keep the memory when they have left it
            self._lying = [(one.address, one.nbytes, one.live) for one in found]
        return found


def layout_of(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Describe where tensors lie; a tensor object is told apart from others, too."""
    return [
        (id(tensor), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.layout is torch.strided and not is_lazy(tensor)
        else (id(tensor),)
        for tensor in tensors
    ]


def has_state(obj: object) -> bool:
    """Tell whether ``obj`` gives its state as a state_dict, and takes it back."""
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))


def refuse_objects(value: object, _: Path) -> None:
    """Refuse, among plain values, what belongs into a state as a part of its own."""
    if has_state(value) and not isinstance(value, type):
        kind = type(value)
        raise UnsavableError(
            f"it is a {kind.__module__}.{kind.__qualname__} among plain values; make it a part of its own: "
            "TrainingState(name=it)"
        )
