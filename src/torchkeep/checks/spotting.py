"""Modes that spot, during a forward pass, the operation that brings in a NaN, another dtype or another device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchkeep.checks.nested import tensors
from torchkeep.checks.subject import user_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class NanSpotter(TorchFunctionMode):
    """Spot the first operation that makes a NaN out of none.

    Attributes:
        where: ``file:line`` of it; empty while there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.where = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.where and _has_nan(result) and not _has_nan((args, dict(kwargs or {}))):
            self.where = user_line()
        return result


def _has_nan(value: Any) -> bool:
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch; isnan would be seen by modes above
        return any(bool(tensor.isnan().any()) for _, tensor in tensors(value) if _readable(tensor))


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type != "meta"


class DtypeSpotter(TorchFunctionMode):
    """Spot the first operation whose result has another floating-point dtype although none came in.

    Args:
        dtype: the one of the layer and its inputs.

    Attributes:
        where: ``file:line`` of it; empty while there is none.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.where = ""
        self.spotted = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.spotted and self._strange(result) and not self._strange((args, dict(kwargs or {}))):
            self.spotted, self.where = True, user_line()
        return result

    def _strange(self, value: Any) -> bool:
        # A tensor without dimensions is like a plain number: it never decides the dtype of a result.
        return any(
            tensor.is_floating_point() and tensor.ndim > 0 and tensor.dtype != self._dtype
            for _, tensor in tensors(value)
        )


class DeviceMixedError(RuntimeError):
    """An operation was given tensors on two devices.

    Attributes:
        where: ``file:line`` at which the one on the wrong device was made, or else was used.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


_MAY_MIX = ("copy_", "_to_copy", "index", "index_put", "_index_put_impl_", "index_put_", "lift_fresh", "set_")
"""Operations for which torch allows tensors on the CPU beside others: transfers, and indexing by such."""


class DeviceSpotter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Raise where an operation mixes tensors on the meta device, which stands for an accelerator, with others.

    Torch's own tests for that are incomplete on the meta device, hence this one.

    Raises:
        DeviceMixedError: from within the forward pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        # Each tensor stands beside its line, so that its id stays its own.
        self._made: dict[int, tuple[torch.Tensor, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [tensor for _, tensor in tensors((args, dict(kwargs or {})))]
        away = [tensor for tensor in given if tensor.device.type != "meta"]
        strange = [tensor for tensor in away if tensor.ndim > 0]
        name = func.overloadpacket.__name__
        if strange and len(away) < len(given) and name not in _MAY_MIX:
            where = next((self._made[id(tensor)][1] for tensor in strange if id(tensor) in self._made), "")
            raise DeviceMixedError(
                f"{name} was given tensors on {strange[0].device} and on the layer's device", where or user_line()
            )
        result = func(*args, **(kwargs or {}))
        line = next((self._made[id(tensor)][1] for tensor in away if id(tensor) in self._made), "")
        for _, tensor in tensors(result):
            if tensor.device.type != "meta":
                self._made[id(tensor)] = (tensor, line or user_line())
        return result

    def made_at(self, tensor: torch.Tensor) -> str:
        """Return the line at which a tensor off the meta device was made; empty where that is not known."""
        return self._made[id(tensor)][1] if id(tensor) in self._made else ""
