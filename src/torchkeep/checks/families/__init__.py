"""The checks, one module for each family. Importing this registers them all, in the order of the report."""

from torchkeep.checks.families import numbers as numbers  # isort: skip - determinism is decided first
from torchkeep.checks.families import gradients as gradients
from torchkeep.checks.families import purity as purity
from torchkeep.checks.families import samples as samples
from torchkeep.checks.families import state as state
from torchkeep.checks.families import tools as tools
