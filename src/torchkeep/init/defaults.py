"""torch_default: a module's own reset_parameters, run where it can do no harm."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.errors import RuleError
from torchkeep.init.computed import plain_copy
from torchkeep.init.drawing import SCHEME
from torchkeep.init.wholes import reset_method
from torchkeep.names import join
from torchkeep.tables.modules import type_info
from torchkeep.tensors.streams import forked_randomness
from torchkeep.tying.allocating import unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.init.computed import Computed


def run_default(
    module: nn.Module,
    path: str,
    wanted: Iterable[str],
    *,
    seed: int,
    others: Mapping[int, Tensor],
    weights: Sequence[Computed] = (),
) -> dict[str, Tensor]:
    """Run a module's own reset method on a copy of it, on the CPU.

    The randomness depends on the seed and the module's name, whatever the method draws from: it uses the global
    generators, which are keyed meanwhile and then restored.

    Args:
        module: has `reset_method`; it is not touched.
        path: its canonical name.
        wanted: keys of the parameters and buffers that are claimed.
        seed: of the plan.
        others: by ``id``, tensors of the model that a copy does without, wherever it refers to them.
        weights: its computed weights; the copy has plain parameters in their place.

    Returns:
        The values of what is wanted, by key, on the CPU.

    Raises:
        RuleError: the method raised, or leaves something wanted as it is.
    """
    method = reset_method(module)
    subject = f"{type_info(type(module)).name}.{method} of {path or 'the model'!r}"
    wanted = list(wanted)
    claimed = {id(module._parameters.get(key, module._buffers.get(key))) for key in wanted}  # noqa: SLF001
    try:
        copied = copy.deepcopy(module, _Memo(module, claimed, others))
        if weights:
            plain_copy(copied, weights)
        with (
            forked_randomness("torchkeep.init default", SCHEME, seed, path),
            torch.device("cpu"),
            torch.no_grad(),
        ):
            getattr(copied, str(method))()
    except Exception as error:
        raise RuleError(
            f"{subject} could not be run on a copy of the module ({type(error).__name__}: {error}); correct it, "
            "or name another initializer than torch_default"
        ) from error
    values = {key: _value(copied, key) for key in wanted}
    left = [join(path, key) for key, value in values.items() if _is_unset(value)]
    if left:
        names = ", ".join(map(repr, left))
        raise RuleError(f"{subject} does not fill {names}; give these another initializer than torch_default")
    return values


class _Memo(dict[int, Any]):
    """What deepcopy asks for copies that are made already: here it finds one for every tensor of the model.

    The module's own become plain tensors on the CPU, of global shape; the others, which the module refers to
    through children or attributes, hold nothing, on the meta device.
    """

    def __init__(self, module: nn.Module, claimed: set[int], others: Mapping[int, Tensor]) -> None:
        super().__init__()
        own = [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001 - its own only, ties included
        self._own = {id(tensor): tensor for tensor in own if tensor is not None}
        self._others, self._claimed = others, claimed

    def get(self, key: int, default: Any = None) -> Any:
        """Return the copy of the object with that ``id``."""
        if key not in self:
            if key in self._own:
                self[key] = self._start(self._own[key])
            elif key in self._others:
                self[key] = _dressed(self._others[key], _room(self._others[key], "meta"))
        return super().get(key, default)

    def _start(self, tensor: Tensor) -> Tensor:
        """Make the values of buffers that nobody claims, and else what shows that it is unset."""
        if is_lazy(tensor):
            return tensor
        if tensor.is_meta or isinstance(tensor, nn.Parameter) or id(tensor) in self._claimed:
            room = _room(tensor, "cpu")
            unset(room)
            return _dressed(tensor, room)
        return tensor.detach().cpu().clone()


def _room(tensor: Tensor, device: str) -> Tensor:
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=device)


def _dressed(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _value(module: nn.Module, key: str) -> Tensor:
    found = module._parameters.get(key, module._buffers.get(key))  # noqa: SLF001 - getattr may compute something
    assert found is not None
    return found.detach()


def _is_unset(tensor: Tensor) -> bool:
    """Tell whether some float, or every integer, is still what `_start` put there. Of bool nothing can be told."""
    if not tensor.numel() or tensor.dtype is torch.bool:
        return False
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).isnan().any())
    start = torch.empty_like(tensor)
    unset(start)
    return torch.equal(tensor, start)
