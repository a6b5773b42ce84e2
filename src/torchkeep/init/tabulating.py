"""Lay out a plan as text or HTML: one line for each tensor, or for those of a repeated block."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from torchkeep.init.initializers import Initializer
from torchkeep.names import quote_name
from torchkeep.rows import Row
from torchkeep.rows.folding import fold
from torchkeep.rows.text import shape_text, table

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADERS: Final = ("name", "count", "shape", "initializer", "fan_in", "fan_out", "std", "rule", "notes")
_ALIGN: Final = "<><<>>><<"
_HTML_LINES: Final = 500


class InitRow(Struct, frozen=True):
    """What one tensor is filled with.

    Attributes:
        name: canonical name; of a weight that its module computes from others, the plain one.
        rule: the selector of the rule that claims it.
        initializer: what that rule gives.
        shape: global shape; None while lazy.
        dtype: torch's name without ``torch.``.
        fan_in: as `torch.nn.init` counts it; None below 2 dimensions.
        fan_out: likewise.
        std: the expected standard deviation of the values; None where it is not known.
        aliases: the other names of the same tensor.
        overridden: the selectors of earlier rules that matched too, each with the names under which it did.
    """

    name: str
    rule: str
    initializer: Initializer
    shape: tuple[int, ...] | None
    dtype: str
    fan_in: int | None = None
    fan_out: int | None = None
    std: float | None = None
    aliases: tuple[str, ...] = ()
    overridden: tuple[tuple[str, tuple[str, ...]], ...] = ()


def text_table(rows: Sequence[InitRow], seed: int) -> str:
    """Lay out a plan in aligned columns, repeated blocks folded, with a line below that sums it up."""
    lines = _lines(rows)
    below = summary(rows, seed)
    return f"{table(_HEADERS, lines, _ALIGN)}\n\n{below}" if lines else below


def html_table(rows: Sequence[InitRow], seed: int) -> str:
    """Lay out a plan as a small piece of HTML without scripts or style sheets, at most 500 lines of it."""
    lines = _lines(rows)
    shown = [_html_line("th", _HEADERS), *(_html_line("td", line) for line in lines[:_HTML_LINES])]
    if len(lines) > _HTML_LINES:
        shown.append(_html_line("td", [f"... {len(lines) - _HTML_LINES} more lines: print(plan) shows them all"]))
    below = f"<div>{escape(summary(rows, seed))}</div>"
    return f'<div><table style="border-collapse:collapse">{"".join(shown)}</table>{below}</div>'


def summary(rows: Sequence[InitRow], seed: int) -> str:
    """Say in one line what a plan covers."""
    kept = sum(row.initializer.title == "keep" for row in rows)
    tensors = f"{len(rows) - kept:,} tensor{'' if len(rows) - kept == 1 else 's'} to fill"
    return f"{tensors}, {kept:,} kept as they are, seed {seed}"


def _lines(rows: Sequence[InitRow]) -> list[tuple[str, ...]]:
    by_name = {row.name: row for row in rows}
    # The columns that a line shows stand for the class of the module: what differs in them does not fold.
    stand_ins = [
        Row(row.name, row.shape, row.dtype, module_type="\0".join(_plain_cells(row)), aliases=row.aliases)
        for row in rows
    ]
    lines = []
    for entry in fold(stand_ins):
        row = by_name[entry.rows[0].name]
        times = f"x{len(entry.rows)}" if len(entry.rows) > 1 else ""
        tied = [f"tied to {', '.join(entry.aliases)}"] if entry.aliases else []
        *cells, overridden = _plain_cells(row)
        notes = "; ".join(filter(None, [*tied, overridden]))
        lines.append((entry.pattern, times, shape_text(row.shape), *cells, notes))
    return lines


def _plain_cells(row: InitRow) -> tuple[str, ...]:
    """Return the columns from the initializer to the notes; of the notes, which rules were overridden."""
    overridden = ", ".join(
        repr(rule) + (f" (as {', '.join(map(quote_name, names))})" if row.aliases else "")
        for rule, names in row.overridden
    )
    return (
        repr(row.initializer),
        "" if row.fan_in is None else str(row.fan_in),
        "" if row.fan_out is None else str(row.fan_out),
        "" if row.std is None else f"{row.std:.3g}",
        row.rule,
        f"overrides {overridden}" if overridden else "",
    )


def _html_line(tag: str, cells: Sequence[str]) -> str:
    inner = "".join(f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"
