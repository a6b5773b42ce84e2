"""Freezing and unfreezing the parameters of a live module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.errors import TableError
from torchkeep.tables.sources import ModuleSource, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.rows import Row


def require_grad(source: Source, rows: Sequence[Row], positions: Sequence[int], *, trainable: bool) -> None:
    """Set ``requires_grad`` of every Parameter behind some rows, under all their names; buffers are left alone.

    Args:
        source: where the rows come from, just listed.
        rows: the rows.
        positions: of the rows in the source's listing.
        trainable: what to set it to.

    Raises:
        TableError: the source is no live module, or the rows hold no parameter, or one that can't be trained;
            nothing was changed then.
    """
    verb = "unfreeze" if trainable else "freeze"
    if not isinstance(source, ModuleSource):
        raise TableError(f"can't {verb} {source.listing().source}: only the parameters of a live module train")
    parameters = [
        (row, place.tensor)
        for row, position in zip(rows, positions, strict=True)
        for place in source.survey.places[position]
        if place.kind == "parameter"
    ]
    if not parameters:
        raise TableError(f"can't {verb} this table: it holds no parameter ({len(rows)} tensors)")
    wrong = [row for row, tensor in parameters if not (tensor.is_floating_point() or tensor.is_complex())]
    if trainable and wrong:
        listed = ", ".join(f"{row.name} ({row.dtype})" for row in dict.fromkeys(wrong))
        raise TableError(
            f"can't unfreeze {listed}: only floating-point and complex parameters have gradients; "
            "leave them out of the selection (nothing was changed)"
        )
    for _, tensor in parameters:
        tensor.requires_grad_(trainable)
