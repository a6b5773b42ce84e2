"""``torchkeep prune``: remove checkpoints that no rule keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.archive import Retention, Writer
from torchkeep.archive.locating import whole_store
from torchkeep.archive.pruning import foresee
from torchkeep.archive.writing import LOCK_WAIT
from torchkeep.cli.logbook import count_text, look
from torchkeep.storage.local_folders import LOCAL_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.archive import Archive, Summary
    from torchkeep.archive.retaining import Best

_SHOWN: Final = 20


def prune(
    store: str,
    *,
    last: int | None,
    every: int | None,
    best: Best | None,
    dry_run: bool,
    as_json: bool,
    wait: float = LOCK_WAIT,
) -> str:
    """Remove the checkpoints of a store that no rule keeps; see `torchkeep.archive.writing.Writer.prune`.

    Args:
        store: its folder.
        last: how many of the latest are kept; None: the latest.
        every: those are kept whose step is a multiple of this.
        best: a metric, and whether its lowest or highest value is the best; None: the store's own rule, if any.
        dry_run: whether to tell only what would be removed; then no lock is taken.
        as_json: whether to answer with a JSON document instead of text.
        wait: how long to wait for another process that writes to the store, in seconds.

    Returns:
        What is to be written, with a final newline.

    Raises:
        StoreError: the folder is no store, or another process writes to it.
        FormatError: a checkpoint can't be read; nothing was removed.
        StorageError: the operating system refused.
    """
    archive = whole_store(store)
    rule = best if best is not None else look(archive).rule
    retention = Retention(last=last or 1, every=every, best=rule)
    if dry_run:
        found = foresee(archive, retention)
        removed, packs = found.removed, len(found.packs)
        nbytes = sum(_sizes(archive, found.packs))
    else:
        with Writer(LOCAL_FOLDERS, store, wait=wait) as writer:
            before = dict(zip(names := _packs(writer), _sizes(writer, names), strict=True))
            report = writer.prune(retention)
            removed, packs = report.removed, report.packs
            nbytes = sum(before.values()) - sum(before[name] for name in _packs(writer))
    kept = look(archive)
    gone = {summary.sequence for summary in removed}
    left = [one.name.step for one in kept.listed if one.name.sequence not in gone]
    if as_json:
        from torchkeep.cli.documents import prune_document  # noqa: PLC0415 - text needs none of it

        return prune_document(store, rule, removed, left, packs=packs, nbytes=nbytes, dry_run=dry_run)
    known = None if kept.best is None else rule
    return _text(removed, left, known, nbytes=nbytes, dry_run=dry_run)


def _packs(archive: Archive) -> list[str]:
    return archive.storage.names(f"{archive.root}/packs")


def _sizes(archive: Archive, packs: Sequence[str]) -> list[int]:
    """Return the bytes of files in packs/."""
    from contextlib import closing  # noqa: PLC0415 - for this alone

    found = []
    for pack in packs:
        with closing(archive.storage.open(f"{archive.root}/packs/{pack}")) as file:
            found.append(file.size)
    return found


def _text(
    removed: Sequence[Summary], left: Sequence[int], rule: Best | None, *, nbytes: int, dry_run: bool
) -> str:
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - JSON needs none of it

    verb, come = ("would remove", "would come") if dry_run else ("removed", "came")
    steps = _steps([summary.step for summary in removed])
    what = f"{count_text(len(removed), 'checkpoint')}{f' ({steps})' if removed else ''}"
    best = "" if rule is None else f", the best by {rule[0]} ({rule[1]}) among them"
    return (
        f"{verb} {what}; {size_text(nbytes)} {come} free\n"
        f"{'would keep' if dry_run else 'kept'} {count_text(len(left), 'checkpoint')} ({_steps(left)}){best}\n"
    )


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:_SHOWN]))
    more = f" and {len(steps) - _SHOWN} more" if len(steps) > _SHOWN else ""
    return f"step{'' if len(steps) == 1 else 's'} {shown}{more}" if steps else "none"
