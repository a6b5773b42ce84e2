"""Properties that are computed once, without a lock.

Before Python 3.12, that of `functools` takes a lock that all objects of a class share. A process that is forked
while another thread computes such a property inherits the lock as taken, and would wait for ever at its first use.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import cached_property  # noqa: TID251 - everyone else takes it from here
from typing import TYPE_CHECKING

__all__ = ["cached_property"]

if sys.version_info < (3, 12) and not TYPE_CHECKING:

    class cached_property(cached_property):  # noqa: N801 - it takes that one's place
        """Computed at first use, by two threads at once perhaps, and then kept; as in later versions of Python."""

        def __init__(self, *function: object) -> None:
            super().__init__(*function)
            self.lock = nullcontext()
