"""`tk.nn`: blocks that torch.nn does not have. Each is an ordinary nn.Module, in a file of its own.

    MLP            linear layers with activation, norm and dropout between them
    Residual       what a block adds to its input
    Parallel       several branches on one input, summed, concatenated or combined by a function
    Repeat         a block several times in a row, as copies or as one shared layer
    Centering      takes the mean away, over named dimensions
    FixedLinear    a linear layer whose weight is random, constant and saved
    Scale          a learnable factor for each feature
    Permute        reorders dimensions, so that layers which disagree on the order go together
    Pick           takes one item of what the block before returned

In the shapes of the docstrings ``*`` stands for any number of dimensions, none included.
"""

from __future__ import annotations

from torchkeep.nn.centering import Centering
from torchkeep.nn.fixed_linear import FixedLinear
from torchkeep.nn.mlp import MLP
from torchkeep.nn.parallel import Parallel
from torchkeep.nn.permute import Permute
from torchkeep.nn.pick import Pick
from torchkeep.nn.repeat import Repeat
from torchkeep.nn.residual import Residual
from torchkeep.nn.scale import Scale

__all__ = ["MLP", "Centering", "FixedLinear", "Parallel", "Permute", "Pick", "Repeat", "Residual", "Scale"]
