"""Take one item of what the block before returned."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchkeep.errors import BlockError
from torchkeep.recipes import block


@block(name="torchkeep.nn.Pick")
class Pick(nn.Module):
    """Takes one item of a tuple, list or dict, so that blocks which return several go into a Sequential.

    ``Sequential(nn.LSTM(8, 16, batch_first=True), Pick(0), nn.Linear(16, 2))`` goes on with the LSTM's output and
    drops its state. ``Pick(1, 0)`` takes the first item of the second.

    Shape: of the item.

    Args:
        keys: positions in tuples and lists, keys of dicts; one for each level.

    Raises:
        BlockError: no key is given; in forward: there is no such item.
    """

    def __init__(self, *keys: int | str) -> None:
        super().__init__()
        if not keys or any(isinstance(key, bool) or not isinstance(key, int | str) for key in keys):
            raise BlockError(f"Pick: give a position or a key for each level, such as Pick(0), found {list(keys)}")
        self.keys = keys

    def forward(self, value: Any) -> Any:
        """Take the item."""
        for key in self.keys:
            if not isinstance(value, tuple | list | dict):
                raise BlockError(
                    f"Pick: expected a tuple, list or dict to take {key!r} from, found {type(value).__name__}"
                )
            try:
                value = value[key]  # type: ignore[index]  # a wrong kind of key is caught below
            except (KeyError, IndexError, TypeError):
                there = list(value) if isinstance(value, dict) else f"{len(value)} items"
                raise BlockError(
                    f"Pick: there is no {key!r} in the {type(value).__name__}, which holds {there}"
                ) from None
        return value

    def extra_repr(self) -> str:
        """Say which."""
        return ", ".join(map(repr, self.keys))
