"""`ParameterTable`: the parameters of a model, a state_dict, a file or a checkpoint, to look at and select."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchkeep.errors import TableError
from torchkeep.rows import Listing, Row
from torchkeep.selectors import Selector, as_literal, as_selector
from torchkeep.tables.freezing import require_grad
from torchkeep.tables.refusing import unknown_name
from torchkeep.tables.sources import Source, open_source

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from torchkeep.tables.statistics import Statistics

_REPR_LINES = 40
_NAMED = 5


def params(
    source: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str], select: str | Selector = "**"
) -> ParameterTable:
    """List the parameters (and buffers) of a model, a state_dict, a file or a checkpoint.

    Args:
        source: a module (wrapped or not), a mapping from names to tensors, or the path of a ``.safetensors``,
            ``.pt``, ``.pth`` or ``.bin`` file or of a folder of them, of which only headers are read now. Or a
            checkpoint: ``"STORE@1200"``, ``"STORE@latest"``, ``"STORE@best"``, or a `Checkpoint`; text is split at
            the last ``@`` unless there is such a path, a path object never.
        select: which tensors, as a selector.

    Returns:
        The table of the selected tensors, in the source's order.

    Raises:
        SourceError: ``source`` is nothing that parameters can be read from.
        StoreError: there is no such store or checkpoint.
        NoMatchError: ``select`` matches nothing.
        SelectorSyntaxError: ``select`` is no selector.
        MissingFieldError: ``select`` asks what this source does not know, such as classes in a state_dict.
        FormatError: the file is none that can be read, or is damaged.
        StorageError: the file can't be read.
    """
    opened = open_source(source)
    listing = opened.known()
    everything = isinstance(select, str) and select == "**"
    if everything:
        return ParameterTable(opened, listing, tuple(range(len(listing.rows))))
    return ParameterTable(opened, listing, tuple(as_selector(select).indices(listing)))


class ParameterTable:
    """Some tensors of one source, one row each; a tie is one row, under its owner's name.

    Which names a table holds is decided when it is made. What it tells about them is read when you ask: on a live
    module, rows, sums, tensors and the printed table follow ``requires_grad``, ``.to(...)``, ties and replaced
    layers; when the module loses one of the names, the table raises `TableError`. A table of a mapping keeps the
    tensors that the mapping held when the table was made; a table of a file lists the header as read then, and one
    of a checkpoint its manifest.

    ``print(table)`` shows every row, repeated blocks folded into one line. At the prompt a long table is cut to 40
    lines; notebooks show it as HTML. Tables are made by `params`, not by calling the class.

    Example:
        >>> table = tk.params(net, "encoder.**")
        >>> table["encoder.0.weight"]           # the live parameter
        >>> table.select("**.bias").freeze()
    """

    def __init__(self, source: Source, listing: Listing, positions: tuple[int, ...]) -> None:
        self._source = source
        self._listing = listing
        self._positions = positions
        self._cached: dict[str, Any] = {}

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows, in the source's order."""
        self._refresh()
        return self._own_rows()

    def names(self) -> list[str]:
        """Return the owner's name of each row: what `rows` and `tensors` run in parallel with."""
        return [row.name for row in self.rows]

    def tensors(self) -> list[Tensor]:
        """Return the tensor of each row: the live ones; of a file, each is read and verified now.

        Raises:
            DamageError: the file's bytes are not what was written.
        """
        self._refresh()
        return list(self._source.each(self._positions))

    def __len__(self) -> int:
        self._refresh()
        return len(self._positions)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of that name: the live one itself; of a file, only this one is read and verified now.

        Args:
            name: the owner's name or an alias, as it is or as a selector spells it (``0.'block 1'.0.bias``).

        Raises:
            NoMatchError: the table has no such name; the nearest ones are named.
            DamageError: the file's bytes are not what was written.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"a table is indexed by a tensor's name, not by {type(name).__name__}; rows: table.rows"
            )
        found = self._find(name)
        if found is None:
            raise unknown_name(name, self._own_rows(), self._own_listing().source, self._listing)
        return self._source.named(*found)

    def select(self, expr: str | Selector) -> ParameterTable:
        """Return the table of those of its tensors that ``expr`` selects.

        Levels such as ``blocks[-1]`` are counted among the names of this table.

        Raises:
            NoMatchError: nothing in this table matches.
            SelectorSyntaxError: ``expr`` is no selector.
            MissingFieldError: ``expr`` asks what the source does not know.
        """
        self._refresh()
        chosen = as_selector(expr).indices(self._own_listing())
        return self._with(self._positions[index] for index in chosen)

    def __or__(self, other: ParameterTable) -> ParameterTable:
        return self._combined(other, set.union, "|")

    def __and__(self, other: ParameterTable) -> ParameterTable:
        return self._combined(other, set.intersection, "&")

    def __sub__(self, other: ParameterTable) -> ParameterTable:
        return self._combined(other, set.difference, "-")

    @property
    def numel(self) -> int:
        """Number of elements in parameters, a tie once; where kinds are not known, in all tensors."""
        return sum(row.numel for row in self.rows if row.kind != "buffer")

    @property
    def nbytes(self) -> int:
        """Bytes of those elements."""
        return sum(row.nbytes for row in self.rows if row.kind != "buffer")

    @property
    def buffer_numel(self) -> int:
        """Number of elements in buffers; 0 where kinds are not known."""
        return sum(row.numel for row in self.rows if row.kind == "buffer")

    @property
    def buffer_nbytes(self) -> int:
        """Bytes of those elements."""
        return sum(row.nbytes for row in self.rows if row.kind == "buffer")

    def freeze(self) -> ParameterTable:
        """Set ``requires_grad`` of the table's parameters to False; buffers in the table are left as they are.

        Returns:
            The table itself.

        Raises:
            TableError: the source is no live module, or the table holds no parameter.
        """
        self._refresh()
        require_grad(self._source, self._own_rows(), self._positions, trainable=False)
        return self

    def unfreeze(self) -> ParameterTable:
        """Set ``requires_grad`` of the table's parameters to True; buffers in the table are left as they are.

        Returns:
            The table itself.

        Raises:
            TableError: the source is no live module, or the table holds no parameter, or one whose dtype can't
                have gradients; nothing was changed then.
        """
        self._refresh()
        require_grad(self._source, self._own_rows(), self._positions, trainable=True)
        return self

    def stats(self) -> Statistics:
        """Compute mean, std, min, max, norm, zeros, nan, inf and a histogram of every tensor in the table.

        Values on other devices come to the host chunk by chunk; a file is read tensor by tensor.

        Returns:
            One row of statistics for each row of the table.

        Raises:
            DamageError: the file's bytes are not what was written.
        """
        from torchkeep.tables.measuring import measure_all  # noqa: PLC0415 - used only sometimes

        self._refresh()
        return measure_all(zip(self._own_rows(), self._source.each(self._positions), strict=True))

    def __str__(self) -> str:
        from torchkeep.rows.text import render  # noqa: PLC0415 - used only sometimes

        self._refresh()
        return "\n".join([render(self._own_rows(), among=self._among()), *self._source.notes])

    def __repr__(self) -> str:
        lines = str(self).splitlines()
        if len(lines) <= _REPR_LINES:
            return "\n".join(lines)
        head, tail = _REPR_LINES - 10, 9
        hidden = f"... {len(lines) - head - tail} more lines: print(table) shows them all"
        return "\n".join([*lines[:head], hidden, *lines[-tail:]])

    def _repr_html_(self) -> str:
        from torchkeep.tables.html import table_html  # noqa: PLC0415 - used only in notebooks

        self._refresh()
        return table_html(self._own_rows(), self._among(), self._source.notes)

    def _refresh(self) -> None:
        """Look whether the source has changed; if so, find the table's names in what it is now."""
        listing = self._source.listing()
        if listing is not self._listing:
            self._positions = self._moved_to(listing)
            self._listing = listing
            self._cached.clear()

    def _moved_to(self, listing: Listing) -> tuple[int, ...]:
        """Find this table's tensors in another listing of its source, by any of their names."""
        index = {name: position for position, row in enumerate(listing.rows) for name in row.names}
        found, gone = set(), []
        for row in self._own_rows():
            positions = {index[name] for name in row.names if name in index}
            found |= positions
            if not positions:
                gone.append(row.name)
        if gone:
            few = ", ".join(gone[:_NAMED]) + (f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else "")
            raise TableError(f"{listing.source} has changed and has lost {few}; make a new table with tk.params")
        return tuple(sorted(found))

    def _own_rows(self) -> tuple[Row, ...]:
        rows = self._cached.get("rows")
        if rows is None:
            rows = self._cached["rows"] = tuple(self._listing.rows[position] for position in self._positions)
        return rows

    def _own_listing(self) -> Listing:
        """Return the listing that selectors see: the source's own where the table holds all of it."""
        if len(self._positions) == len(self._listing.rows):
            return self._listing
        listing = self._cached.get("listing")
        if listing is None:
            what = f"this table of {len(self._positions)} tensors of {self._listing.source}"
            listing = self._cached["listing"] = Listing(self._own_rows(), self._listing.modules, what)
        return listing

    def _among(self) -> Sequence[Row] | None:
        """Return all rows of the source when the table holds some of them: patterns shown must not select more."""
        return None if len(self._positions) == len(self._listing.rows) else self._listing.rows

    def _with(self, positions: Iterable[int]) -> ParameterTable:
        return ParameterTable(self._source, self._listing, tuple(positions))

    def _combined(
        self, other: ParameterTable, combine: Callable[[set[int], set[int]], set[int]], sign: str
    ) -> ParameterTable:
        if not isinstance(other, ParameterTable):
            return NotImplemented
        if not self._source.is_same(other._source):
            raise TableError(
                f"can't combine ({sign}) tables of two sources ({self._listing.source} and "
                f"{other._listing.source}); make both tables from the same object"
            )
        self._refresh()
        other._refresh()
        theirs = other._positions if other._listing is self._listing else other._moved_to(self._listing)
        return self._with(sorted(combine(set(self._positions), set(theirs))))

    def _find(self, name: str) -> tuple[int, str] | None:
        """Return where a name of this table stands in the listing, and how it is spelled there."""
        found = self._known(name)
        if found is None or not self._source.is_current(self._listing, *found):
            self._refresh()
            found = self._known(name)
        return found

    def _known(self, name: str) -> tuple[int, str] | None:
        index = self._index()
        key = name if name in index else as_literal(name)
        return (index[key], key) if key in index else None

    def _index(self) -> dict[str, int]:
        index = self._cached.get("index")
        if index is None:
            rows = zip(self._own_rows(), self._positions, strict=True)
            index = self._cached["index"] = {name: position for row, position in rows for name in row.names}
        return index
