"""What a model is loaded from when it lies in several files under an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchkeep.files.offering import Source
from torchkeep.tensors.reading import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from torchkeep.formats.sharded import Sharded


class ShardedSource(Source):
    """The open files under an index."""

    def __init__(self, sharded: Sharded, parts: Mapping[str, Source]) -> None:
        self.text = repr(sharded.path)
        self._sharded, self._parts = sharded, parts
        self._where = sharded.where
        for path, part in parts.items():
            if any(sharded.where.get(name) != path for name in (*part.offers, *part.extra)):
                raise changed(path)
        found = {name: offer for part in parts.values() for name, offer in part.offers.items()}
        self.offers = {name: found[name] for name in sharded.where if name in found}
        self.extra = tuple(key for part in parts.values() for key in part.extra)
        if len(self.offers) + len(self.extra) != len(sharded.where):
            raise changed(sharded.path)
        self.verified = all(part.verified for part in parts.values())

    def tensors(self, owners: Sequence[str]) -> dict[str, Tensor]:
        """Read tensors, file by file."""
        found: dict[str, Tensor] = {}
        for path, part in self._parts.items():
            found.update(part.tensors([owner for owner in owners if self._where[owner] == path]))
        self._sharded.refuse_changed()
        return found

    def fill(self, pairs: Sequence[tuple[str, Tensor]], begun: Callable[[int], object]) -> None:
        """Read tensors into their targets, file by file."""
        for path, part in self._parts.items():
            mine = [position for position, (owner, _) in enumerate(pairs) if self._where[owner] == path]
            part.fill([pairs[position] for position in mine], lambda index, mine=mine: begun(mine[index]))  # type: ignore[misc]  # mypy infers no default arguments
        self._sharded.refuse_changed()

    def extra_state(self) -> Mapping[str, Any]:
        """Read a module's extra state."""
        return {key: value for part in self._parts.values() for key, value in part.extra_state().items()}
