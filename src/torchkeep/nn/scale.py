"""A learnable factor for each feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchkeep.nn import requiring
from torchkeep.recipes import block


@block(name="torchkeep.nn.Scale")
class Scale(nn.Module):
    """``x * weight`` with one learnable factor for each feature, all of them ``initial`` at first.

    Inside a `Residual`, a small ``initial`` lets a deep network start near the identity: LayerScale of "Going
    deeper with Image Transformers" (Touvron et al. 2021), as in ``Residual(Sequential(mlp, Scale(64, 1e-5)))``.

    Shape: ``(*, size) -> (*, size)``. Weight: ``(size,)``.

    Args:
        size: size of the last dimension.
        initial: value of every factor at first.
        device: where to make the weight.
        dtype: of the weight.

    Raises:
        BlockError: ``size`` is no such number; in forward: the input's last dimension is not ``size``.
    """

    def __init__(
        self,
        size: int,
        initial: float = 1.0,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = requiring.whole_number("Scale", "size", size, least=1)
        self.initial = float(initial)
        self.weight = nn.Parameter(torch.empty(self.size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give every factor its initial value."""
        nn.init.constant_(self.weight, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; ``(*, size) -> (*, size)``."""
        requiring.last_dimension("Scale", requiring.tensor("Scale", "its input", x), self.size)
        return x * self.weight

    def extra_repr(self) -> str:
        """Say size and initial value."""
        return f"size={self.size}, initial={self.initial}"
