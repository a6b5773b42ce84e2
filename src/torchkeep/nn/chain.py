"""What `MLP` and `Repeat` have in common."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn


class Chain(nn.Sequential):
    """A Sequential made from other arguments than modules; a slice of it is a plain Sequential."""

    def __getitem__(self, position: Any) -> Any:
        """Return one module, or for a slice a Sequential of the same modules under the same names."""
        if isinstance(position, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[position]))
        return super().__getitem__(position)
