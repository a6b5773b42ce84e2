"""``torchkeep diff``: what differs between two files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torchkeep.cli.endings import DONE, NO, Answer
from torchkeep.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torchkeep.files.comparing import Compared, Comparison
    from torchkeep.rows import Listing, Row


def diff(first: str, second: str, selector: str | None, *, as_json: bool) -> Answer:
    """Compare the tensors of two sources.

    Args:
        first: path of one.
        second: path of the other.
        selector: which tensors; None for all of them.
        as_json: whether to answer with a JSON document instead of text.

    Returns:
        The answer; its code is "no" when anything differs.

    Raises:
        NoMatchError: the selector matches nothing in either.
        SelectorError: the selector can't be read, or asks what a source does not know.
        FormatError: a source is not what it should be.
        StorageError: a source can't be read.
    """
    from torchkeep.files.comparing import compare  # noqa: PLC0415 - torch, which other commands don't need
    from torchkeep.storage.local import LOCAL  # noqa: PLC0415 - same

    found = compare(LOCAL, first, second, selector)
    code = DONE if found.same else NO
    if as_json:
        from torchkeep.cli.documents import diff_document  # noqa: PLC0415 - text needs none of it

        return Answer(diff_document(first, second, selector, found), code)
    return Answer("\n\n".join(_sections(first, second, found)) + "\n", code)


_HEADERS: Final = ("name", "count", "change", "elements", "differing", "not finite", "max abs", "relative norm")


def _sections(first: str, second: str, found: Comparison) -> Iterator[str]:
    from torchkeep.rows.text import table  # noqa: PLC0415 - JSON needs none of it

    sources = (printable(first), printable(second))
    for source, listing, rows in zip(sources, found.listings, found.only, strict=True):
        if rows:
            headers = ("name", "count", "shape", "dtype", "tied to")
            yield f"only in {source}:\n{table(headers, _only_lines(listing, rows), '<>')}"
    if found.differing:
        yield f"different:\n{table(_HEADERS, _lines(found.listings[0], found.differing), '<><>>>>>')}"
    for source, ties in zip(sources, found.ties, strict=True):
        if ties:
            shown = (f"  {printable(' = '.join(names))}" for names in ties)
            yield "\n".join([f"tied in {source} only:", *shown])
    yield _summary(found)


def _only_lines(listing: Listing, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    from torchkeep.names import quote_name  # noqa: PLC0415 - only text needs these
    from torchkeep.rows.folding import fold  # noqa: PLC0415
    from torchkeep.rows.text import shape_text  # noqa: PLC0415

    known = {row.name for row in listing.rows}
    for line in fold([row for row in rows if row.name in known], among=listing.rows):
        row, number = line.rows[0], len(line.rows)
        count = f"x{number}" if number > 1 else ""
        yield line.pattern, count, shape_text(row.shape), row.dtype, ", ".join(line.aliases)
    for row in rows:
        if row.name not in known:  # an alias of a tensor that the other has under another name
            yield quote_name(row.name), "", shape_text(row.shape), row.dtype, ""


def _lines(listing: Listing, differing: Sequence[Compared]) -> list[tuple[str, ...]]:
    from torchkeep.files.comparing import changed_text  # noqa: PLC0415 - torch, which is there by now
    from torchkeep.names import quote_name  # noqa: PLC0415 - only text needs these
    from torchkeep.rows.folding import fold  # noqa: PLC0415

    # What is told on one line has changed alike, and is known by its owner's name; a tie that is one tensor here
    # and several there has several lines.
    groups: dict[tuple[str, bool], list[Row]] = {}
    by_name = {one.name: one for one in differing}
    lines = []
    for one in differing:
        if one.name == one.rows[0].name:
            groups.setdefault((changed_text(one), one.difference is None), []).append(one.rows[0])
        else:
            lines.append((quote_name(one.name), changed_text(one), [one]))
    for (change, _), rows in groups.items():
        folded = fold(rows, among=listing.rows)
        lines.extend((line.pattern, change, [by_name[row.name] for row in line.rows]) for line in folded)
    order = {one.name: position for position, one in enumerate(differing)}
    return [
        (pattern, f"x{len(members)}" if len(members) > 1 else "", *_cells(change, members))
        for pattern, change, members in sorted(lines, key=lambda line: order[line[2][0].name])
    ]


def _cells(change: str, members: Sequence[Compared]) -> tuple[str, ...]:
    """Sum up tensors on one line: how many elements differ, and the greatest of the distances."""
    elements = sum(one.rows[0].numel for one in members)
    found = [one.difference for one in members if one.difference is not None]
    if not found:
        return change or "bits", f"{elements:,}", "", "", "", ""
    differing = sum(one.differing for one in found)
    not_finite = sum(one.not_finite for one in found)
    relative = max(float("inf") if one.relative is None else one.relative for one in found)
    return (
        change or ("values" if differing else "bits"),
        f"{elements:,}",
        f"{differing:,}",
        f"{not_finite:,}" if not_finite else "",
        f"{max(one.max_abs for one in found):.3g}",
        f"{relative:.3g}",
    )


def _summary(found: Comparison) -> str:
    common, differing = len(found.common), len(found.differing)
    if found.same:
        return f"no difference: {common} tensor{'' if common == 1 else 's'}, equal bit for bit"
    first, second = map(len, found.only)
    return (
        f"{common} tensor{'' if common == 1 else 's'} in both: {common - differing} equal bit for bit, "
        f"{differing} different; {first} only in the first, {second} only in the second"
    )
