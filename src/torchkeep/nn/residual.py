"""What a block adds to its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.recipes import block


@block(name="torchkeep.nn.Residual")
class Residual(nn.Module):
    """``x + inner(x)``, or ``shortcut(x) + inner(x)``.

    Nothing is broadcast: both summands must have the same shape.

    Shape: ``(*) -> (*)`` where ``inner`` keeps the shape; in general that of ``inner``'s output.

    Args:
        inner: the block; it must return one tensor.
        shortcut: what the input goes through on the other way, such as a projection to another number of features.
            None: the input itself.

    Raises:
        BlockError: an argument is no module; in forward: the two summands differ in shape.
    """

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = requiring.module("Residual", "inner", inner)
        self.shortcut = None if shortcut is None else requiring.module("Residual", "shortcut", shortcut)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add; further arguments (a mask, say) go to ``inner`` alone."""
        change = requiring.tensor("Residual", "what inner returns", self.inner(x, *args, **kwargs))
        kept = x if self.shortcut is None else self.shortcut(x)
        if change.shape != kept.shape:
            expected = "its input" if self.shortcut is None else "what the shortcut returns"
            raise BlockError(
                f"Residual: expected inner to return the shape of {expected}, {requiring.shape(kept)}, found "
                f"{requiring.shape(change)}; a shortcut that projects can bring them together"
            )
        return kept + change
