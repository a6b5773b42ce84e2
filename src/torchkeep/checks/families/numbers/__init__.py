"""Numbers: the same output for the same input, in any memory layout, at any scale, in any dtype, on any device."""

from torchkeep.checks.families.numbers import determinism as determinism  # isort: skip - all others rest on it
from torchkeep.checks.families.numbers import devices as devices
from torchkeep.checks.families.numbers import dtypes as dtypes
from torchkeep.checks.families.numbers import extremes as extremes
from torchkeep.checks.families.numbers import layouts as layouts
