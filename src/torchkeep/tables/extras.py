"""What a module says of itself in one short line, such as ``64, 256, bias=False`` for a Linear."""

from __future__ import annotations

import inspect
from ast import literal_eval
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import nn

from torchkeep.tables.modules import original_class, parametrized

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LENGTH = 64
_OPENING, _CLOSING = "([{", ")]}"
_SILENT = (nn.Module, nn.ParameterList, nn.ParameterDict)
"""Classes whose ``extra_repr`` says nothing, or lists what the module holds, which is shown as it is anyway."""


def arguments_of(module: nn.Module) -> str:
    """Return a module's ``extra_repr`` as its constructor would be called, or ``""`` where it says nothing.

    What equals the constructor's default is left out, and so are the names of leading required arguments.
    """
    written_by = next(cls for cls in type(module).__mro__ if "extra_repr" in cls.__dict__)
    if written_by in _SILENT:
        return ""
    ours = written_by.__module__.partition(".")[0] in ("torch", "torchkeep")
    if not ours and parametrized(module):
        # Looking at a parametrized tensor computes it, which may change its state (spectral norm).
        return ""
    try:
        extra = " ".join(module.extra_repr().split())
    except Exception as error:  # noqa: BLE001 - somebody's extra_repr fails; the structure is still worth seeing
        return f"extra_repr raised {type(error).__name__}"
    return _shortened(original_class(type(module)), extra)


@lru_cache(maxsize=1024)  # models hold the same few layers many times
def _shortened(cls: type, extra: str) -> str:
    short = ", ".join(_without_defaults(extra, _defaults(cls)))
    return short if len(short) <= _LENGTH else f"{short[:_LENGTH].rstrip()}..."


@lru_cache(maxsize=1024)
def _defaults(cls: type) -> Mapping[str, object]:
    """Return the constructor's arguments with their defaults (`inspect.Parameter.empty` where there is none)."""
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}


def _without_defaults(extra: str, defaults: Mapping[str, object]) -> Iterator[str]:
    leading = True
    for item in _items(extra):
        name, sign, value = item.partition("=")
        default = defaults.get(name)
        if sign and name in defaults and _same(value, default):
            leading = False
        elif sign and leading and default is inspect.Parameter.empty:
            yield value
        else:
            leading = leading and not sign
            yield item


def _items(extra: str) -> Iterator[str]:
    """Cut at the commas that stand outside all brackets and quotes."""
    depth, quote, start = 0, "", 0
    for position, letter in enumerate(extra):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            yield extra[start:position].strip()
            start = position + 1
    if extra[start:].strip():
        yield extra[start:].strip()


def _same(written: str, default: object) -> bool:
    """Tell whether a written value is the default; torch writes a default of ``1`` as ``(1, 1)``."""
    try:
        value = literal_eval(written)
    except (ValueError, SyntaxError):
        return written == str(default)
    if isinstance(value, tuple) and not isinstance(default, tuple):
        return bool(value) and all(item == default for item in value)
    return type(value) is type(default) and bool(value == default)
