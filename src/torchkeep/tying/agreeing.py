"""Whether two tensors could be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def disagreements(one: Tensor, other: Tensor) -> Iterator[tuple[str, object, object]]:
    """Yield what must be equal for two tensors to be one and is not: its name, the one's and the other's."""
    for what, mine, theirs in (
        ("shape", tuple(one.shape), tuple(other.shape)),
        ("dtype", one.dtype, other.dtype),
        ("device", one.device, other.device),
    ):
        if mine != theirs:
            yield what, mine, theirs
