"""Seeing what goes through a module by running a copy of it, on shapes alone where that can be."""

from __future__ import annotations

from torchkeep.tables.tracing.attempts import How, Mode, Trace, trace

__all__ = ["How", "Mode", "Trace", "trace"]
