"""What tables of checkpoints are read from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.tables.filed import batches
from torchkeep.tables.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from torchkeep.rows import Listing
    from torchkeep.tensors.checkpoints import Checkpoint


class CheckpointSource(Source):
    """A checkpoint: its manifest is read when the table is made, each tensor, verified, when it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._listing = checkpoint.listing

    def listing(self) -> Listing:
        """Return the rows."""
        return self._listing

    def tensor(self, position: int) -> Tensor:
        """Read one tensor and verify its bytes."""
        return next(self.each([position]))

    def each(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Read tensors in turn, small ones some at a time."""
        for names in batches(self._listing, positions):
            found = self._checkpoint.read(names)
            yield from map(found.pop, names)

    def is_same(self, other: Source) -> bool:
        """Tell whether ``other`` is a table of the same checkpoint."""
        return isinstance(other, CheckpointSource) and self._checkpoint == other._checkpoint  # noqa: SLF001 - its own kind
