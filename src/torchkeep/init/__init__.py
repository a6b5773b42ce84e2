"""tk.init: initializers for rules, and the plan of what they fill.

    tk.initialize(net, {"**.weight": tk.init.kaiming_normal(nonlinearity="relu"), "**.bias": tk.init.zeros()})

The value of an element depends only on the seed, the canonical name of its tensor, the global shape and the
element's global index. See docs/initialising.md.
"""

from __future__ import annotations

from torchkeep.init.elementwise import normal as normal
from torchkeep.init.elementwise import trunc_normal as trunc_normal
from torchkeep.init.elementwise import uniform as uniform
from torchkeep.init.fixed import constant as constant
from torchkeep.init.fixed import dirac as dirac
from torchkeep.init.fixed import eye as eye
from torchkeep.init.fixed import keep as keep
from torchkeep.init.fixed import ones as ones
from torchkeep.init.fixed import zeros as zeros
from torchkeep.init.initializers import Initializer as Initializer
from torchkeep.init.plans import InitPlan as InitPlan
from torchkeep.init.plans import plan as plan
from torchkeep.init.scaled import kaiming_normal as kaiming_normal
from torchkeep.init.scaled import kaiming_uniform as kaiming_uniform
from torchkeep.init.scaled import lecun_normal as lecun_normal
from torchkeep.init.scaled import xavier_normal as xavier_normal
from torchkeep.init.scaled import xavier_uniform as xavier_uniform
from torchkeep.init.tabulating import InitRow as InitRow
from torchkeep.init.wholes import custom as custom
from torchkeep.init.wholes import orthogonal as orthogonal
from torchkeep.init.wholes import torch_default as torch_default
