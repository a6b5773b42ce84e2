"""A snapshot of a layer: everything it holds, put back after each check, however badly the layer behaves.

Broken layers may not survive ``deepcopy``, so nothing is copied but values: each module's attributes, the contents
of the containers and plain objects they hold, the state of random generators, and the bytes, gradient, hooks and
flags of each tensor reached.
"""

from __future__ import annotations

import random
import sys
import types
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.tensors.identity import tensor_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CONTAINERS = (dict, list, set, deque)
_PLAIN = (dict, OrderedDict, list, set, deque)
"""Types whose instances mean by emptiness what these do; most containers are a module's empty registries."""
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
"""What has attributes, but is code or a library and no part of a layer."""


class Snapshot:
    """What ``layer`` holds now.

    Reached are the modules below ``layer``, modules hidden in their attributes, containers and plain objects,
    however nested.

    Attributes:
        tensors: every tensor reached, each once.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tensors: list[torch.Tensor] = []
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []
        self._others: list[tuple[Callable[[Any], object], Any]] = []
        self._values: list[_TensorState] = []
        self._seen: dict[int, object] = {}
        self._scripted = [
            _ScriptedState(module) for module in layer.modules() if isinstance(module, torch.jit.ScriptModule)
        ]
        pending: list[object] = [layer, *(tensor for state in self._scripted for tensor in state.tensors())]
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
            grad = thing.grad if thing.is_leaf else None
            return () if grad is None else (grad,)
        if isinstance(thing, _CONTAINERS):
            if type(thing) in _PLAIN and not thing:
                self._empty.append(thing)
                return ()
            self._containers.append((thing, thing.copy()))
            return thing.values() if isinstance(thing, dict) else thing
        other = _state_of(thing)
        if other is not None:
            self._others.append(other)
        elif isinstance(thing, nn.Module) or (hasattr(thing, "__dict__") and not isinstance(thing, _OPAQUE)):
            held = dict(vars(thing))
            self._objects.append((thing, held))
            return (*held.values(), *members(thing))
        return members(thing)

    def restore(self) -> None:
        """Put everything back, in place: the same objects hold the same values."""
        for thing, held in self._objects:
            vars(thing).clear()
            vars(thing).update(held)
        for container, content in self._containers:
            _refill(container, content)
        for container in self._empty:
            if container:
                container.clear()
        for scripted in self._scripted:
            scripted.restore()
        for value in self._values:
            value.restore()
        for write, state in self._others:
            write(state)

    def changed(self) -> list[torch.Tensor]:
        """Return the tensors whose bytes, shape or memory are others by now."""
        return [value.tensor for value in self._values if value.is_changed()]


def _state_of(thing: Any) -> tuple[Callable[[Any], object], Any] | None:
    """Return how to put back a random generator or an array of numpy, and what; None for anything else."""
    numpy = sys.modules.get("numpy")
    if isinstance(thing, torch.Generator) or (numpy and isinstance(thing, numpy.random.RandomState)):
        return thing.set_state, thing.get_state()
    if isinstance(thing, random.Random):
        return thing.setstate, thing.getstate()
    if numpy is None:
        return None
    if isinstance(thing, numpy.random.Generator):
        return partial(setattr, thing.bit_generator, "state"), thing.bit_generator.state
    # An array mapped from a file is data, and may be larger than memory.
    if isinstance(thing, numpy.ndarray) and not isinstance(thing, numpy.memmap) and thing.flags.writeable:
        return partial(thing.__setitem__, ...), thing.copy()
    return None


class _ScriptedState:
    """The mode and the tensors of one scripted module, which are outside of Python's reach."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._training = module.training
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001 - see below
        self._held = [(registry, name, held) for registry in registries for name, held in registry.items()]

    def tensors(self) -> Iterable[torch.Tensor]:
        """Return those it holds itself."""
        return (held for _, _, held in self._held if held is not None)

    def restore(self) -> None:
        """Put them back under their names, for which there is no public way."""
        self._module.training = self._training
        for registry, name, held in self._held:
            if registry[name] is not held:
                registry[name] = held


class _TensorState:
    """One tensor's bytes, memory, gradient, hooks and flags."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.grad = tensor.grad if tensor.is_leaf else None
        self.requires_grad = tensor.requires_grad
        self.hooks = {name: _copied(getattr(tensor, name, None)) for name in _HOOKS}
        self.data = None if is_lazy(tensor) else tensor.data
        self.copy = None if self.data is None else self.data.clone()
        self.place = None if self.data is None else tensor_key(self.data)

    def is_changed(self) -> bool:
        if self.data is None or self.copy is None:
            return not is_lazy(self.tensor)
        return self._moved() or not same_bits(self.tensor.data, self.copy)

    def _moved(self) -> bool:
        return self.data is not None and tensor_key(self.tensor) != self.place

    def restore(self) -> None:
        for name, hooks in self.hooks.items():
            if getattr(self.tensor, name, None) != hooks:
                setattr(self.tensor, name, _copied(hooks))
        if self.data is None or self.copy is None:
            return
        with torch.no_grad():
            if self._moved():
                self.tensor.data = self.data
            if not same_bits(self.data, self.copy):
                self.data.copy_(self.copy)
        if self.tensor.is_leaf:
            if self.tensor.requires_grad != self.requires_grad:
                self.tensor.requires_grad_(self.requires_grad)
            if self.tensor.grad is not self.grad:
                self.tensor.grad = self.grad


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _copied(hooks: Any) -> Any:
    return None if hooks is None else hooks.copy()


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors have one shape, one dtype and equal elements, NaNs compared as equal."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.layout != second.layout:
        return False
    first, second = dense(first), dense(second)
    if first.device != second.device:
        second = second.to(first.device)
    if first.device.type == "meta":
        return True
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    word = _WORDS.get(first.element_size())
    # Equal bytes are the usual case, and comparing whole numbers is several times quicker.
    if (
        word
        and first.is_contiguous()
        and second.is_contiguous()
        and torch.equal(first.view(word), second.view(word))
    ):
        return True
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a tensor of any layout in a strided one; of a nested one, those of all its parts."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


_ITERABLES: tuple[Any, ...] = (list, tuple, set, frozenset, deque)


def members(thing: object) -> list[Any]:
    """Return what a list, tuple, set or deque holds; nothing for anything else.

    A subclass is not asked: it may refuse, as e3nn's Irrep (a tuple) does when asked for its length.
    """
    for kind in _ITERABLES:
        if isinstance(thing, kind):
            return list(kind.__iter__(thing))
    return []


def _refill(container: Any, content: Any) -> None:
    """Give a container its content back, past a subclass that refuses or means something else by it."""
    if isinstance(container, dict):
        mapping = OrderedDict if isinstance(container, OrderedDict) else dict
        now, held = list(mapping.items(container)), list(mapping.items(content))
        if len(now) != len(held) or any(
            a[0] is not b[0] or a[1] is not b[1] for a, b in zip(now, held, strict=True)
        ):
            mapping.clear(container)
            for key, value in held:
                mapping.__setitem__(container, key, value)
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, content)
    else:
        deque.clear(container)
        deque.extend(container, content)
