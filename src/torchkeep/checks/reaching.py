"""What a layer's code can reach that is not registered: in attributes, containers, objects, closures, globals."""

from __future__ import annotations

import inspect
import re
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.checks.snapshot import members
from torchkeep.checks.subject import is_library
from torchkeep.names import join

if TYPE_CHECKING:
    from torchkeep.checks.subject import Subject
    from torchkeep.tables.survey import Survey

_OWN = frozenset(vars(nn.Module()))
"""What every module holds: its registries and hooks."""
_IN_CODE = (type, types.ModuleType, types.BuiltinFunctionType)
"""What has attributes, but is code or a library and holds nothing of a layer's."""
_MOST = 20_000
"""Things looked at; a layer that holds a whole data set is not worth more."""


@dataclass(frozen=True)
class Reached:
    """What was found.

    Attributes:
        tensors: unregistered tensors by where they sit, such as ``scales[0]`` or ``global EPS``, each once.
        modules: unregistered modules, likewise; nothing inside them is among ``tensors``.
    """

    tensors: dict[str, torch.Tensor]
    modules: dict[str, nn.Module]


def reach(subject: Subject) -> Reached:
    """Walk everything that the layer's registered modules hold and their code names."""
    layer, reached = subject.layer, Reached({}, {})
    modules = dict(layer.named_modules())
    seen = {id(module) for module in modules.values()}
    seen |= {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    alive: list[object] = []
    pending: deque[tuple[str, object]] = deque()
    for path, module in modules.items():
        pending.extend(_held_by(path, module))
    while pending and len(alive) < _MOST:
        path, thing = pending.popleft()
        if thing is None or id(thing) in seen or isinstance(thing, str | bytes | int | float):
            continue
        seen.add(id(thing))
        alive.append(thing)  # so that its id stays its own
        if isinstance(thing, torch.Tensor):
            reached.tensors[path] = thing
        elif isinstance(thing, nn.Module):
            reached.modules[path] = thing
        else:
            pending.extend(_inside(path, thing))
    return reached


def _held_by(path: str, module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield what a registered module holds besides its registries, and what its code names."""
    if isinstance(module, torch.jit.ScriptModule):
        return  # it holds copies of what it was made from, but runs code that sees registered tensors only
    for key, value in vars(module).items():
        if key not in _OWN and not key.startswith("_torchkeep_"):
            yield join(path, key), value
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.") or cls is object:
            continue
        for key, value in vars(cls).items():
            if isinstance(value, types.FunctionType):
                if key != "__init__":
                    yield f"{cls.__name__}.{key}", value
            elif not key.startswith("__"):
                yield f"{cls.__name__}.{key}", value


def _inside(path: str, thing: Any) -> Iterable[tuple[str, object]]:
    if isinstance(thing, Mapping):
        return [(f"{path}[{key!r}]", value) for key, value in list(thing.items())]
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return [(f"{path}[{index}]", value) for index, value in enumerate(members(thing))]
    if isinstance(thing, types.FunctionType):
        return [] if is_library(thing.__code__.co_filename) else _named_by(path, thing)
    if isinstance(thing, _IN_CODE):
        return []
    parts = [(path, getattr(thing, key, None)) for key in _WRAPPED]
    return [*parts, *((f"{path}.{key}", value) for key, value in getattr(thing, "__dict__", {}).items())]


_WRAPPED = ("__self__", "__func__", "func", "fget", "args", "keywords")
"""Where bound methods, partials, properties and the like hold what they are made of."""


def _named_by(path: str, function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield what a function reaches: closure, defaults, and the globals that its code names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure of {path}: {name}", cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"default {index} of {path}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default {name} of {path}", value
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name}", function.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes, and the texts, in code and the functions defined in it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
        elif isinstance(constant, str):
            found.add(constant)
    return found


def attributes(layer: nn.Module) -> dict[str, dict[str, object]]:
    """Return what each registered module holds now, by its name, for `rebound`."""
    return {name: dict(vars(module)) for name, module in layer.named_modules()}


def rebound(layer: nn.Module, before: Mapping[str, Mapping[str, object]]) -> str:
    """Return the names of the attributes that hold something else by now, joined by commas."""
    return ", ".join(
        join(name, key)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if name in before and before[name].get(key) is not value and key != "training"
    )


_WALKS = frozenset({"parameters", "named_parameters", "modules", "named_modules", "children", "named_children"})
_NOT_FORWARD = ("__init__", "reset_parameters", "_reset_parameters", "__setstate__", "extra_repr")
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)


def code_mentions(found: Survey, name: str) -> bool:
    """Tell whether the code of each module above a parameter, constructors apart, names the next step to it."""
    path = ""
    for key in name.split("."):
        module = found.modules[path]
        if not isinstance(module, _LISTS):
            named = _code_names(type(module))
            if key not in named and not named & {*_WALKS, "getattr"}:
                return False
        path = join(path, key)
    return True


def _code_names(cls: type) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for key, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType) and key not in _NOT_FORWARD:
                found |= _names(function.__code__)
    return found


def assigned_at(subject: Subject, path: str) -> str:
    """Return ``file:line`` of where a constructor makes the attribute at the start of a path; empty: not found.

    Args:
        subject: the layer.
        path: of a tensor or module, such as ``blocks.0.scales[1]`` or ``global EPS``.
    """
    modules = dict(subject.layer.named_modules())
    plain = path.partition("[")[0].removeprefix("closure of ").partition(":")[0]
    owner, _, key = plain.rpartition(".")
    while owner and owner not in modules:
        owner, _, key = owner.rpartition(".")
    pattern = re.compile(rf"""(self\.{re.escape(key)}\s*[:=(\[]|["']{re.escape(key)}["'])""")
    for cls in type(modules[owner]).__mro__:
        if cls.__module__.startswith("torch.") or cls is object:
            continue
        try:
            lines, first = inspect.getsourcelines(cls)
        except (OSError, TypeError):  # made by exec, or in an interpreter
            continue
        for number, line in enumerate(lines, start=first):
            if pattern.search(line):
                return f"{inspect.getsourcefile(cls)}:{number}"
    return ""
