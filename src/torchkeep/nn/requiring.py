"""What blocks require of their arguments and inputs, with errors that say what was expected and what was found."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import index
from typing import Any

from torch import Tensor, nn

from torchkeep.errors import BlockError


def whole_number(block: str, name: str, value: Any, *, least: int | None = None) -> int:
    """Return ``value`` as an int.

    Raises:
        BlockError: it is none, or less than ``least``.
    """
    bound = "" if least is None else f" of at least {least}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise BlockError(f"{block}: {name} must be a whole number{bound}, found {value!r}")
    number = index(value)
    if least is not None and number < least:
        raise BlockError(f"{block}: {name} must be a whole number{bound}, found {number}")
    return number


def dimensions(block: str, name: str, value: Any) -> tuple[int, ...]:
    """Return dimensions, given as one number or several, as a tuple of ints.

    Raises:
        BlockError: there are none, one is no whole number, or one is given twice.
    """
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    found = tuple(whole_number(block, name, item) for item in given)
    if not found:
        raise BlockError(f"{block}: {name} must name at least one dimension, found none")
    if len(set(found)) < len(found):
        raise BlockError(f"{block}: {name} must name each dimension once, found {list(found)}")
    return found


def module(block: str, name: str, value: Any) -> nn.Module:
    """Return ``value``.

    Raises:
        BlockError: it is no module.
    """
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise BlockError(
            f"{block}: {name} must be a module, found the class {value.__name__}; call it to make one"
        )
    raise BlockError(f"{block}: {name} must be a torch.nn.Module, found {type(value).__name__}")


def tensor(block: str, what: str, value: Any) -> Tensor:
    """Return ``value``.

    Raises:
        BlockError: it is no tensor.
    """
    if not isinstance(value, Tensor):
        hint = "; tk.nn.Pick takes one item of it" if isinstance(value, tuple | list | dict) else ""
        raise BlockError(f"{block}: {what} must be a tensor, found {type(value).__name__}{hint}")
    return value


def last_dimension(block: str, x: Tensor, size: int) -> None:
    """Check that the last dimension of an input has ``size`` elements.

    Raises:
        BlockError: it has another size, or there is no dimension.
    """
    if x.dim() == 0 or x.shape[-1] != size:
        raise BlockError(f"{block}: expected an input of shape (*, {size}), found {shape(x)}")


def present(block: str, x: Tensor, dims: Collection[int]) -> None:
    """Check that an input has these dimensions, negative ones counted from the end, and that they are distinct.

    Raises:
        BlockError: it has too few, or two of them are one.
    """
    found = []
    for dim in dims:
        if not -x.dim() <= dim < x.dim():
            raise BlockError(f"{block}: expected an input with dimension {dim}, found shape {shape(x)}")
        found.append(dim % x.dim())
    if len(set(found)) < len(found):
        raise BlockError(f"{block}: dimensions {tuple(dims)} are not distinct in an input of shape {shape(x)}")


def shape(x: Tensor) -> str:
    """Write a shape: ``(2, 20)``."""
    return str(tuple(x.shape))
