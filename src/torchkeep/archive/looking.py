"""Look into a store: which checkpoints there are, and which is wanted. Nothing is locked.

Another process may prune at any moment: what is picked and gone before it is read is picked again.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from torchkeep.archive.lines import all_of, first_line
from torchkeep.archive.manifest import Manifest, Name, Summary, decode_manifest, decode_summary, missing, name_of
from torchkeep.archive.marker import read_marker
from torchkeep.archive.retaining import Best, best_of
from torchkeep.errors import FormatError, MissingCheckpointError, MissingFileError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.storage.folders import FolderStorage

_Picked = TypeVar("_Picked")


@dataclass(frozen=True)
class Listed:
    """A checkpoint as a listing shows it.

    Attributes:
        name: what its file's name says.
        summary: its first line; None where that can't be read.
        error: why not.
    """

    name: Name
    summary: Summary | None
    error: FormatError | None = None


class Catalogue:
    """The checkpoints of a store, without their tensors. See `torchkeep.archive.Archive`."""

    def __init__(self, storage: FolderStorage, root: str) -> None:
        self.storage = storage
        self.root = storage.resolve(root)
        self.id = read_marker(storage, self.root)

    def pack_path(self, pack: str) -> str:
        """Return the path of a pack's file."""
        return f"{self.root}/packs/{pack}.safetensors"

    def manifest_path(self, file: str) -> str:
        """Return the path of a manifest's file."""
        return f"{self.root}/checkpoints/{file}"

    def names(self) -> list[Name]:
        """Return the names of all checkpoints, in the order they were committed; nothing of them is read."""
        return sorted(filter(None, map(name_of, self.storage.names(f"{self.root}/checkpoints"))))

    def listing(self) -> list[Listed]:
        """Return all checkpoints in the order they were committed, reading only their first lines.

        One that can't be read is listed with the reason; one that is pruned meanwhile is left out.
        """
        found: dict[Name, Listed | None] = {}
        names = self.names()
        while True:
            found.update((name, self._listed(name)) for name in names if name not in found)
            before, names = names, names if all(map(found.get, names)) else self.names()
            if names == before:  # what was pruned may have made room for others
                return [
                    found[name] or Listed(name, None, missing(self.manifest_path(name.file))) for name in names
                ]

    def _listed(self, name: Name) -> Listed | None:
        path = self.manifest_path(name.file)
        try:
            with closing(self.storage.open(path)) as file:
                return Listed(name, decode_summary(path, first_line(file)))
        except MissingFileError:
            return None
        except FormatError as error:
            return Listed(name, None, error)

    def summaries(self) -> list[Summary]:
        """Return the summaries of all checkpoints in the order they were committed.

        Raises:
            DamageError: one can't be read.
        """
        listing = self.listing()
        for one in listing:
            if one.error is not None:
                raise one.error
        return [one.summary for one in listing if one.summary is not None]

    def latest(self) -> Manifest | None:
        """Return the checkpoint with the highest sequence; None where there is none."""
        return self._undisturbed(lambda names: self.manifest(names[-1]) if names else None)

    def best(self, metric: str | None = None, mode: Literal["min", "max"] | None = None) -> Manifest | None:
        """Return the best checkpoint by a metric; None where none has it.

        Args:
            metric: its name; left out, that of the rule which the latest checkpoint was written under.
            mode: whether the lowest or the highest value is the best; left out, as in that rule.

        Raises:
            StoreError: something was left out, and there is no such rule, or it is for another metric.
        """

        def pick(_: Sequence[Name]) -> Manifest | None:
            readable = [one for one in self.listing() if one.summary is not None]
            summaries = [one.summary for one in readable if one.summary is not None]
            if not summaries:
                return None
            found = best_of(summaries, *self._rule(metric, mode, summaries[-1].best))
            return None if found is None else self.manifest(readable[summaries.index(found)].name)

        return self._undisturbed(pick)

    def _undisturbed(self, pick: Callable[[Sequence[Name]], _Picked]) -> _Picked:
        """Pick among the names again where a prune took what was picked before it was read."""
        while True:
            names = self.names()
            try:
                found = pick(names)
            except MissingCheckpointError:
                if self.names() == names:
                    raise
            else:
                if found is not None or self.names() == names:
                    return found

    def _rule(self, metric: str | None, mode: Literal["min", "max"] | None, recorded: Best | None) -> Best:
        """Fill in what was left out."""
        if metric is not None and mode is not None:
            return metric, mode
        if recorded is None:
            raise StoreError(
                f"{self.root!r} does not say which of its checkpoints is the best: they were saved without a rule "
                "for it; give a metric and 'min' or 'max', or save with Retention(best=(metric, mode))"
            )
        if metric not in {None, recorded[0]}:
            raise StoreError(
                f"the rule in {self.root!r} for the best checkpoint is {recorded!r}, and says nothing of "
                f"{metric!r}; give 'min' or 'max' as well"
            )
        return recorded[0], mode or recorded[1]

    def at(self, step: int) -> Manifest:
        """Return the latest checkpoint of a step.

        Raises:
            MissingCheckpointError: there is none; the nearest steps are named.
        """

        def pick(names: Sequence[Name]) -> Manifest:
            found = [name for name in names if name.step == step]
            if found:
                return self.manifest(found[-1])
            steps = sorted({name.step for name in names}, key=lambda known: (abs(known - step), known))
            nearest = ", ".join(map(str, sorted(steps[:5]))) or "none"
            raise MissingCheckpointError(f"{self.root!r} has no checkpoint of step {step}; it has {nearest}")

        return self._undisturbed(pick)

    def manifest(self, name: Name) -> Manifest:
        """Read a whole manifest.

        Raises:
            DamageError: it is not what was written.
            NewerFormatError: a later version wrote it.
            MissingCheckpointError: it is not there any more.
        """
        path = self.manifest_path(name.file)
        try:
            with closing(self.storage.open(path)) as file:
                content = all_of(file)
        except MissingFileError as cause:
            if name in self.names():  # a link that leads nowhere
                raise missing(path) from cause
            raise MissingCheckpointError(f"{path!r} is not there any more: it was pruned") from cause
        return decode_manifest(path, content)
