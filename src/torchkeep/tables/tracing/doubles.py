"""Doubles of tensors, with which a shadow runs: fake ones without memory, or real ones that spare the originals.

Both come with a guard that must be active while the shadow runs, so that code which reaches an original tensor by
another way (a closure, a global) can't write to it either.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from torchkeep.errors import StructureError
from torchkeep.tensors.identity import storage_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torchkeep.tensors.identity import Key

_PLAIN = (torch.Tensor, nn.Parameter, FakeTensor)
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_LOG = logging.getLogger("torch._subclasses.fake_tensor")


def _quiet(_record: logging.LogRecord) -> bool:
    return False


class Fakes:
    """Makes fake tensors: shape, strides, dtype and device, no memory.

    Args:
        meta_as: the device that tensors on the meta device pretend to be on, so that a model there runs with
            inputs from elsewhere.
    """

    def __init__(self, meta_as: torch.device) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._meta_as = meta_as

    def __call__(self, tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Return the double of ``tensor``; a Parameter's is a Parameter, a lazy one's stays lazy, on meta.

        Args:
            tensor: the original.
            device: where the double pretends to be; default: where the original is.
        """
        if is_lazy(tensor):
            return _lazy_like(tensor, torch.device("meta"))
        with unset_fake_temporarily(), torch.no_grad():
            fake = self._fake(tensor, device or tensor.device).requires_grad_(tensor.requires_grad)
            if isinstance(tensor, nn.Parameter):
                # What makes a Parameter of a tensor of another class; nn.Parameter would detach it first: slow.
                fake._is_param = True  # noqa: SLF001 - the flag that torch itself sets and checks
            return fake

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run operations on shapes only; a real tensor that turns up is replaced by its double first."""
        # torch logs every failure to find a shape, with a traceback; ours is told in the structure's own words.
        _LOG.addFilter(_quiet)
        try:
            with self.mode, _FakeEverything(self):
                yield
        finally:
            _LOG.removeFilter(_quiet)

    def _fake(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if type(tensor) not in _PLAIN or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            return self.mode.from_tensor(tensor, static_shapes=True).detach()
        shell = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.mode, shell, self._meta_as if device.type == "meta" else device)


class Reals:
    """Makes tensors that can be computed with: parameters share the original's memory, others are copied.

    Parameters are by far the most memory, and few networks write to them in forward; when one does, the guard
    gives it memory of its own first.
    """

    def __init__(self) -> None:
        self._originals: dict[int, torch.Tensor] = {}
        self._twins: dict[Key, list[torch.Tensor]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the double of ``tensor``; a Parameter's is a Parameter, a lazy one's stays lazy."""
        if is_lazy(tensor):
            return _lazy_like(tensor, tensor.device)
        self._originals[id(tensor)] = tensor
        twins = self._twins.setdefault(storage_key(tensor), [])
        if type(tensor) is nn.Parameter:
            # .data, not .detach(): it has its own version counter, so that a pending backward is not disturbed.
            twin: torch.Tensor = nn.Parameter(tensor.data, requires_grad=tensor.requires_grad)
            twins.append(twin)
            return twin
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let nothing write to an original's memory: a double gets memory of its own before it is written to."""
        with _CopyOnWrite(self._originals, self._twins):
            yield


class _FakeEverything(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no hints
    """Stands above the fake mode, which would compute for real when no argument of an operation is fake."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # same
        self._fakes = fakes
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # A tensor fresh from Python numbers stays as it is: the fake mode then knows its value, a constant.
        if func not in _LIFTS:
            args = tuple(map(self._faked, args))
            kwargs = {name: self._faked(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _faked(self, value: Any) -> Any:
        if isinstance(value, FakeTensor):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in self._known:
                # The original is kept with its double, for as long as it goes by its id.
                self._known[id(value)] = (value, self._fakes(value))
            return self._known[id(value)][1]
        if isinstance(value, list | tuple):
            return type(value)(map(self._faked, value)) if type(value) in (list, tuple) else value
        return value


class _CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no hints
    def __init__(self, originals: dict[int, torch.Tensor], twins: dict[Key, list[torch.Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # same
        self._originals = originals
        self._twins = twins

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for position, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in given if isinstance(given, list | tuple) else (given,):
                        self._give_own_memory(tensor)
        return func(*args, **kwargs)

    def _give_own_memory(self, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        twins = self._twins.get(storage_key(tensor))
        if twins is None:
            return
        if self._originals.get(id(tensor)) is tensor:
            raise StructureError(
                f"forward writes to a tensor of shape {list(tensor.shape)} of the net or inputs that were given, "
                "not of the copy that is run: something (a patched forward, say) holds on to the original, so its "
                "shapes can't be seen without changing it; make it reach the tensor through self"
            )
        memory = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]  # torch has no hints here
        for twin in (*twins, tensor):
            twin.data = _over(twin, memory)


def _lazy_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    lazy_class: Any = type(tensor)
    double = lazy_class(requires_grad=tensor.requires_grad, device=device, dtype=tensor.dtype)
    assert isinstance(double, torch.Tensor)
    return double


def _over(tensor: torch.Tensor, memory: torch.UntypedStorage) -> torch.Tensor:
    """Return a tensor that looks at ``memory`` as ``tensor`` looks at its own."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        memory, tensor.storage_offset(), tensor.size(), tensor.stride()
    )
