"""Folding: repeated blocks shown once, as ``layers[0:12].attn.weight``, a pattern that pastes back as a selector.

Names are cut at their numeric segments: ``layers.3.attn.weight`` is the tensor ``.attn.weight`` of block ``3``
at the level ``.layers``. Blocks of a level fold when no other number present there falls between theirs and
everything in them is the same: relative names, what the rows say of the tensors, ties, the numbers present
further down. Each block gets a number that stands for all of that (its *signature*), so comparing two blocks
costs nothing and the whole takes time linear in the length of the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from torchkeep.names import quote_name, quote_segment
from torchkeep.rows import Row

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

_NUMBER: Final = re.compile(r"\.([0-9]{1,18})(?![^.])")
"""A numeric segment, as selectors understand it, with the dot before it."""
_TOO_LARGE: Final = 10**18 - 1
"""The largest number; a slice that holds it would have to end with one digit more."""
_DEEPEST: Final = 32
_NOTHING: Final = 0
"""Signature of what holds no row that is being folded."""


class FoldedRow(Struct, frozen=True, gc=False):
    """One line of a folded listing.

    Attributes:
        pattern: a selector that selects exactly ``rows`` of the listing they were folded in.
        rows: the rows it stands for, in the listing's order; they differ in nothing but their names.
        aliases: for tied tensors, the patterns of the other names, in the order of the first row's ``aliases``.
    """

    pattern: str
    rows: tuple[Row, ...]
    aliases: tuple[str, ...] = ()


def fold(rows: Sequence[Row], *, among: Sequence[Row] | None = None) -> list[FoldedRow]:
    """Fold repeated blocks of a listing.

    Args:
        rows: the rows to show.
        among: all rows of the listing that the patterns will be pasted back to, when ``rows`` are a selection of
            them. None: ``rows`` are all of it.

    Returns:
        A partition of ``rows``, ordered by the first row of each part. A listing in which some name has more than
        32 numeric segments is left unfolded: no model has such names.
    """
    try:
        tree = _Tree(rows, rows if among is None else among)
    except _NotFoldableError:
        return [FoldedRow(quote_name(row.name), (row,), tuple(map(quote_name, row.aliases))) for row in rows]
    groups: dict[str, list[Row]] = {}
    lines: list[tuple[str, Row, list[Row] | None]] = []
    for row, (pattern, repeated) in zip(rows, tree.patterns(), strict=True):
        if not repeated:
            lines.append((pattern, row, None))
        elif pattern in groups:
            groups[pattern].append(row)
        else:
            groups[pattern] = [row]
            lines.append((pattern, row, groups[pattern]))
    return [
        FoldedRow(
            pattern,
            (row,) if group is None else tuple(group),
            tuple(map(tree.pattern, row.aliases)) if row.aliases else (),
        )
        for pattern, row, group in lines
    ]


class _NotFoldableError(Exception):
    """A name has too many numbers, so nothing is folded."""


class _Level:
    """The numbered blocks under one path.

    Attributes:
        blocks: each by its number as written.
        open: numbers of the blocks that hold one end of a tie that leads out of them, so that they can't fold.
    """

    __slots__ = ("blocks", "open")

    def __init__(self) -> None:
        self.blocks: dict[str, _Block] = {}
        self.open: set[str] = set()


class _Block:
    """What stands below one number, or below the root.

    Attributes:
        leaves: signature of each tensor name in no deeper block, relative to this one.
        levels: the levels directly in this block, by relative path; None for none.
        ties: names, relative to this block, of each tie all of whose names stand in it and in no deeper block;
            None for none.
        run: the slice that the block folds to with its neighbours, such as ``[0:12]``; empty where it does not.
        pattern: what the block's path folds to, with a dot before each segment.
        repeated: whether the pattern stands for several blocks.
    """

    __slots__ = ("leaves", "levels", "pattern", "repeated", "run", "ties")

    def __init__(self) -> None:
        self.leaves: dict[str, int] = {}
        self.levels: dict[str, _Level] | None = None
        self.ties: list[Hashable] | None = None
        self.run = ""
        self.pattern = ""
        self.repeated = False


class _Tree:
    """All names of a listing by the blocks they stand in, and what folds."""

    def __init__(self, rows: Sequence[Row], everything: Sequence[Row]) -> None:
        self._root = _Block()
        self._known: dict[Hashable, int] = {None: _NOTHING}
        self._unique = 0
        self._spelled: dict[str, str] = {}
        self._places = [self._add(row.name, self._signature_of(row)) for row in rows]
        if everything is not rows:
            shown = {row.name for row in rows}
            hidden = (row for row in everything if row.name not in shown)
            self._add_foreign(name for row in hidden for name in (*row.names, *row.plain))
        for row in rows:
            if row.aliases or row.plain:
                self._add_foreign(row.aliases + row.plain)
                self._tie(row)
        self._close(self._root)
        self._open(self._root)

    def patterns(self) -> Iterator[tuple[str, bool]]:
        """Return the pattern of each row, and whether it may stand for several."""
        for block, leaf in self._places:
            yield (block.pattern + self._spell(leaf)).removeprefix("."), block.repeated

    def pattern(self, name: str) -> str:
        """Return the pattern that any name in the tree folds to."""
        block, leaf = self._place(name)
        return (block.pattern + self._spell(leaf)).removeprefix(".")

    def _spell(self, path: str) -> str:
        """Spell as a selector does what stands between two numbers; each segment comes with the dot before it."""
        found = self._spelled.get(path)
        if found is None:
            found = self._spelled[path] = _quote(path)
        return found

    def _place(self, name: str) -> tuple[_Block, str]:
        """Return the block that a name stands in, made when it is new, and the rest of the name."""
        parts = _NUMBER.split("." + name)
        block = self._root
        for place in range(1, len(parts), 2):
            block = self._step(block, parts[place - 1], parts[place])
        if len(parts) > 2 * _DEEPEST + 1:
            raise _NotFoldableError
        return block, parts[-1]

    def _step(self, block: _Block, path: str, number: str) -> _Block:
        """Go from a block to a numbered one directly in it, made when it is new."""
        if block.levels is None:
            block.levels = {}
        level = block.levels.get(path)
        if level is None:
            level = block.levels[path] = _Level()
        found = level.blocks.get(number)
        if found is None:
            found = level.blocks[number] = _Block()
        return found

    def _add(self, name: str, signature: int) -> tuple[_Block, str]:
        block, leaf = self._place(name)
        if leaf in block.leaves and (signature or block.leaves[leaf]):
            # Two tensors answer to this name: no pattern selects only one of them, so it is like no other.
            self._unique -= 1
            signature = self._unique
        block.leaves[leaf] = signature
        return block, leaf

    def _add_foreign(self, names: Iterable[str]) -> None:
        """Add names that show no row of their own, but are found by selectors and whose numbers are present."""
        for name in names:
            self._add(name, _NOTHING)

    def _signature_of(self, row: Row) -> int:
        """Number the row by all that the rows of one line share."""
        facts = (
            row.shape,
            row.dtype,
            row.device,
            row.kind,
            row.persistent,
            row.trainable,
            row.module_type,
        )
        return self._known.setdefault(facts, len(self._known))

    def _tie(self, row: Row) -> None:
        """Note a tie in the smallest block that holds all its names; none in there that holds some can fold."""
        paths = [_NUMBER.split("." + name)[:-1] for name in (*row.names, *row.plain)]
        shared = 0
        while all(path[shared : shared + 2] == paths[0][shared : shared + 2] != [] for path in paths):
            shared += 2
        home = self._root
        for place in range(0, shared, 2):
            home = self._step(home, paths[0][place], paths[0][place + 1])
        for path in paths:
            block = home
            for place in range(shared, len(path), 2):
                assert block.levels is not None
                block.levels[path[place]].open.add(path[place + 1])
                block = self._step(block, path[place], path[place + 1])
        cut = sum(map(len, paths[0][:shared])) + shared // 2
        names = ((row.name,), row.aliases, row.plain)
        home.ties = home.ties or []
        home.ties.append(tuple(tuple(f".{name}"[cut:] for name in part) for part in names))

    def _close(self, block: _Block) -> int:
        """Find what folds in a block, the deepest levels first, and return the block's signature."""
        leaves = block.leaves
        if _NOTHING in leaves.values():
            leaves = {leaf: signature for leaf, signature in leaves.items() if signature != _NOTHING}
        facts: Hashable = frozenset(leaves.items()) if len(leaves) > 1 else (*leaves.items(),)
        if block.levels is not None or block.ties is not None:
            below = {path: self._close_level(level) for path, level in (block.levels or {}).items()}
            if not leaves and not any(signature for level in below.values() for _, signature in level):
                return _NOTHING
            facts = (facts, frozenset(below.items()), frozenset(block.ties or ()))
        elif not leaves:
            return _NOTHING
        return self._known.setdefault(facts, len(self._known))

    def _close_level(self, level: _Level) -> frozenset[tuple[str, int]]:
        """Find the runs of equal neighbours at a level, and return the signature of each number."""
        signatures = {number: self._close(block) for number, block in level.blocks.items()}
        run: list[tuple[int, _Block]] = []
        running = _NOTHING
        for value, number in _in_order(signatures):
            signature = _NOTHING if number is None or number in level.open else signatures[number]
            if signature == _NOTHING or signature != running:
                _keep(run)
                run = []
            if number is not None:
                run.append((value, level.blocks[number]))
            running = signature
        _keep(run)
        return frozenset(signatures.items())

    def _open(self, block: _Block) -> None:
        """Spell the patterns of all blocks in this one."""
        for path, level in (block.levels or {}).items():
            start = block.pattern + self._spell(path)
            for number, below in level.blocks.items():
                below.pattern = start + (below.run or "." + number)
                below.repeated = block.repeated or below.run != ""
                if below.levels is not None:
                    self._open(below)


def _in_order(numbers: Iterable[str]) -> list[tuple[int, str | None]]:
    """Sort numbers by value; None stands for what no slice should hold: ``3`` and ``03`` side by side."""
    spelled: dict[int, str | None] = {}
    for number in numbers:
        value = int(number)
        spelled[value] = None if value in spelled or value == _TOO_LARGE else number
    return sorted(spelled.items())


def _keep(run: list[tuple[int, _Block]]) -> None:
    """Note the slice of blocks that fold."""
    if len(run) > 1:
        spelled = f"[{run[0][0]}:{run[-1][0] + 1}]"
        for _, block in run:
            block.run = spelled


def _quote(path: str) -> str:
    """Spell segments as a selector does, each with the dot before it."""
    # The usual case in C: letters, digits, underscores, no empty segment.
    if path.isascii() and path.replace(".", "_").isidentifier() and ".." not in path and path[-1] != ".":
        return path
    return "".join("." + quote_segment(segment) for segment in path.split(".")[1:])
