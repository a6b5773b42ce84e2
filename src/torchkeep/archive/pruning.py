"""Decide what a prune removes. Nothing is removed here, and no lock is needed to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from torchkeep.archive.verifying import verify
from torchkeep.errors import DamageError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.archive.manifest import Name, Summary
    from torchkeep.archive.reading import Archive
    from torchkeep.archive.retaining import Retention

ENDING: Final = ".safetensors"


class Doomed(NamedTuple):
    """What a prune would remove.

    Attributes:
        names: of checkpoints, in the order they were committed.
        removed: their summaries.
        packs: names in packs/ of the files that no kept checkpoint needs.
    """

    names: list[Name]
    removed: tuple[Summary, ...]
    packs: list[str]


def doomed(
    archive: Archive, retention: Retention, precious: set[int], packs_of: Callable[[Name], frozenset[str]]
) -> Doomed:
    """Return what neither ``retention`` keeps nor is ``precious``, and the packs that nothing else needs.

    Raises:
        FormatError: a manifest can't be read, so what it needs is not known.
        StorageError: the operating system refused.
    """
    try:
        summaries = archive.summaries()
        kept = retention.kept(summaries) | precious
        names = archive.names()
        needed = {pack for name in names if name.sequence in kept for pack in packs_of(name)}
    except FormatError as error:
        remedy = ", or remove it, and its checkpoint with it" if isinstance(error, DamageError) else ""
        error.args = (f"nothing was pruned in {archive.root!r}: {error}{remedy}",)
        raise
    packs = [
        file
        for file in archive.storage.names(f"{archive.root}/packs")
        if file.endswith(ENDING) and file.removesuffix(ENDING) not in needed
    ]
    removed = tuple(summary for summary in summaries if summary.sequence not in kept)
    return Doomed([name for name in names if name.sequence not in kept], removed, packs)


def untouchable(archive: Archive, good: set[int]) -> set[int]:
    """Return the sequences that no rule may remove: the latest, and the newest that is intact; all if none is.

    Args:
        archive: the store.
        good: those known to be intact; one that is verified now is added.
    """
    names = archive.names()
    for name in reversed(names):
        if name.sequence not in good and verify(archive, [name]).ok:
            good.add(name.sequence)
        if name.sequence in good:
            return {names[-1].sequence, name.sequence}
    return {name.sequence for name in names}


def foresee(archive: Archive, retention: Retention) -> Doomed:
    """Return what a prune by a new writer would remove; raises what `doomed` does."""

    def packs_of(name: Name) -> frozenset[str]:
        return frozenset(pack.id for pack in archive.manifest(name).body.packs)

    return doomed(archive, retention, untouchable(archive, set()), packs_of)
