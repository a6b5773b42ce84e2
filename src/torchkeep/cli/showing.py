"""``torchkeep show``: the tensors of a source, as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.formats import listing_of
from torchkeep.formats.locations import store_location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.rows import Listing, Row


def show(source: str, selector: str | None, *, stats: bool, as_json: bool) -> str:
    """List the tensors of a source.

    Args:
        source: path of a file or a folder, or ``STORE@STEP``.
        selector: which tensors; None for all of them.
        stats: whether to read the tensors and show statistics of their values.
        as_json: whether to answer with a JSON document instead of text.

    Returns:
        What is to be written, with a final newline.

    Raises:
        NoMatchError: the selector matches nothing.
        SelectorError: the selector can't be read, or asks what the source does not know.
        StoreError: there is no such store or checkpoint.
        FormatError: the file is not what it should be.
        StorageError: the file can't be read.
    """
    if stats:
        return _show_statistics(source, selector, as_json=as_json)
    listing = _listing(source)
    rows = listing.rows if selector is None else _selected(listing, selector)
    if as_json:
        from torchkeep.cli.documents import rows_document  # noqa: PLC0415 - text needs none of it

        return rows_document(source, selector, rows)
    from torchkeep.rows.text import render  # noqa: PLC0415 - JSON needs none of it

    return f"{render(rows, among=listing.rows)}\n"


def _listing(source: str) -> Listing:
    location = store_location(source)
    if location is None:
        return listing_of(source)
    from torchkeep.archive.described import listing_of as listing_of_checkpoint  # noqa: PLC0415 - most are files
    from torchkeep.archive.locating import checkpoint_at  # noqa: PLC0415 - same

    return listing_of_checkpoint(checkpoint_at(location).manifest)


def _selected(listing: Listing, selector: str) -> Sequence[Row]:
    from torchkeep.selectors import select  # noqa: PLC0415 - most listings are of everything

    return [listing.rows[position] for position in select(selector).indices(listing)]


def _show_statistics(source: str, selector: str | None, *, as_json: bool) -> str:
    from pathlib import Path  # noqa: PLC0415 - only needed here

    from torchkeep.tables.table import params  # noqa: PLC0415 - torch, which only reading tensors needs

    # A path object is always a path: text that names no file would be taken for something else altogether.
    named = source if store_location(source) is not None else Path(source)
    table = params(named, "**" if selector is None else selector)
    statistics = table.stats()
    if as_json:
        from torchkeep.cli.documents import rows_document  # noqa: PLC0415 - text needs none of it

        return rows_document(source, selector, table.rows, statistics)
    from torchkeep.rows.text import total_lines  # noqa: PLC0415 - JSON needs none of it
    from torchkeep.rows.totals import count  # noqa: PLC0415 - same

    return f"{statistics}\n\n{total_lines(count((row, 1) for row in table.rows))}\n"
