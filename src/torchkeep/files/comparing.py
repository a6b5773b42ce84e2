"""Compare the tensors of two files by name: what only one has, what changed, and by how much values differ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from torchkeep.files.measuring import Difference, difference, same_bytes
from torchkeep.rows import Listing, Row
from torchkeep.rows.text import shape_text
from torchkeep.selectors import select
from torchkeep.tensors.elements import opened_elements

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from torchkeep.storage.base import Storage
    from torchkeep.tensors.elements import Elements


class Compared(Struct, frozen=True):
    """A tensor that both have.

    Attributes:
        name: a name that it has in both: the first's owner, where that is one.
        rows: what each says of it.
        changes: what differs in what they say: ``"shape"``, ``"dtype"``, ``"kind"``, ``"values"`` (only one has
            any).
        equal: whether the bits are equal; False for another shape or dtype.
        difference: how far apart the values are; None where they are equal, can't be compared, or shapes differ.
    """

    name: str
    rows: tuple[Row, Row]
    changes: tuple[str, ...]
    equal: bool
    difference: Difference | None


class Comparison(Struct, frozen=True):
    """What two sources have in common and what not.

    Attributes:
        listings: of both.
        only: the rows whose names only the first has, and only the second.
        ties: names that both have, tied in the first only, and in the second only.
        common: tensors that both have, in the first's order.
    """

    listings: tuple[Listing, Listing]
    only: tuple[tuple[Row, ...], tuple[Row, ...]]
    ties: tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]
    common: tuple[Compared, ...]

    @property
    def differing(self) -> tuple[Compared, ...]:
        """Tensors that both have and that are not the same in all."""
        return tuple(one for one in self.common if one.changes or not one.equal)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (any(self.only) or any(self.ties) or self.differing)


def compare(
    storage: Storage, first: str | os.PathLike[str], second: str | os.PathLike[str], selector: str | None = None
) -> Comparison:
    """Compare two files, indexes or folders; what is read is verified.

    Args:
        storage: where they are.
        first: one path.
        second: the other.
        selector: which tensors; those that it selects in either are compared.

    Raises:
        NoMatchError: the selector matches nothing in either.
        SelectorError: it can't be read, or asks what a source does not know.
        DamageError: what was read is not what was written.
        FormatError: a source is not what it should be.
        StorageError: a source can't be read.
    """
    with (
        opened_elements(storage, first) as left,
        opened_elements(storage, second) as right,
        ThreadPoolExecutor(1) as executor,
    ):
        listings = left.listing, right.listing
        mine, theirs = _chosen(listings, selector)
        in_left, in_right = _by_name(mine), _by_name(theirs)
        pairs: dict[tuple[str, str], str] = {}
        for name, row in in_left.items():
            if name in in_right:
                pairs.setdefault((row.name, in_right[name].name), name)
        common = tuple(
            _compared(left, right, name, (in_left[name], in_right[name]), executor) for name in pairs.values()
        )
        left.finish()
        right.finish()
    return Comparison(
        listings,
        (_only(mine, in_right), _only(theirs, in_left)),
        (_tied(mine, in_right), _tied(theirs, in_left)),
        common,
    )


def _chosen(listings: tuple[Listing, Listing], selector: str | None) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the rows to compare: what is selected in either, and what has one of its names in the other."""
    if selector is None:
        return listings[0].rows, listings[1].rows
    allowed = select(selector, allow_empty=True)
    chosen = [[listing.rows[position] for position in allowed.indices(listing)] for listing in listings]
    if not any(chosen):
        select(selector).indices(listings[0])  # raises, with the nearest names
    names = {name for rows in chosen for row in rows for name in row.names}
    first, second = ([row for row in listing.rows if names.intersection(row.names)] for listing in listings)
    return first, second


def _by_name(rows: Iterable[Row]) -> dict[str, Row]:
    return {name: row for row in rows for name in row.names}


def _only(rows: Sequence[Row], others: Mapping[str, Row]) -> tuple[Row, ...]:
    """Return rows of the names that the other source does not have."""
    found = []
    for row in rows:
        missing = [name for name in row.names if name not in others]
        if len(missing) == len(row.names):
            found.append(row)
        else:
            found.extend(msgspec.structs.replace(row, name=name, aliases=()) for name in missing)
    return tuple(found)


def _tied(rows: Sequence[Row], others: Mapping[str, Row]) -> tuple[tuple[str, ...], ...]:
    """Return the names, known to both, that are one tensor here and several there."""
    found = []
    for row in rows:
        names = tuple(name for name in row.names if name in others)
        if len({others[name].name for name in names}) > 1:
            found.append(names)
    return tuple(found)


def _compared(left: Elements, right: Elements, name: str, rows: tuple[Row, Row], executor: Executor) -> Compared:
    mine, theirs = rows
    changes = [what for what in ("shape", "dtype") if getattr(mine, what) != getattr(theirs, what)]
    if None not in {mine.kind, theirs.kind} and mine.kind != theirs.kind:
        changes.append("kind")
    empty = [row.device == "meta" for row in rows]
    equal, found = all(empty), None
    if any(empty):
        changes.extend(() if equal else ("values",))
    elif "shape" not in changes:
        equal = "dtype" not in changes and same_bytes(left, right, rows, executor)
        found = None if equal else difference(left, right, rows)
    return Compared(name, rows, tuple(changes), equal and not {"shape", "dtype"} & set(changes), found)


def changed_text(one: Compared) -> str:
    """Say what changed in what the sources say of a tensor: ``shape 2x3 -> 3x2, dtype float32 -> float16``."""
    mine, theirs = one.rows
    texts = []
    for change in one.changes:
        if change == "values":
            texts.append("values only in the " + ("second" if mine.device == "meta" else "first"))
        elif change == "shape":
            texts.append(f"shape {shape_text(mine.shape)} -> {shape_text(theirs.shape)}")
        else:
            texts.append(f"{change} {getattr(mine, change)} -> {getattr(theirs, change)}")
    return ", ".join(texts)
