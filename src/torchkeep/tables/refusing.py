"""What a table says of a name that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.errors import NoMatchError
from torchkeep.selectors.suggest import alternatives, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.rows import Listing, Row


def unknown_name(name: str, rows: Sequence[Row], table: str, listing: Listing) -> NoMatchError:
    """Build the error for a name that no row has.

    Args:
        name: what was asked for.
        rows: the table's rows.
        table: what to call the table.
        listing: all rows of its source.
    """
    close = tuple(row.name for row in rows if name in row.plain)
    if close:
        sentence = f"{name!r} is computed from {' and '.join(close)}; ask for these"
    elif any(name in row.names for row in listing.rows):
        sentence = f"{name!r} is in {listing.source}, but not in this table of {len(rows)} selected tensors"
    else:
        close = nearest(name, (known for row in rows for known in row.names))
        hint = f"; did you mean {alternatives(close)}?" if close else ""
        sentence = f"{table} has no tensor named {name!r}{hint}"
    error = NoMatchError(sentence)
    error.wanted, error.nearest = name, close
    return error
