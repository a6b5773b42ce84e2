"""torch_default: a module's own reset_parameters, run where it can do no harm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from torchkeep.errors import RuleError
from torchkeep.init.computed import plain_copy
from torchkeep.init.drawing import SCHEME
from torchkeep.init.wholes import reset_method
from torchkeep.names import join
from torchkeep.tables.survey import type_info
from torchkeep.tensors.streams import forked_randomness
from torchkeep.tying.allocating import unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from torchkeep.init.computed import Computed
    from torchkeep.tying.scratching import Scratch


def run_default(
    scratch: Scratch,
    module: nn.Module,
    path: str,
    wanted: Iterable[str],
    *,
    seed: int,
    weights: Sequence[Computed] = (),
) -> dict[str, Tensor]:
    """Run a module's own reset method on a copy of it, on the CPU.

    The randomness depends on the seed and the module's name, whatever the method draws from: it uses the global
    generators, which are keyed meanwhile and then restored.

    Args:
        scratch: makes the copy; the module is not touched.
        module: has `reset_method`.
        path: its canonical name.
        wanted: keys of the parameters and buffers that are claimed.
        seed: of the plan.
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
        copied = scratch.copy(module, partial(_start, claimed=claimed))
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


def _start(tensor: Tensor, claimed: set[int]) -> Tensor:
    """Make what a copy starts from: the values of buffers that nobody claims, else what shows that it is unset."""
    if tensor.is_meta or isinstance(tensor, nn.Parameter) or id(tensor) in claimed:
        room = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        unset(room)
        return room
    return tensor.detach().cpu().clone()


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
