"""Gradients: every parameter that matters gets one, and a right one, step after step."""

from torchkeep.checks.families.gradients import flowing as flowing
from torchkeep.checks.families.gradients import stepping as stepping
