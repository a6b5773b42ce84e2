"""The classes that a recipe may name: users' own, registered by ``@tk.block``, and torch.nn's."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary

from torch import nn

from torchkeep.errors import RecipeError
from torchkeep.recipes.remembering import remember_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Class = TypeVar("_Class", bound=type)

_CLASSES: dict[str, type] = {}
_IDS: WeakKeyDictionary[type, str] = WeakKeyDictionary()

_NOT_BLOCKS = ("Container", "DataParallel")


@overload
def block(cls: _Class, /) -> _Class: ...
@overload
def block(*, name: str) -> Callable[[_Class], _Class]: ...
def block(cls: Any = None, /, *, name: str = "") -> Any:
    """Register a class, so that recipes can name it, and remember its constructor's arguments from now on.

    ::

        @tk.block
        class Encoder(nn.Module): ...


        @tk.block(name="acme.Encoder")
        class Encoder(nn.Module): ...

    The class is an ``nn.Module``, or a dataclass or an Enum that constructors take. Its id is its module and
    qualified name, or ``name``: give one when the class may move, or stands in a script (whose module is always
    called ``__main__``). A subclass is another class: it needs its own ``@tk.block``. A class that is defined
    again under the same module and name (a notebook's cell run twice, a reloaded module) replaces the one before.

    Instances keep what their constructor was given as plain data: lists and dicts as they were at the call,
    modules by their path. What JSON can't hold is no error here, only when a recipe is asked for.

    Args:
        cls: the class, when used as a plain decorator.
        name: the id.

    Returns:
        The class itself.

    Raises:
        RecipeError: it is no such class, or the id is another class's.
    """
    if cls is None:
        return lambda decorated: _register(decorated, name)
    return _register(cls, "")


def _register(cls: Any, name: str) -> Any:
    if not isinstance(cls, type) or not (issubclass(cls, nn.Module | Enum) or is_dataclass(cls)):
        raise RecipeError(f"@tk.block registers nn.Module classes, dataclasses and Enums; {cls!r} is none")
    chosen = name or f"{cls.__module__}.{cls.__qualname__}"
    before = _CLASSES.get(chosen)
    if chosen.startswith("torch.nn."):
        raise RecipeError(f"the id {chosen!r} belongs to torch; register {cls.__qualname__} under another name")
    if before is not None and not _same_definition(before, cls):
        raise RecipeError(
            f"the id {chosen!r} is {before.__module__}.{before.__qualname__}'s already; give "
            f"{cls.__module__}.{cls.__qualname__} another with @tk.block(name=...)"
        )
    known = _IDS.get(cls)
    if known not in {None, chosen}:
        raise RecipeError(f"{cls.__qualname__} is registered as {known!r} already; a class has one id")
    if known is None and issubclass(cls, nn.Module):
        remember_arguments(cls)
    _CLASSES[chosen] = cls
    _IDS[cls] = chosen
    return cls


def _same_definition(one: type, other: type) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def id_of(cls: type) -> str | None:
    """Return the id under which a class is registered, None when it is not; a subclass is another class."""
    return _torch_ids().get(cls) or _IDS.get(cls)


def is_current(cls: type) -> bool:
    """Tell whether a registered class is still what its id stands for, and was not defined again since."""
    return cls in _torch_ids() or _CLASSES.get(_IDS.get(cls, "")) is cls


def known_classes(registry: Mapping[str, type] | None = None) -> dict[str, type]:
    """Return every class by id: torch.nn's, the registered ones, and those of ``registry``, which come first."""
    return {**torch_classes(), **_CLASSES, **(registry or {})}


@cache
def torch_classes() -> dict[str, type]:
    """Return torch.nn's module classes by id, such as ``torch.nn.Linear``; lazy ones and wrappers are left out."""
    classes = {name: value for name, value in vars(nn).items() if isinstance(value, type)}
    modules = {
        f"torch.nn.{name}": cls
        for name, cls in classes.items()
        if issubclass(cls, nn.Module) and name not in _NOT_BLOCKS and not name.startswith("Lazy")
    }
    # Not in every torch that is supported: the one dataclass that one of them takes.
    options = getattr(getattr(nn.modules, "linear_cross_entropy_options", None), "LinearCrossEntropyOptions", None)
    return modules | ({"torch.nn.LinearCrossEntropyOptions": options} if options else {})


@cache
def _torch_ids() -> dict[type, str]:
    return {cls: name for name, cls in torch_classes().items()}
