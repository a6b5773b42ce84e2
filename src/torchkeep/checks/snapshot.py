"""A snapshot of a layer: everything it holds, put back after each check, however badly the layer behaves.

Broken layers may not survive ``deepcopy``, so nothing is copied but values: each module's attributes, the contents
of the containers they hold, and the bytes, gradient and flags of each tensor reached.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONTAINERS = (dict, list, set, deque)


class Snapshot:
    """What ``layer`` holds now.

    Reached are the modules below ``layer``, modules hidden in their attributes, and containers in containers.

    Attributes:
        tensors: every tensor reached, each once.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tensors: list[torch.Tensor] = []
        self._modules: list[tuple[nn.Module, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._values: list[_TensorState] = []
        self._seen: dict[int, object] = {}
        pending: list[object] = [layer]
        while pending:
            thing = pending.pop()
            if id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                pending.extend(self._note(thing))

    def _note(self, thing: object) -> Iterable[object]:
        """Remember one thing, and return what it holds."""
        if isinstance(thing, torch.Tensor):
            self.tensors.append(thing)
            self._values.append(_TensorState(thing))
            return () if thing.grad is None else (thing.grad,)
        if isinstance(thing, nn.Module):
            held = dict(thing.__dict__)
            self._modules.append((thing, held))
            return held.values()
        if isinstance(thing, _CONTAINERS):
            self._containers.append((thing, thing.copy()))
            return thing.values() if isinstance(thing, dict) else thing
        return thing if isinstance(thing, tuple) else ()

    def restore(self) -> None:
        """Put everything back, in place: the same objects hold the same values."""
        for module, held in self._modules:
            module.__dict__.clear()
            module.__dict__.update(held)
        for container, content in self._containers:
            _refill(container, content)
        for value in self._values:
            value.restore()

    def changed(self) -> list[torch.Tensor]:
        """Return the tensors whose bytes, shape or memory are others by now."""
        return [value.tensor for value in self._values if value.is_changed()]


class _TensorState:
    """One tensor's bytes, memory, gradient and flags."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.grad = tensor.grad if tensor.is_leaf else None
        self.requires_grad = tensor.requires_grad
        self.data = None if is_lazy(tensor) else tensor.data
        self.copy = None if self.data is None else self.data.clone()

    def is_changed(self) -> bool:
        if self.data is None or self.copy is None:
            return not is_lazy(self.tensor)
        return self._moved() or not same_bits(self.tensor.data, self.copy)

    def _moved(self) -> bool:
        now, then = self.tensor.data, self.data
        assert then is not None
        return (now.shape, now.stride(), now.dtype, now.device) != (
            then.shape,
            then.stride(),
            then.dtype,
            then.device,
        )

    def restore(self) -> None:
        if self.data is None or self.copy is None:
            return
        with torch.no_grad():
            self.tensor.data = self.data
            if not same_bits(self.data, self.copy):
                self.data.copy_(self.copy)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.grad


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors have one shape, one dtype and equal elements, NaNs compared as equal."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.device != second.device:
        second = second.to(first.device)
    if first.is_floating_point() or first.is_complex():
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return torch.equal(first, second)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    elif list(container) != list(content) or isinstance(container, dict):
        container.clear()
        container.update(content)
