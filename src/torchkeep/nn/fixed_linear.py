"""A linear layer whose weight is random and constant."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.recipes import block
from torchkeep.tensors.streams import keyed_generator


@block(name="torchkeep.nn.FixedLinear")
class FixedLinear(nn.Module):
    """``x @ weight.T`` with a random weight that is never trained: a random projection.

    The weight is a buffer: it moves with the module and is saved in its state_dict, and no optimizer sees it. Its
    values are normal with mean 0 and standard deviation ``1 / sqrt(in_features)``, so that the output is about as
    large as the input. They are a function of ``seed`` and the two sizes alone: the same on every device, whatever
    else was drawn before, and drawn again by `reset_parameters`. Two layers of one shape need two seeds to differ.

    Shape: ``(*, in_features) -> (*, out_features)``. Weight: ``(out_features, in_features)``.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's.
        seed: which weight.
        device: where to make it.
        dtype: a floating point dtype; the values are drawn in float32 (float64 for float64), then rounded.

    Raises:
        BlockError: an argument does not fit; in forward: the input's last dimension is not ``in_features``.
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = requiring.whole_number("FixedLinear", "in_features", in_features, least=1)
        self.out_features = requiring.whole_number("FixedLinear", "out_features", out_features, least=1)
        self.seed = requiring.whole_number("FixedLinear", "seed", seed)
        weight = torch.empty(self.out_features, self.in_features, device=device, dtype=dtype)
        if not weight.is_floating_point():
            raise BlockError(f"FixedLinear: dtype must be a floating point one, found {weight.dtype}")
        self.register_buffer("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight again: the same values as the first time."""
        if self.weight.is_meta:
            return
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        generator = keyed_generator("torchkeep.nn.FixedLinear", self.seed, self.out_features, self.in_features)
        # The device is named, so that a default device which the caller has set does not matter.
        drawn = torch.empty(self.weight.shape, dtype=dtype, device="cpu").normal_(generator=generator)
        with torch.no_grad():
            self.weight.copy_(drawn.div_(sqrt(self.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """Project; ``(*, in_features) -> (*, out_features)``."""
        requiring.last_dimension("FixedLinear", requiring.tensor("FixedLinear", "its input", x), self.in_features)
        return functional.linear(x, self.weight)

    def extra_repr(self) -> str:
        """Say sizes and seed."""
        return f"in_features={self.in_features}, out_features={self.out_features}, seed={self.seed}"
