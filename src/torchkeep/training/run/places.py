"""Where a run is in each of its loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass
class Place:
    """Where a loader is: ``batch`` batches of ``epoch`` are done, and what its feed keeps to come back here."""

    epoch: int = 0
    batch: int = 0
    kept: dict[str, Any] | None = None


class Places:
    """The places of a run's loaders.

    Loaders are told apart by the order in which a script first uses them, which is the same after a restart.

    Attributes:
        current: number of the loader that is gone over now, or was last.
    """

    def __init__(self) -> None:
        self.current = 0
        self._loaders: list[Callable[[], object]] = []
        self._places: dict[int, Place] = {}

    @property
    def here(self) -> Place:
        """The place of the current loader."""
        return self._places.setdefault(self.current, Place())

    def turn_to(self, loader: object) -> None:
        """Make a loader the current one."""
        for number, known in enumerate(self._loaders):
            if known() is loader:
                self.current = number
                return
        try:
            self._loaders.append(ref(loader))
        except TypeError:  # such as a list
            self._loaders.append(lambda: loader)
        self.current = len(self._loaders) - 1

    def kept(self) -> dict[str, tuple[int, int, dict[str, Any] | None]]:
        """Return what a checkpoint keeps of them."""
        # A loader that is gone does not come back; those of later loops are still to be met.
        gone = {number for number, known in enumerate(self._loaders) if known() is None}
        return {
            str(number): (one.epoch, one.batch, one.kept)
            for number, one in self._places.items()
            if number not in gone
        }

    def put_back(self, current: int, kept: Mapping[str, Sequence[Any]]) -> None:
        """Go to where a checkpoint was."""
        self.current = current
        self._places = {int(number): Place(*place) for number, place in kept.items()}

    def begin_at(self, epoch: int) -> None:
        """Go to the begin of an epoch of the first loader; nothing is known of others."""
        self._places = {0: Place(epoch)}
