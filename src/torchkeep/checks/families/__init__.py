"""The checks, one module for each family. Importing this registers them all, in the order of the report."""

from torchkeep.checks.families import gradients as gradients
from torchkeep.checks.families import purity as purity
