"""Weights that a module computes from other tensors: parametrizations, and the older hooks.

Giving such a weight values means giving them to what it is computed from, through ``right_inverse``. Where there
is no way back it is refused: filling the originals one by one would give a weight that nobody asked for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchkeep.errors import RuleError
from torchkeep.names import join, parent
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tying.scratching import Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torchkeep.rows import Row
    from torchkeep.tables.survey import Survey

_HOOKED = {
    WeightNorm: ("torch.nn.utils.weight_norm", ("_g", "_v")),
    SpectralNorm: ("torch.nn.utils.spectral_norm", ("_orig",)),
}
"""The older ways: a hook that computes the weight before each forward, and the suffixes of its originals."""


@dataclass(frozen=True)
class Computed:
    """A weight that is computed from other tensors of the model.

    Attributes:
        name: the plain name, such as ``layer.weight``.
        aliases: its other plain names, where the module stands in several places.
        module: the module whose attribute it is.
        key: the attribute.
        originals: positions in the survey of the tensors it is computed from, in the order of ``right_inverse``.
        shape: of the weight itself; empty where ``refusal`` says that it is not known.
        dtype: of the weight itself.
        refusal: why it can't be assigned, and what to do; None where it can.
    """

    name: str
    aliases: tuple[str, ...]
    module: nn.Module
    key: str
    originals: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    refusal: str | None = None


def find_computed(found: Survey) -> list[Computed]:
    """Find the computed weights of a surveyed model; the model is not touched."""
    originals: dict[tuple[str, ...], list[int]] = {}
    for position, (row, places) in enumerate(zip(found.listing.rows, found.places, strict=True)):
        # An original that is tied to a plain parameter elsewhere is that parameter.
        if row.plain and isinstance(places[0].module, parametrize.ParametrizationList):
            originals.setdefault(row.plain, []).append(position)
    scratch = Scratch(found.tensors)
    parametrized = [_parametrized(found, scratch, names, rows) for names, rows in originals.items()]
    return parametrized + _hooked(found)


@dataclass(frozen=True)
class Assignment:
    """What `through_right_inverse` wants written.

    Attributes:
        originals: a CPU tensor for each original, of its shape and dtype.
        buffers: module, key and CPU tensor of each buffer of the parametrizations that ``right_inverse`` set
            (``orthogonal`` keeps the weight itself in one).
    """

    originals: list[Tensor]
    buffers: list[tuple[nn.Module, str, Tensor]]


def through_right_inverse(weight: Computed, value: Tensor, rows: Sequence[Row]) -> Assignment:
    """Compute what the originals must hold for the weight to be ``value``, on a copy of the parametrization.

    Args:
        weight: a parametrized weight without a refusal.
        value: of the weight's shape and dtype, on the CPU.
        rows: of the originals, in the order of ``weight.originals``.

    Returns:
        What is to be written; nothing is yet.

    Raises:
        RuleError: ``right_inverse`` raised, gave what does not fit, or a value that the weight can't be
            computed from (a zero weight under weight_norm, say).
    """
    listed = _list_of(weight)
    copied = copy.deepcopy(listed, _real_tensors(listed))
    subject = f"{weight.name!r}, computed by {_class_names(listed)}, can't be set to the values drawn for it"
    try:
        with torch.no_grad(), torch.device("cpu"):
            copied.right_inverse(value)
            buffers = _changed_buffers(listed, copied)
            computed = copied()
    except Exception as error:
        raise RuleError(
            f"{subject}: {type(error).__name__}: {error}; give it other values, or tk.init.keep()"
        ) from error
    made = [tensor.detach() for tensor in _originals(copied)]
    for row, tensor in zip(rows, made, strict=True):
        if tuple(tensor.shape) != row.shape or dtype_name(tensor.dtype) != row.dtype:
            raise RuleError(
                f"{subject}: right_inverse gives {tuple(tensor.shape)} in {dtype_name(tensor.dtype)} for "
                f"{row.name!r}, which is {row.shape} in {row.dtype}; correct the parametrization"
            )
    # What a forward computes from tensors that are still on the meta device says nothing.
    known = not any(tensor.is_meta for step in _steps(listed) for tensor in (*step.parameters(), *step.buffers()))
    if any(map(_has_nan, made)) or (known and _has_nan(computed)):
        raise RuleError(
            f"{subject}: the weight computed from them is NaN; give it other values (weight_norm can't hold "
            "zeros), or tk.init.keep()"
        )
    return Assignment(made, buffers)


def _changed_buffers(
    listed: parametrize.ParametrizationList, copied: parametrize.ParametrizationList
) -> list[tuple[nn.Module, str, Tensor]]:
    """Return the buffers that differ in the copy, as they are there: before its forward, which may change more."""
    changed = []
    for module, other in zip(listed.modules(), copied.modules(), strict=True):
        for key, new in other._buffers.items():  # noqa: SLF001 - also those that are None so far
            old = module._buffers.get(key)  # noqa: SLF001 - as above
            if new is None or key.startswith("original"):
                continue
            if old is None or old.is_meta or old.shape != new.shape or not torch.equal(old.cpu(), new):
                changed.append((module, key, new.detach().clone()))
    return changed


def plain_copy(module: nn.Module, weights: Sequence[Computed]) -> None:
    """Turn a copy of a parametrized module into one of its original class, with plain parameters that hold NaN.

    Args:
        module: a copy that nobody else has; changed in place.
        weights: its parametrized weights.
    """
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for weight in weights:
        values = torch.full(weight.shape, float("nan"), dtype=weight.dtype, device="cpu")
        module.register_parameter(weight.key, nn.Parameter(values, requires_grad=values.is_floating_point()))


def _parametrized(found: Survey, scratch: Scratch, names: tuple[str, ...], rows: list[int]) -> Computed:
    """Describe a weight under `torch.nn.utils.parametrize`."""
    path, key = parent(names[0]), names[0].rpartition(".")[2]
    weight = Computed(names[0], names[1:], found.modules[path], key, (), (), torch.float32)
    listed = _list_of(weight)
    order = [id(tensor) for tensor in _originals(listed)]
    rows = sorted(rows, key=lambda position: order.index(id(found.tensors[position])))
    without = [type(step).__name__ for step in _steps(listed) if not hasattr(step, "right_inverse")]
    refusal = None
    if without:
        refusal = (
            f"weights under {without[0]} are computed, and it has no right_inverse to set them through; add one, "
            f"claim the originals by name ({found.listing.rows[rows[0]].name!r}), or use tk.init.keep()"
        )
    try:
        with torch.no_grad():
            value = scratch.copy(listed, lambda tensor: torch.empty_like(tensor, device="meta"))()
        shape, dtype = tuple(value.shape), value.dtype
    except Exception as error:  # noqa: BLE001 - whatever the parametrization's own code raises is the reason
        shape, dtype = (), torch.float32
        refusal = (
            refusal or f"the shape that {_class_names(listed)} computes is not known ({error}); use tk.init.keep()"
        )
    return Computed(names[0], names[1:], weight.module, key, tuple(rows), shape, dtype, refusal)


def _hooked(found: Survey) -> list[Computed]:
    """Describe the weights that hooks of the older kind compute."""
    position_of = {name: position for position, row in enumerate(found.listing.rows) for name in row.names}
    weights: list[Computed] = []
    for path, module in found.modules.items():
        for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - where these hooks register themselves
            if not isinstance(hook, WeightNorm | SpectralNorm):
                continue
            old, suffixes = _HOOKED[type(hook)]
            names = [join(path, hook.name + suffix) for suffix in suffixes]
            rows = tuple(position_of[name] for name in names if name in position_of)
            if not rows or any(rows == other.originals for other in weights):
                continue
            refusal = (
                f"weights under {old} are computed by a hook before each forward, and no way leads back from "
                f"them; use torch.nn.utils.parametrizations.{old.rpartition('.')[2]}, claim the originals by "
                f"name ({names[-1]!r}), or use tk.init.keep()"
            )
            original = found.tensors[rows[-1]]
            shape = tuple(original.shape)
            weights.append(
                Computed(join(path, hook.name), (), module, hook.name, rows, shape, original.dtype, refusal)
            )
    return weights


def _list_of(weight: Computed) -> parametrize.ParametrizationList:
    lists = weight.module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    listed = lists[weight.key]
    assert isinstance(listed, parametrize.ParametrizationList)
    return listed


def _steps(listed: parametrize.ParametrizationList) -> list[nn.Module]:
    """Return the parametrizations themselves, in the order in which they compute."""
    return [listed[number] for number in range(len(listed))]


def _originals(listed: parametrize.ParametrizationList) -> list[Tensor]:
    if listed.is_tensor:
        return [listed.original]
    return [getattr(listed, f"original{number}") for number in range(listed.ntensors)]


def _class_names(listed: parametrize.ParametrizationList) -> str:
    return ", ".join(type(step).__name__ for step in _steps(listed))


def _real_tensors(listed: parametrize.ParametrizationList) -> dict[int, object]:
    """Make the memo with which deepcopy gives a copy on the CPU; what is elsewhere or sharded becomes NaN."""
    memo: dict[int, object] = {}
    for tensor in [*listed.parameters(), *listed.buffers()]:
        given: object = tensor
        if tensor.is_meta or is_traceable_wrapper_subclass(given):
            values = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")
            values.fill_(float("nan") if values.is_floating_point() or values.is_complex() else 0)
        else:
            values = tensor.detach().cpu().clone()
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if parameter else values
    return memo


def _has_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())
