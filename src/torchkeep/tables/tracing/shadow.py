"""A shadow of a module: a copy of the whole tree of modules that can be run without touching the original.

Every module is copied by its attributes, never through its own ``__deepcopy__`` or ``__getstate__``: those may
refuse, return the module itself, or (DistributedDataParallel) talk to other machines. What becomes of the tensors
is decided by the converter that is passed in.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torchkeep.names import join
from torchkeep.tables.modules import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)
_TENSORS = ("_parameters", "_buffers")
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DROPPED_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Shadow:
    """The copy of a module tree.

    Args:
        root: the module, wrappers included.
        paths: canonical path of each module by id, for what is said about it.
        convert: makes the copy of a tensor.

    Attributes:
        root: the copy of ``root``.
        shared: attributes that could not be copied and are the original's own, by path.
        skipped: hooks that belong to the caller rather than to the net, by path; they do not run on the copy.
    """

    def __init__(
        self, root: nn.Module, paths: Mapping[int, str], convert: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.shared: list[str] = []
        self.skipped: list[str] = []
        self._paths = paths
        self._convert = convert
        self._memo: dict[int, Any] = {}
        self._kept: list[object] = [root]
        for original in self._make_empty(root):
            self._fill(original, self._memo[id(original)])
        self.root = self.of(root)

    def of(self, original: nn.Module) -> nn.Module:
        """Return the copy of a module of the original tree."""
        copied = self._memo[id(original)]
        assert isinstance(copied, nn.Module)
        return copied

    def value(self, path: str, value: Any) -> Any:
        """Copy any other value with the same converter; what occurs twice is copied once.

        Args:
            path: what it is called in `shared` if it can't be copied.
            value: an attribute, an input.
        """
        if isinstance(value, _ATOMS):
            return value
        if isinstance(value, torch.Generator):
            # Its state is a tensor, which the converter must not see.
            return self._memo.setdefault(id(value), value.clone_state())
        try:
            with _CopyingTensors(self._tensor):
                return copy.deepcopy(value, self._memo)
        except Exception:  # noqa: BLE001 - any class may refuse to be copied in its own way; it is reported
            self.shared.append(path)
            return value

    def release(self) -> None:
        """Let go of the copies, so that their memory does not wait for the garbage collector."""
        for twin in self._memo.values():
            if isinstance(twin, nn.Module):
                twin.__dict__.pop("forward", None)
        self._memo.clear()
        self._kept.clear()

    def _make_empty(self, root: nn.Module) -> list[nn.Module]:
        """Make an empty copy of every module first, so that whatever refers to one finds it in the memo."""
        originals: list[nn.Module] = []
        for module in root.modules():
            if id(module) in self._memo:
                continue
            if isinstance(module, torch.jit.ScriptModule):
                # Its state lives in C++; copying its top copies all that is inside.
                twin = copy.deepcopy(module)
                self._memo.update((id(a), b) for a, b in zip(module.modules(), twin.modules(), strict=True))
            elif unwrap(module) is not module:
                self._memo[id(module)] = _Unwrapped()
                originals.append(module)
            else:
                self._memo[id(module)] = object.__new__(type(module))
                originals.append(module)
        return originals

    def _fill(self, original: nn.Module, twin: nn.Module) -> None:
        if isinstance(twin, _Unwrapped):
            twin._modules.update((key, self._child(child)) for key, child in original._modules.items())  # noqa: SLF001 - the dict itself
            twin.training = original.training
            return
        state = object.__getstate__(original)
        attributes, slots = state if isinstance(state, tuple) else (state, {})
        path = self._paths.get(id(original), "")
        # Filled through __dict__: a class may have its own __setattr__, and registering would run global hooks.
        own = twin.__dict__
        for name in (*_FORWARD_HOOKS, *_DROPPED_HOOKS):
            own[name] = self._memo[id(attributes[name])] = OrderedDict()
        for name, value in attributes.items():
            if name in _TENSORS:
                own[name] = {key: item if item is None else self._tensor(item) for key, item in value.items()}
            elif name == "_modules":
                own[name] = {key: self._child(child) for key, child in value.items()}
            elif name in _FORWARD_HOOKS:
                own[name].update(self._hooks(path, value))
            elif name == "_compiled_call_impl":
                own[name] = None
            elif name not in own:
                own[name] = self.value(join(path, name), value)
        for name, value in slots.items():
            object.__setattr__(twin, name, self.value(join(path, name), value))

    def _child(self, child: nn.Module | None) -> nn.Module | None:
        return None if child is None else self.of(child)

    def _hooks(self, path: str, hooks: Mapping[int, Callable[..., Any]]) -> Iterator[tuple[int, Any]]:
        for key, hook in hooks.items():
            if self._belongs(hook):
                yield key, self.value(join(path, "hook"), hook)
            else:
                name = getattr(hook, "__qualname__", type(hook).__name__)
                self.skipped.append(f"{path}: {name}" if path else name)

    def _belongs(self, hook: Callable[..., Any]) -> bool:
        """Tell whether a hook is part of the computation: torch's own, or a method of a module in the tree."""
        holder = getattr(hook, "__self__", None)
        if isinstance(holder, nn.Module):
            return id(holder) in self._memo
        home = getattr(hook, "__module__", None) or ""
        return home.partition(".")[0] == "torch"

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        found = self._memo.get(id(tensor))
        if found is None:
            found = self._memo[id(tensor)] = self._convert(tensor)
            # The memo goes by id, so what it has seen must stay alive as long as it does.
            self._kept.append(tensor)
            if type(tensor) is torch.Tensor or issubclass(type(tensor), nn.Parameter):
                # What users hang on a parameter; the attributes of other classes are their own machinery.
                for name, value in tensor.__dict__.items():
                    found.__dict__[name] = self.value(name, value)
        assert isinstance(found, torch.Tensor)
        return found


class _Unwrapped(nn.Module):
    """Stands where a wrapper (DataParallel, a compiled module) stood, and only passes calls on."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call what was wrapped."""
        return next(self.children())(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # OptimizedModule passes attributes on too.
            return getattr(next(self.children()), name)


class _CopyingTensors(TorchFunctionMode):
    """While active, deepcopy hands every tensor to the converter, wherever it sits."""

    def __init__(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # Parameter.__deepcopy__ does not ask this mode, but it clones, and that does.
        if func is torch.Tensor.__deepcopy__ or func is torch.Tensor.clone:
            return self._convert(args[0])
        return func(*args, **(kwargs or {}))
