"""Reorder dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.recipes import block


@block(name="torchkeep.nn.Permute")
class Permute(nn.Module):
    """Reorders dimensions, so that layers which disagree on the order go together in a Sequential.

    ``Permute(0, 2, 1)`` turns ``(batch, length, features)``, as recurrent and attention layers have it, into
    ``(batch, features, length)``, as convolutions have it, and back. The result is a view.

    Shape: ``(d_0, ..., d_n) -> (d_order[0], ..., d_order[n])``.

    Args:
        order: each dimension once, in the new order; negative ones count from the end.

    Raises:
        BlockError: ``order`` does not name each dimension once; in forward: the input has another number of them.
    """

    def __init__(self, *order: int) -> None:
        super().__init__()
        # Permute((0, 2, 1)) means the same as Permute(0, 2, 1), as in Tensor.permute.
        given = order[0] if len(order) == 1 and isinstance(order[0], Sequence) else order
        found = requiring.dimensions("Permute", "order", given)
        self.order = tuple(dim + len(found) if dim < 0 else dim for dim in found)
        if sorted(self.order) != list(range(len(found))):
            raise BlockError(f"Permute: order must name each of {len(found)} dimensions once, found {list(found)}")

    def forward(self, x: Tensor) -> Tensor:
        """Reorder the dimensions."""
        if requiring.tensor("Permute", "its input", x).dim() != len(self.order):
            raise BlockError(
                f"Permute: expected an input of {len(self.order)} dimensions, found shape {requiring.shape(x)}"
            )
        return x.permute(self.order)

    def extra_repr(self) -> str:
        """Say the order."""
        return ", ".join(map(str, self.order))
