"""Calls that may fail, and inputs with other values, layouts and dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.comparing import outputs
from torchkeep.checks.registry import NotApplicable
from torchkeep.checks.settings import Captured, reseed
from torchkeep.checks.subject import SEED, in_a_line, source_of

if TYPE_CHECKING:
    from torchkeep.checks.subject import Inputs, Subject


@dataclass(frozen=True)
class Attempt:
    """What became of a call.

    Attributes:
        output: what it returned; None where it raised.
        error: what it raised; None where it returned.
    """

    output: Any = None
    error: Exception | None = None

    @property
    def raised(self) -> str:
        """The error in one line, such as ``RuntimeError: shape ...``; empty where there was none."""
        return "" if self.error is None else in_a_line(self.error)

    @property
    def where(self) -> str:
        """``file:line`` where it was raised in the layer's own code; empty where that is inside torch."""
        where = "" if self.error is None else source_of(self.error)
        return "" if where == "inside torch" else where


def attempt(subject: Subject, inputs: Inputs | None = None, **options: Any) -> Attempt:
    """Call the layer in eval mode without autograd, unless ``options`` of `Subject.call` say otherwise."""
    options = {"training": False, "grad": False, **options}
    try:
        return Attempt(output=subject.call(inputs, **options))
    except Exception as error:  # noqa: BLE001 - a layer may raise anything; the check decides what it means
        return Attempt(error=error)


def require_no_draws(subject: Subject) -> None:
    """Leave a check that compares runs in which random numbers would be drawn in another order or dtype.

    Raises:
        NotApplicable: the layer draws in eval mode.
    """
    if "draws" not in subject.memo:
        reseed(SEED)
        start = Captured.now()
        attempt(subject)
        subject.memo["draws"] = bool(start.changed(random=True))
    if subject.memo["draws"]:
        raise NotApplicable("it draws random numbers in eval mode, which follow layout, shape and dtype")


def require_python(subject: Subject) -> None:
    """Leave a check that asks what forward's code does with dtypes, devices and replaced parameters.

    Raises:
        NotApplicable: a part of the layer is TorchScript, in which that was settled when it was made.
    """
    for name, module in subject.layer.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicable(
                f"{name or 'the layer'} is TorchScript, which fixes dtypes, devices and parameters when made; "
                "check the module that it was made from"
            )


def reversed_layout(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with the same values whose dimensions lie in memory in the opposite order."""
    if tensor.layout != torch.strided:
        return tensor.detach().clone()
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.detach().permute(order).clone(memory_format=torch.contiguous_format).permute(order)


def converted(subject: Subject, dtype: torch.dtype) -> Inputs:
    """Return copies of the inputs, the real floating-point ones in ``dtype``."""
    return subject.inputs(
        lambda _, tensor: tensor.detach().clone().to(dtype if tensor.is_floating_point() else tensor.dtype)
    )


def rounded_outputs(subject: Subject, output: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of an output by path, rounded to the coarsest dtype among the inputs and parameters.

    What a layer widens at its end has no more right digits than it computed with.
    """
    held = (*subject.input_tensors.values(), *subject.layer.parameters())
    dtypes = {tensor.dtype for tensor in held if tensor.is_floating_point()}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        if coarsest is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(coarsest) if torch.finfo(tensor.dtype).eps < torch.finfo(coarsest).eps else tensor

    return {path: rounded(tensor) for path, tensor in outputs(output).items()}


def agree(own: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    """Tell whether two ways to compute an output agree to half the digits of the first one's dtype.

    Args:
        own: what the layer gives.
        other: what it gives another way; its dtype may be another.
        scale: values as large as the layer's usual output. None: those of ``own``. Sizes below a thousandth count
            as that.
    """
    if own.shape != other.shape or own.layout != other.layout:
        return False
    if not _floats(own):
        return own.layout != torch.strided or torch.equal(own, other)
    wide = torch.promote_types(own.dtype, torch.float64)
    finite = own.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    first, second = own[finite].to(wide), other[finite].to(wide)
    usual = first if scale is None or not _floats(scale) else scale.detach()[scale.isfinite()]
    largest = max([values.abs().max().item() for values in (first, usual) if values.numel()], default=0.0)
    allowed = torch.finfo(own.dtype).eps ** 0.5 * max(largest, 1e-3)
    return not first.numel() or (first - second).abs().max().item() <= allowed


def not_numbers(output: Any) -> set[str]:
    """Return the paths of an output's tensors that hold a NaN."""
    return {path for path, tensor in outputs(output).items() if _floats(tensor) and bool(tensor.isnan().any())}


def _floats(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and (tensor.is_floating_point() or tensor.is_complex())
