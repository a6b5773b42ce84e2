"""A table of parameters as a small, self-contained piece of HTML for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from torchkeep.names import printable
from torchkeep.rows.folding import fold
from torchkeep.rows.text import shape_text, size_text, total_lines
from torchkeep.rows.totals import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.rows import Row
    from torchkeep.rows.folding import FoldedRow

_LINES = 500
_COLUMNS = ("name", "count", "shape", "dtype", "elements", "size", "state", "aliases")
_LEFT = "text-align:left"  # on each cell, since notebooks align cells to the right by their own rules


def table_html(rows: Sequence[Row], among: Sequence[Row] | None, notes: Sequence[str] = ()) -> str:
    """Show rows as an HTML table, repeated blocks folded into one line.

    Everything that comes from the source is escaped, marks that would reorder or hide text too. More than 500
    lines are cut, which the last one says.

    Args:
        rows: what to show.
        among: all rows of the source when ``rows`` are a selection of them, as for `torchkeep.rows.folding.fold`.
        notes: sentences to show below.

    Returns:
        One ``<div>`` without scripts, style sheets or references.
    """
    folded = fold(rows, among=among)
    lines = [_line("th", _COLUMNS), *(_line("td", _cells(entry)) for entry in folded[:_LINES])]
    if len(folded) > _LINES:
        lines.append(_line("td", [f"... {len(folded) - _LINES} more lines: print(table) shows them all"]))
    totals = total_lines(count((entry.rows[0], len(entry.rows)) for entry in folded)).splitlines()
    below = "".join(f"<div>{escape(printable(sentence))}</div>" for sentence in (*totals, *notes))
    return f'<div><table style="border-collapse:collapse">{"".join(lines)}</table>{below}</div>'


def _line(tag: str, cells: Sequence[str]) -> str:
    inner = "".join(f'<{tag} style="{_LEFT}">{escape(printable(cell))}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


def _cells(entry: FoldedRow) -> tuple[str, ...]:
    first = entry.rows[0]
    number = len(entry.rows)
    sizes = (f"{first.numel * number:,}", size_text(first.nbytes * number))
    aliases = ", ".join(entry.aliases)
    return (entry.pattern, str(number), shape_text(first.shape), first.dtype, *sizes, _state(first), aliases)


def _state(row: Row) -> str:
    if row.kind is None:
        return ""
    if row.kind == "buffer":
        return "buffer" if row.persistent else "buffer, not saved"
    return "trainable" if row.trainable else "frozen"
