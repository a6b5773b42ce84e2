"""Rows as plain text: aligned columns, repeated blocks folded, totals below. Quick for thousands of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.dtypes import DTYPES
from torchkeep.names import printable
from torchkeep.rows.folding import fold
from torchkeep.rows.totals import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torchkeep.rows import Row
    from torchkeep.rows.folding import FoldedRow
    from torchkeep.rows.totals import Count, Totals

_HEADERS: Final = ("name", "count", "shape", "dtype", "elements", "size", "kind", "notes")
_ALIGN: Final = "<><<>><<"
_WIDEST_NAME: Final = 100
_ALIASES_SHOWN: Final = 3
_STEP: Final = 1024


def render(rows: Sequence[Row], *, among: Sequence[Row] | None = None) -> str:
    """Lay out rows as a table with totals below.

    One line stands for one tensor or for the tensors of a repeated block: the name is then a pattern such as
    ``layers[0:12].attn.weight``, the count says how many tensors it selects, and elements and size are theirs
    together. Names are spelled as selectors, so what is shown can be pasted back. A tied tensor stands once, under
    its owner, with its other names in the notes.

    Args:
        rows: what to show: ``listing.rows``, or a selection of them.
        among: all rows of the listing when ``rows`` are a selection of them, as for `torchkeep.rows.folding.fold`.

    Returns:
        The text, without a final newline.
    """
    folded = fold(rows, among=among)
    totals = total_lines(count((line.rows[0], len(line.rows)) for line in folded))
    return f"{table(_HEADERS, map(_cells, folded), _ALIGN)}\n\n{totals}" if folded else totals


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    r"""Lay out cells in aligned columns, two spaces apart.

    Wide characters (Chinese, say) count as two columns, combining ones as none. Characters that would disturb the
    table or the terminal (newlines, escapes, invisible marks) are shown as Python escapes them, such as ``\x1b``.
    A column without any text in its cells is left out. The last column runs on as long as it needs; a cell of the
    first one that is more than 100 columns wide stands on a line of its own, above the rest of its row.

    Args:
        headers: one for each column.
        rows: the cells; as many in each row as there are headers.
        align: ``<`` (left) or ``>`` (right) for each column; columns beyond its length go to the left.

    Returns:
        The line of headers and one for each row, without spaces at their ends and without a final newline.

    Raises:
        ValueError: a row has more or fewer cells than there are headers.
    """
    columns = list(zip(headers, *rows, strict=True))
    sides = align.ljust(len(columns), "<")
    shown = [place for place, (_, *cells) in enumerate(columns) if any(cells) or not cells]
    fitted = [
        _fit(
            columns[place],
            to_left=sides[place] == "<",
            widest=_WIDEST_NAME if place == 0 else None,
            runs_on=place == shown[-1],
        )
        for place in shown
    ]
    template = "  ".join(spec for spec, _ in fitted)
    return "\n".join([(template % cells).rstrip() for cells in zip(*(cells for _, cells in fitted), strict=True)])


def shape_text(shape: Sequence[int] | None) -> str:
    """Spell a shape as selectors do: ``64x3x7x7``; ``scalar`` for no dimensions, ``lazy`` for None."""
    if shape is None:
        return "lazy"
    return "x".join(map(str, shape)) or "scalar"


def size_text(nbytes: int) -> str:
    """Spell a number of bytes for people: ``512 B``, ``1.5 KiB``, ``13.0 GiB``."""
    if nbytes < _STEP:
        return f"{nbytes} B"
    size = nbytes / _STEP
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < _STEP - 0.05:  # from there on it would be rounded to 1024.0
            return f"{size:.1f} {unit}"
        size /= _STEP
    return f"{size:,.1f} EiB"


def total_lines(totals: Totals) -> str:
    """Say what rows come to: a line each for parameters, for buffers, and for tensors whose kind is not known.

    Returns:
        The lines, without a final newline; ``no tensors`` where there are none.
    """
    remarks = [
        f"{number:,} {remark}"
        for number, remark in (
            (totals.tied, "tied (counted once)"),
            (totals.lazy, "lazy (no elements yet)"),
            (totals.not_persistent, "not persistent"),
        )
        if number
    ]
    lines = [
        _total("parameter", totals.parameters, _training(totals)),
        _total("buffer", totals.buffers),
        _total("tensor", totals.unknown),
        f"among them: {', '.join(remarks)}" if remarks else "",
    ]
    return "\n".join(filter(None, lines)) or "no tensors"


def _total(noun: str, counted: Count, more: str = "") -> str:
    if not counted.tensors:
        return ""
    tensors = f"{counted.tensors:,} {noun}{'' if counted.tensors == 1 else 's'}"
    elements = f"{counted.numel:,} element{'' if counted.numel == 1 else 's'}"
    return f"{tensors}: {elements}, {size_text(counted.nbytes)}{more}"


def _training(totals: Totals) -> str:
    """Say how much of the parameters is trainable, where that is known."""
    trainable, frozen = totals.trainable, totals.frozen
    if not frozen.tensors:
        return " (all trainable)" if trainable.tensors else ""
    if not trainable.tensors:
        return " (all frozen)"
    return f" ({trainable.numel:,} trainable, {frozen.numel:,} frozen)"


def _cells(line: FoldedRow) -> tuple[str, ...]:
    """Return what the table shows of one line."""
    row, times = line.rows[0], len(line.rows)
    numel = row.numel * times
    return (
        line.pattern,
        f"x{times}" if times > 1 else "",
        shape_text(row.shape),
        row.dtype,
        "" if row.lazy else f"{numel:,}",
        "" if row.lazy else size_text(numel * DTYPES[row.dtype].itemsize),
        row.kind or "",
        _notes(row, line.aliases),
    )


def _notes(row: Row, aliases: tuple[str, ...]) -> str:
    """Say what is unusual about a row; aliases come last, since they may be long."""
    notes = []
    if row.kind == "parameter" and row.trainable is False:
        notes.append("frozen")
    if not row.persistent:
        notes.append("not persistent")
    if row.device != "cpu":
        notes.append(row.device)
    if aliases:
        more = len(aliases) - _ALIASES_SHOWN
        named = ", ".join(aliases[:_ALIASES_SHOWN])
        notes.append(f"tied to {named} and {more:,} more" if more > 0 else f"tied to {named}")
    return ", ".join(notes)


def _fit(cells: Sequence[str], *, to_left: bool, widest: int | None, runs_on: bool) -> tuple[str, Sequence[str]]:
    """Make the cells of a column equally wide.

    Args:
        cells: the header and the cells.
        to_left: whether they are padded on the right.
        widest: the width beyond which a cell stands on a line of its own; None for none.
        runs_on: whether this is the last column, which needs no padding on the right.

    Returns:
        How ``%`` is to format each cell, and the cells.
    """
    joined = "".join(cells)
    plain = joined.isascii() and joined.isprintable()
    if not plain:
        cells = list(map(printable, cells))
    widths = list(map(len if plain else _width, cells))
    width = max(found for found in widths if widest is None or found <= widest)
    if to_left and runs_on and width == max(widths):
        return "%s", cells
    if plain and width == max(widths):
        return f"%{'-' if to_left else ''}{width}s", cells
    gaps = [" " * (width - found) for found in widths]
    padded = [cell + gap if to_left else gap + cell for cell, gap in zip(cells, gaps, strict=True)]
    if width < max(widths):
        padded = [
            f"{cell}\n{' ' * width}" if found > width else cell for cell, found in zip(padded, widths, strict=True)
        ]
    return "%s", padded


def _width(text: str) -> int:
    """Return how many columns a terminal gives to ``text``."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - few names need it, and it takes long to import

    return cell_len(text)
