"""State: what a layer computes with is registered, follows the layer, and comes back with its state_dict."""

from torchkeep.checks.families.state import carrying as carrying
from torchkeep.checks.families.state import registering as registering
