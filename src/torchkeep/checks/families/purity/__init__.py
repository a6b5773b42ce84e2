"""Purity: a forward pass changes nothing but what it says it changes."""

from torchkeep.checks.families.purity import inputs as inputs
from torchkeep.checks.families.purity import outputs as outputs
from torchkeep.checks.families.purity import settings as settings
from torchkeep.checks.families.purity import state as state
