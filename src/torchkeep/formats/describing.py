"""Rows out of what is kept of them: names, kinds and classes, as they were in the live module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.errors import FormatError
from torchkeep.names import join, natural_key, parent
from torchkeep.rows import Kind, Row, TypeInfo

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torchkeep.formats.document import ModuleFacts


class Known:
    """What one module knew of its tensors.

    Args:
        facts: as they were kept; their names are the module's own.
        prefix: the path that the module itself has; empty where the names are its own.

    Attributes:
        prefix: as given.
        modules: class of each module by its path, the prefix included.
    """

    def __init__(self, facts: ModuleFacts, prefix: str = "") -> None:
        types = [TypeInfo(lineage) for lineage in facts.lineages]
        self.prefix = prefix
        self.modules = {join(prefix, path): types[index] for path, index in facts.modules.items()}
        self._buffers, self._frozen = frozenset(facts.buffers), frozenset(facts.frozen)
        self._plain = facts.plain
        self._cut = len(prefix) + 1 if prefix else 0

    def row(self, names: tuple[str, ...], shape: tuple[int, ...], dtype: str, own: str | None = None) -> Row:
        """Return the row of one of the module's tensors.

        Args:
            names: the owner, then the aliases.
            shape: sizes.
            dtype: torch's name.
            own: the one of the names that the module's facts have; the owner where it is left out.
        """
        name = names[0] if own is None else own
        inside = name[self._cut :]
        kind: Kind = "buffer" if inside in self._buffers else "parameter"
        trainable = kind == "parameter" and inside not in self._frozen
        plain = tuple(join(self.prefix, one) for one in self._plain.get(inside, ()))
        found = self.modules.get(parent(plain[0] if plain else name))
        module_type = found.name if found else None
        return Row(names[0], shape, dtype, "cpu", kind, True, trainable, module_type, names[1:], plain)  # noqa: FBT003 - Row's order

    def knows(self, name: str) -> bool:
        """Tell whether the facts say something of a tensor besides that it is a trainable parameter."""
        inside = name[self._cut :]
        return inside in self._buffers or inside in self._frozen or inside in self._plain


def names_of_ties(aliases: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the further names of each owner that has some, in natural order."""
    found: dict[str, list[str]] = {}
    for alias, owner in aliases.items():
        found.setdefault(owner, []).append(alias)
    return {owner: tuple(sorted(names, key=natural_key)) for owner, names in found.items()}


def check_facts(facts: ModuleFacts, known: Collection[str]) -> None:
    """Compare facts with the names of the tensors that they may speak of.

    Raises:
        FormatError: they speak of others, or contradict themselves; the sentence is to be completed.
    """
    check_within(facts.buffers, known, "buffers")
    check_within(facts.frozen, known, "frozen")
    check_within(facts.plain, known, "plain")
    if any(index >= len(facts.lineages) for index in facts.modules.values()):
        raise FormatError("a module's class is not among the lineages")


def check_within(names: Iterable[str], known: Collection[str], field: str) -> None:
    """Refuse names that are not known; raises what `check_facts` does."""
    for name in names:
        if name not in known:
            raise FormatError(f"{field} names {name!r}, which is none of its tensors")
