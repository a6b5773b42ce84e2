"""Samples: one of a batch says nothing about another, and a later position nothing about an earlier one."""

from torchkeep.checks.families.samples import batches as batches
from torchkeep.checks.families.samples import causal as causal
