"""What differs between a model and its rebuild."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.names import join
from torchkeep.recipes.remembering import ARGUMENTS_ATTRIBUTE
from torchkeep.tables.survey import OWNERS_ATTRIBUTE, Place, Survey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STATE: Final = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_OURS: Final = {ARGUMENTS_ATTRIBUTE, OWNERS_ATTRIBUTE}
_COMPILED: Final = {"_compiled_call_impl", "_is_torch_compile"}
_IGNORED: Final = _STATE | _OURS | _COMPILED
_HOOKS: Final = "hooks"
_LONG: Final = 80
_IDENTITY: Final[Any] = object.__eq__
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))


def differences(mine: Survey, other: Survey) -> Iterator[str]:
    """Yield one sentence for each thing in which a model (``mine``) and its rebuild (``other``) differ.

    Compared are modules and their classes, names, shapes, dtypes, kinds, persistence, ``requires_grad``, and ties
    with their owners. Values, devices and the training mode are not.
    """
    yield from _module_differences(mine.modules, other.modules)
    yield from _tensor_differences(places_of(mine), places_of(other))
    yield from _tie_differences(mine, other)


def places_of(found: Survey) -> dict[str, Place]:
    """Return every place by its name."""
    return {place.name: place for places in found.places for place in places}


def shared_modules(found: Survey) -> dict[int, list[str]]:
    """Return the paths of each module that stands in several places, by its ``id``."""
    paths: dict[int, list[str]] = {}
    for path, module in found.modules.items():
        paths.setdefault(id(module), []).append(path)
    return {key: group for key, group in paths.items() if len(group) > 1}


def _module_differences(mine: Mapping[str, nn.Module], other: Mapping[str, nn.Module]) -> Iterator[str]:
    for path in _only_in(mine, other):
        yield (
            f"{path}: this module ({type(mine[path]).__name__}) was added after construction; add it in the "
            "constructor of the block around it"
        )
    for path in _only_in(other, mine):
        yield f"{path}: this module, which the constructor makes, is not in the model; make it optional"
    for path in mine:
        if path in other and _class_of(mine[path]) is not _class_of(other[path]):
            yield (
                f"{path or 'the model'}: it is a {type(mine[path]).__name__}, and the constructor makes a "
                f"{type(other[path]).__name__}; pass what was put there to the constructor instead"
            )


def _only_in(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one if name not in other]


def _class_of(module: nn.Module) -> type:
    cls = type(module)
    # parametrize makes a new class for each module.
    return cls.__bases__[0] if cls.__module__ == "torch.nn.utils.parametrize" else cls


def _tensor_differences(mine: Mapping[str, Place], other: Mapping[str, Place]) -> Iterator[str]:
    for name in _only_in(mine, other):
        yield f"{name}: this {mine[name].kind} was added after construction; register it in the constructor"
    for name in _only_in(other, mine):
        kind = other[name].kind
        yield f"{name}: this {kind}, which the constructor makes, is not in the model; make it optional"
    for name, place in mine.items():
        if name not in other:
            continue
        for what, here, there in zip(_ASPECTS, _aspects(place), _aspects(other[name]), strict=True):
            if here != there:
                yield f"{name}: its {what} is {here}, and a rebuild's {there}; construct it as it should be"


_ASPECTS: Final = ("kind", "class", "shape", "dtype", "persistence", "requires_grad")


def _aspects(place: Place) -> tuple[Any, ...]:
    tensor = place.tensor
    return (
        place.kind,
        type(tensor).__name__,
        None if is_lazy(tensor) else tuple(tensor.shape),
        tensor.dtype,
        place.kind == "parameter" or place.key not in place.module._non_persistent_buffers_set,  # noqa: SLF001
        tensor.requires_grad,
    )


def _tie_differences(mine: Survey, other: Survey) -> Iterator[str]:
    here = {(tie.owner, *tie.aliases, tie.kind): None for tie in mine.ties}
    there = {(tie.owner, *tie.aliases, tie.kind): None for tie in other.ties}
    for *names, kind in (tie for tie in here if tie not in there):
        yield f"{' = '.join(names)}: this tie ({kind}) can't be made again; tie the same names with tk.tie"
    for *names, kind in (tie for tie in there if tie not in here):
        yield f"{' = '.join(names)}: the constructor makes this tie ({kind}), the model has it not; tie the names"


def attribute_differences(mine: Survey, other: Survey) -> Iterator[str]:
    """Yield one sentence for each plain attribute or kind of hook in which the two differ; see `differences`."""
    same = _Same(_paths(mine), _paths(other))
    seen: set[int] = set()
    for path, module in mine.modules.items():
        twin = other.modules.get(path)
        if twin is None or id(module) in seen or _class_of(module) is not _class_of(twin):
            continue
        seen.add(id(module))
        here, there = _attributes(module), _attributes(twin)
        for name in here | there:
            where = join(path, name)
            if name not in there:
                yield f"{where}: this attribute was set after construction; set it in the constructor"
            elif name not in here:
                yield f"{where}: this attribute, which the constructor sets, is gone; leave it there"
            elif not same(here[name], there[name]):
                yield (
                    f"{where}: it is {_shown(here[name])}, the constructor sets {_shown(there[name])}; pass it to "
                    "the constructor, and let nothing else change it"
                )


def _paths(found: Survey) -> dict[int, str]:
    paths: dict[int, str] = {}
    for path, module in found.modules.items():
        paths.setdefault(id(module), path)
    return paths


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds besides tensors and children; of hooks, what kinds there are."""
    own = {name: value for name, value in vars(module).items() if name not in _IGNORED}
    return {name: [*map(type, value.values())] if _is_hooks(name, value) else value for name, value in own.items()}


def _is_hooks(name: str, value: Any) -> bool:
    return name.startswith("_") and _HOOKS in name and isinstance(value, dict)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - somebody else's repr must not hide what differs
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


class _Same:
    """Tells whether two attributes say the same, though they belong to two models.

    Args:
        mine: path of each module of one model, by ``id``.
        other: of the other.
    """

    def __init__(self, mine: Mapping[int, str], other: Mapping[int, str]) -> None:
        self._mine, self._other = mine, other
        self._open: set[tuple[int, int]] = set()

    def __call__(self, one: Any, other: Any) -> bool:
        if one is other:
            return True
        if type(one) is not type(other) and not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
            return False
        if isinstance(one, _PLAIN):
            # repr tells apart what == does not (0.0 and -0.0), and finds nan equal to itself.
            return repr(one) == repr(other)
        pair = (id(one), id(other))
        if pair in self._open:
            return True
        self._open.add(pair)
        try:
            return self._compound(one, other)
        finally:
            self._open.remove(pair)

    def _compound(self, one: Any, other: Any) -> bool:
        if isinstance(one, nn.Module):
            return _class_of(one) is _class_of(other) and self._mine.get(id(one)) == self._other.get(id(other))
        if isinstance(one, torch.Tensor):
            return (is_lazy(one) and is_lazy(other)) or (one.shape == other.shape and one.dtype == other.dtype)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(self(one[key], other[key]) for key in one)
        if isinstance(one, list | tuple):
            return len(one) == len(other) and all(map(self, one, other))
        parts = _parts_of(one), _parts_of(other)
        return self._object(one, other) if parts[0] is None else self(*parts)

    def _object(self, one: Any, other: Any) -> bool:
        if isinstance(one, torch.device | type):
            # Where a model is, is no part of a recipe; another class is another thing.
            return isinstance(one, torch.device)
        if type(one).__eq__ is _IDENTITY or hasattr(one, "__dict__"):
            # What has no attributes to tell (a lock, an iterator) is as good as its class.
            return self(getattr(one, "__dict__", None), getattr(other, "__dict__", None))
        try:
            return bool(one == other)
        except Exception:  # noqa: BLE001 - whatever comparing raises (arrays do), the text may tell
            return repr(one) == repr(other)


def _parts_of(value: Any) -> tuple[Any, ...] | None:
    """Return what code is made of: functions of one text over equal values are the same."""
    if isinstance(value, types.FunctionType):
        return (
            id(value.__code__),
            inspect.getclosurevars(value).nonlocals,
            value.__defaults__,
            value.__kwdefaults__,
        )
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, weakref.ref):
        return (value(),)
    return None
