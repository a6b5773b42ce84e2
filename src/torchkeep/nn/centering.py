"""Take the mean away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.recipes import block

if TYPE_CHECKING:
    from collections.abc import Sequence


@block(name="torchkeep.nn.Centering")
class Centering(nn.Module):
    """``x - mean(x)`` over named dimensions, of each sample by itself. It has no parameters.

    By default the mean is over the last dimension, the features. The batch is never averaged over unless its
    dimension is named: ``Centering(0)``.

    Shape: ``(*) -> (*)``, of the same dtype, which must be floating point or complex.

    Args:
        dims: the dimension or dimensions to average over; negative ones count from the end.

    Raises:
        BlockError: ``dims`` is not that; in forward: the input lacks one of them, or holds whole numbers.
    """

    def __init__(self, dims: int | Sequence[int] = -1) -> None:
        super().__init__()
        self.dims = requiring.dimensions("Centering", "dims", dims)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean; ``(*) -> (*)``."""
        requiring.present("Centering", requiring.tensor("Centering", "its input", x), self.dims)
        if not (x.is_floating_point() or x.is_complex()):
            raise BlockError(
                f"Centering: expected floating point or complex numbers, found {x.dtype}; convert the input"
            )
        return x - x.mean(self.dims, keepdim=True)

    def extra_repr(self) -> str:
        """Say over which dimensions."""
        return f"dims={self.dims[0] if len(self.dims) == 1 else self.dims}"
