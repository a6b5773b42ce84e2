"""Help for the tests of tk.init: drawing one distribution without a model."""

from math import prod

import torch

from torchkeep.init.drawing import seed_secret
from torchkeep.init.parts import draw_part


def drawn(distribution, shape, *, name="weight", seed=0, dtype=torch.float32, index=...):
    """Draw from ``distribution`` as if for a tensor of that name and shape."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    assert prod(shape) >= 0
    return draw_part(distribution, seed_secret(seed), name, shape, dtype=dtype, index=index)
