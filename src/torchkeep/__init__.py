"""torchkeep: keep a PyTorch model's parameters.

Compose blocks; see, select, initialise and tie parameters; save and load them. Everything is imported when it is
first used, so that ``import torchkeep`` is quick and listing a file needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep.errors import TorchkeepError as TorchkeepError

__version__ = "0.1.0"

_HOMES = {
    "errors": ("TorchkeepError",),
}
"""Public names by the module that defines them."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("errors",)

__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]  # noqa: PLE0604 - the names stand above, once


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, so that completion finds them before they are imported."""
    return sorted(__all__)
