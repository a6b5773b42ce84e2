"""The JSON documents that commands write. Their fields are a promise: docs/cli.md lists them.

A field may be added under the same schema number; one that goes or changes its meaning raises the number.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec

from torchkeep import __version__
from torchkeep.rows.totals import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.archive import Listed, Summary
    from torchkeep.archive.retaining import Best
    from torchkeep.cli.logbook import Logged
    from torchkeep.files.comparing import Compared, Comparison
    from torchkeep.files.converting import ConvertReport
    from torchkeep.files.verifying import SourceReport
    from torchkeep.rows import Row
    from torchkeep.tables.statistics import Statistics

_SCHEMA = 1
_WIDEST_INT = 64
"""Bits of an integer that readers of JSON can be expected to take; Python itself spells 4,300 digits at most."""


def rows_document(
    source: str, selector: str | None, rows: Sequence[Row], statistics: Statistics | None = None
) -> str:
    """Return the document of ``torchkeep show --json``: one row a line, totals last.

    Args:
        source: as the user gave it.
        selector: as the user gave it; None for all rows.
        rows: what was selected.
        statistics: one for each row, or None where they were not asked for.

    Returns:
        The text, with a final newline.
    """
    shown = [_row(row) for row in rows]
    if statistics is not None:
        for fields, measured in zip(shown, statistics.to_json(), strict=True):
            fields["stats"] = {key: value for key, value in measured.items() if key not in fields}
    opening = _head(source=_text(source), selector=selector)
    lines = ",\n".join(map(_encode, shown))
    totals = _encode(count((row, 1) for row in rows))
    return f'{opening},"rows":[\n{lines}\n],"totals":{totals}}}\n'


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "persistent": row.persistent,
        "shape": row.shape,
        "dtype": row.dtype,
        "device": row.device,
        "numel": None if row.lazy else row.numel,
        "nbytes": None if row.lazy else row.nbytes,
        "trainable": row.trainable,
        "module_type": row.module_type,
        "aliases": row.aliases,
        "plain": row.plain,
    }


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def verify_document(reports: Sequence[SourceReport]) -> str:
    """Return the document of ``torchkeep verify --json``: one source a line, with a final newline."""
    lines = ",\n".join(_encode(_verified(report)) for report in reports)
    return f'{_head()},"sources":[\n{lines}\n]}}\n'


def _verified(report: SourceReport) -> dict[str, Any]:
    files = [{**msgspec.structs.asdict(file), "path": _text(file.path)} for file in report.files]
    store = {} if report.store is None else {"store": report.store}
    return {
        "source": _text(report.source),
        "status": report.status,
        "files": files,
        "error": report.error,
        **store,
    }


def _head(**fields: object) -> str:
    """Return the beginning of a document, without its end."""
    return _encode({"torchkeep": __version__, "schema": _SCHEMA, **fields}).removesuffix("}")


def _text(path: str) -> str:
    # A path may hold bytes that are no text; JSON may not.
    return path.encode("utf-8", "backslashreplace").decode()


def diff_document(first: str, second: str, selector: str | None, found: Comparison) -> str:
    """Return the document of ``torchkeep diff --json``: one tensor of both a line, with a final newline."""
    opening = _head(first=_text(first), second=_text(second), selector=selector, same=found.same)
    only = ",".join(
        f'"only_{which}":[{",".join(_encode(_row(row)) for row in rows)}]'
        for which, rows in zip(("first", "second"), found.only, strict=True)
    )
    ties = _encode({"ties_first": found.ties[0], "ties_second": found.ties[1]})[1:-1]
    lines = ",\n".join(_encode(_compared(one)) for one in found.common)
    return f'{opening},{only},{ties},"common":[\n{lines}\n]}}\n'


def _compared(one: Compared) -> dict[str, Any]:
    first, second = one.rows
    return {
        "name": one.name,
        "changes": one.changes,
        "equal": one.equal,
        "difference": one.difference,
        "first": _said(first),
        "second": _said(second),
    }


def _said(row: Row) -> dict[str, Any]:
    return {"name": row.name, "shape": row.shape, "dtype": row.dtype, "kind": row.kind, "aliases": row.aliases}


def log_document(store: str, found: Logged) -> str:
    """Return the document of ``torchkeep log --json``: one checkpoint a line, with a final newline."""
    opening = _head(store=_text(store), id=found.archive.id, rule=found.rule)
    lines = ",\n".join(_encode(_logged(found, one)) for one in found.listed)
    return f'{opening},"checkpoints":[\n{lines}\n]}}\n'


def _logged(found: Logged, one: Listed) -> dict[str, Any]:
    summary = one.summary
    return {
        "step": one.name.step,
        "sequence": one.name.sequence,
        "time": None if summary is None else summary.time,
        "tensors": None if summary is None else summary.tensors,
        "nbytes": None if summary is None else summary.nbytes,
        "written": None if summary is None else summary.written,
        "metrics": None if summary is None else _plain(summary.values()),
        "latest": one.name.sequence == found.latest,
        "best": one.name.sequence == found.best,
        "error": None if one.error is None else str(one.error),
    }


def prune_document(
    store: str,
    rule: Best | None,
    removed: Sequence[Summary],
    left: Sequence[int],
    *,
    packs: int,
    nbytes: int,
    dry_run: bool,
) -> str:
    """Return the document of ``torchkeep prune --json``, with a final newline."""
    gone = [{"step": summary.step, "sequence": summary.sequence} for summary in removed]
    head = _head(
        store=_text(store), dry_run=dry_run, rule=rule, removed=gone, kept=left, packs=packs, freed=nbytes
    )
    return f"{head}}}\n"


def convert_document(source: str, report: ConvertReport) -> str:
    """Return the document of ``torchkeep convert --json``, with a final newline."""
    found = msgspec.structs.asdict(report) | {"path": _text(report.path)}
    return f"{_head(source=_text(source), **found)}}}\n"


def _plain(value: Any) -> Any:
    """Return a metric as JSON has it; what JSON has no form for is spelled as Python does."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _WIDEST_INT else hex(value)
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    return _spelled(value)


def _spelled(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # it holds a number of more digits than Python spells
        return f"a {type(value).__name__}"
