"""Names of parametrised tests that are the same in every worker process."""

from __future__ import annotations


def stable(value: object) -> str:
    """Spell a parameter without the address that functions and plain objects show."""
    return repr(value).partition(" at 0x")[0]
