"""``torchkeep log``: the checkpoints of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torchkeep.archive.locating import whole_store
from torchkeep.archive.retaining import best_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchkeep.archive import Archive, Listed
    from torchkeep.archive.retaining import Best

_MOST_COLUMNS: Final = 8
"""Metrics that have a column each; of more, the rest stands in the last column."""
_WIDEST: Final = 60


class Logged(NamedTuple):
    """What a store holds.

    Attributes:
        archive: the store.
        listed: its checkpoints, in the order they were committed.
        rule: what tells the best: the latest checkpoint's; None where it has none.
        latest: sequence of the latest; None where there is none.
        best: sequence of the best; None where none is known.
    """

    archive: Archive
    listed: Sequence[Listed]
    rule: Best | None
    latest: int | None
    best: int | None


def log(store: str, *, as_json: bool) -> str:
    """List the checkpoints of a store.

    Args:
        store: its folder.
        as_json: whether to answer with a JSON document instead of text.

    Returns:
        What is to be written, with a final newline.

    Raises:
        StoreError: the folder is no store.
        StorageError: it can't be read.
    """
    found = look(whole_store(store))
    if as_json:
        from torchkeep.cli.documents import log_document  # noqa: PLC0415 - text needs none of it

        return log_document(store, found)
    return f"{_text(found)}\n"


def look(archive: Archive) -> Logged:
    """Look at all checkpoints of a store: of each, only the first line is read."""
    listed = archive.listing()
    readable = [one.summary for one in listed if one.summary is not None]
    rule = readable[-1].best if readable else None
    best = best_of(readable, *rule) if rule is not None else None
    latest = listed[-1].name.sequence if listed else None
    return Logged(archive, listed, rule, latest, None if best is None else best.sequence)


def marks(found: Logged, one: Listed) -> list[str]:
    """Return what distinguishes a checkpoint: ``latest``, ``best``."""
    return [
        mark
        for mark, sequence in (("latest", found.latest), ("best", found.best))
        if one.name.sequence == sequence
    ]


def time_text(time: float) -> str:
    """Show a time in seconds since 1970 as date and time of this machine's zone."""
    from datetime import UTC, datetime  # noqa: PLC0415 - JSON needs none of it

    try:
        return datetime.fromtimestamp(time, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a damaged clock, or no clock that this machine knows
        return f"{time:g}"


def count_text(number: int, noun: str) -> str:
    """Spell a number of things: ``1 checkpoint``, ``3 checkpoints``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(found: Logged) -> str:
    from torchkeep.rows.text import size_text, table  # noqa: PLC0415 - JSON needs none of it

    if not found.listed:
        return "no checkpoints yet"
    values = [{} if one.summary is None else one.summary.values() for one in found.listed]
    names = list(dict.fromkeys(name for metrics in values for name in metrics))
    columns, rest = names[:_MOST_COLUMNS], names[_MOST_COLUMNS:]
    headers = ("step", "commit", "saved", "size", "written", *columns, "metrics", "notes")
    lines = [_line(found, one, metrics, columns, rest) for one, metrics in zip(found.listed, values, strict=True)]
    align = f">><>>{'>' * len(columns)}<<"
    readable = [one.summary for one in found.listed if one.summary is not None]
    written = size_text(sum(summary.written for summary in readable))
    total = f"{count_text(len(found.listed), 'checkpoint')}, {written} written for them"
    damaged = len(found.listed) - len(readable)
    if damaged:
        total += f"; {damaged} can't be read"
    return f"{table(headers, lines, align)}\n\n{total}"


def _line(
    found: Logged, one: Listed, metrics: Mapping[str, Any], columns: Sequence[str], rest: Sequence[str]
) -> tuple[str, ...]:
    from torchkeep.rows.text import size_text  # noqa: PLC0415 - JSON needs none of it

    summary, notes = one.summary, ", ".join(marks(found, one))
    head = str(one.name.step), str(one.name.sequence)  # as STORE@STEP takes them
    if summary is None:
        notes = f"{notes + '; ' if notes else ''}can't be read: {one.error}"
        return (*head, "", "", "", *("" for _ in columns), "", notes)
    shown = (_value_text(metrics[name]) if name in metrics else "" for name in columns)
    further = ", ".join(f"{name}={_value_text(metrics[name])}" for name in rest if name in metrics)
    sizes = size_text(summary.nbytes), size_text(summary.written)
    return (*head, time_text(summary.time), *sizes, *shown, further, notes)


def _value_text(value: object) -> str:
    try:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    except ValueError:  # Python spells no number of more than 4,300 digits
        text = "a number of very many digits"
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
