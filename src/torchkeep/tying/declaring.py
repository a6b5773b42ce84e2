"""See the ties of a model, and tie parameters."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

from torchkeep.errors import TieError
from torchkeep.names import join
from torchkeep.selectors import as_literal
from torchkeep.tables.refusing import unknown_name
from torchkeep.tables.survey import OWNERS_ATTRIBUTE, Place, Survey, TieGroup, survey
from torchkeep.tying.agreeing import disagreements
from torchkeep.tying.hanging import hang_all
from torchkeep.tying.overlaps import real_overlaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

_HOLD_PARAMETERS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
)
"""Wrappers that made their own lists of the parameters when they were built."""


class TieList(list[TieGroup]):
    """The ties of a model, in its own order; prints one to a line.

    Attributes:
        overlaps: groups of owners' names whose tensors share bytes without being one tensor, such as a slice of
            a weight. They are no ties: nothing counts, draws or saves them once.
    """

    def __init__(self, groups: Iterable[TieGroup], overlaps: tuple[tuple[str, ...], ...] = ()) -> None:
        super().__init__(groups)
        self.overlaps = overlaps

    def __str__(self) -> str:
        lines = [f"{' = '.join((group.owner, *group.aliases))}  ({group.kind})" for group in self]
        lines += [f"{' overlaps '.join(names)}  (no tie)" for names in self.overlaps]
        return "\n".join(lines) or "no ties"


def ties(net: nn.Module) -> TieList:
    """List every tensor of ``net`` that has several names.

    A tie is one module in several places, one tensor under several names, or several tensors with the same
    storage, offset, shape, strides and dtype. Other overlaps are listed apart, as ``ties(net).overlaps``.

    Args:
        net: any module, on any device; on the meta device storage tells what is one.

    Returns:
        A list of TieGroup(owner, aliases, kind), in the order of the state_dict.

    Raises:
        SourceError: ``net`` is no module, or contains itself.
    """
    found = survey(net)
    return TieList(found.ties, real_overlaps(found))


def tie(net: nn.Module, owner: str, *aliases: str) -> TieGroup:
    """Make parameters of ``net`` one: the owner's Parameter object takes every place of each alias.

    The owner's values, ``requires_grad`` and gradient stay; those of the aliases go. The owner is written down in
    ``net``, so that the tensor keeps that name in every listing, also after deepcopy and pickling. An optimizer
    that was made before still holds the aliases' old Parameters: tie first, or tie inside
    ``with tk.keeping_ties(net, optimizer)``.

    Args:
        net: the model.
        owner: name of the parameter to keep, as it is or as a selector spells it (``0.'block 1'.weight``).
        *aliases: names of the parameters that become it. Everything an alias is already tied to comes along.

    Returns:
        The tie as it is now, with every name.

    Raises:
        NoMatchError: a name does not exist; says which are nearest.
        TieError: the tensors can't be one (other shape, dtype or device; a buffer, a lazy or a parametrized
            parameter; the owner among its aliases; a wrapper that holds its own list of parameters). Nothing
            was changed.
    """
    found = survey(net)
    rows = {name: row for row, known in enumerate(found.listing.rows) for name in known.names}
    owner, *others = (name if name in rows else as_literal(name) or name for name in (owner, *aliases))
    _check_names(found, rows, owner, others)
    problems = [*_wrappers(net), *_problems(found, rows, owner, others)]
    if problems:
        raise TieError("\n".join(problems))
    keeper = _place(found, rows, owner).tensor
    group = {name for alias in (owner, *others) for name in found.listing.rows[rows[alias]].names}
    declared = _declared(found, owner, group)
    hang_all((place, keeper) for place in _to_change(found, rows, owner, others))
    for module, names in declared:
        module.__dict__[OWNERS_ATTRIBUTE] = names
    return next(known for known in survey(net).ties if known.owner == owner)


def _check_names(found: Survey, rows: dict[str, int], owner: str, aliases: Sequence[str]) -> None:
    if not aliases:
        raise TieError(f"tie {owner!r} with what? Give at least one more name: tie(net, owner, alias, ...)")
    if owner in aliases:
        raise TieError(f"{owner!r} is the owner and stands among its aliases too; name it once")
    plain = {name for row in found.listing.rows for name in row.plain}
    for name in (owner, *aliases):
        if name in rows:
            continue
        if name in plain:
            raise TieError(_parametrized(name))
        raise unknown_name(name, found.listing.rows, found.listing.source, found.listing)


def _wrappers(net: nn.Module) -> Iterator[str]:
    known = [getattr(sys.modules.get(home), name, None) for home, name in _HOLD_PARAMETERS]
    types = tuple(cls for cls in known if cls is not None)
    for path, module in net.named_modules():
        if isinstance(module, types):
            yield (
                f"{path or 'the model'!r} is a {type(module).__name__}, which keeps the parameters that it "
                "was built with; tie before wrapping"
            )


def _problems(found: Survey, rows: dict[str, int], owner: str, aliases: Sequence[str]) -> Iterator[str]:
    unfit = {name: problem for name in (owner, *aliases) if (problem := _unfit(found, rows, name))}
    yield from unfit.values()
    keeper = _place(found, rows, owner).tensor
    for alias in aliases:
        if unfit.keys() & {owner, alias}:
            continue
        other = _place(found, rows, alias).tensor
        for what, mine, theirs in disagreements(keeper, other):
            yield (
                f"{owner!r} has {what} {mine} and {alias!r} has {what} {theirs}; "
                "only tensors that agree can be one"
            )


def _unfit(found: Survey, rows: dict[str, int], name: str) -> str:
    """Say why the tensor of that name can't be tied, or nothing."""
    place = _place(found, rows, name)
    if place.kind == "buffer":
        return (
            f"{name!r} is a buffer: every move of a module replaces its buffers one by one, so a tie would not "
            "last; share the module that holds it instead"
        )
    if is_lazy(place.tensor):
        return f"{name!r} is lazy, it has no shape yet; run the model once, then tie"
    if found.listing.rows[rows[name]].plain:
        return _parametrized(name)
    return ""


def _parametrized(name: str) -> str:
    return (
        f"{name!r} belongs to a parametrization, which computes a new weight at each use; share the parametrized "
        "module itself, or tie first and parametrize the shared module"
    )


def _place(found: Survey, rows: dict[str, int], name: str) -> Place:
    return next(place for place in found.places[rows[name]] if place.name == name)


def _to_change(found: Survey, rows: dict[str, int], owner: str, aliases: Sequence[str]) -> list[Place]:
    """Return the places of the aliases; of other Parameters that share the owner's storage, only those named."""
    keeper = _place(found, rows, owner).tensor
    changed: dict[str, Place] = {}
    for alias in aliases:
        named: Tensor = _place(found, rows, alias).tensor
        for place in found.places[rows[alias]]:
            if place.tensor is not keeper and (rows[alias] != rows[owner] or place.tensor is named):
                changed[place.name] = place
    return list(changed.values())


def _declared(found: Survey, owner: str, group: set[str]) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Return the new declarations of each module: this owner for the group, and no other."""
    declared: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
    for path, module in found.modules.items():
        before = module.__dict__.get(OWNERS_ATTRIBUTE, ())
        # A shared module is met once for each of its paths.
        _, names = declared.get(id(module), (module, before))
        kept = tuple(name for name in names if join(path, name) not in group)
        if module is found.net:
            kept = (*kept, owner)
        if kept != before:
            declared[id(module)] = (module, kept)
    return list(declared.values())
