"""The recipe of a model, written down again only when the model has changed: that takes a rebuild."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, Final
from weakref import ReferenceType, ref

from torch import nn

from torchkeep.errors import RecipeError
from torchkeep.recipes import recipe

if TYPE_CHECKING:
    from torchkeep.rows import Listing
    from torchkeep.tables.survey import Survey

_QUICK: Final = 500
"""Modules that a rebuild takes little time for, however often an attribute changes."""
_PATIENCE: Final = 3
"""How often a larger model is rebuilt since an attribute has changed."""
_REGISTRIES: Final = frozenset(vars(nn.Module()))
"""What every module has; what of it matters, a listing tells."""


class Blueprint:
    """The recipe of one model. It holds no reference to the model itself."""

    def __init__(self) -> None:
        self._listing: Listing | None = None
        self._settings: list[Any] = []
        self._changes = 0
        self._recipe: Any = None

    def recipe(self, found: Survey) -> Any:
        """Return how the model is built, in JSON's own types; None where no recipe describes it.

        An attribute that is changed in place (a list that grows, say) is not seen. Where attributes of a large
        model keep changing there is none: writing it down again for each save would take too long.
        """
        settings = [
            value
            for module in found.modules.values()
            for key, value in module.__dict__.items()
            if key not in _REGISTRIES
        ]
        if self._listing is not found.listing and self._listing != found.listing:
            self._changes = 0
        elif len(settings) == len(self._settings) and all(map(is_, settings, self._settings)):
            return self._recipe
        else:
            self._changes += len(found.modules) > _QUICK
        self._listing, self._settings = found.listing, settings
        self._recipe = None if self._changes > _PATIENCE else _described(found.net)
        return self._recipe


def _described(net: nn.Module) -> Any:
    try:
        return recipe(net).to_dict()
    except RecipeError:
        return None


_KNOWN: dict[int, tuple[ReferenceType[nn.Module], Blueprint]] = {}
"""By identity: a module may have an == of its own."""


def blueprint_of(net: nn.Module) -> Blueprint:
    """Return what is known of a model since an earlier time."""
    known = _KNOWN.get(id(net))
    if known is None or known[0]() is not net:
        key = id(net)
        known = _KNOWN[key] = ref(net, lambda gone: _forget(key, gone)), Blueprint()
    return known[1]


def _forget(key: int, gone: ReferenceType[nn.Module]) -> None:
    if key in _KNOWN and _KNOWN[key][0] is gone:
        del _KNOWN[key]
