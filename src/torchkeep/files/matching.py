"""Compare a source's names, shapes and dtypes with a model's. Nothing is changed, and only ties' bits are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from torchkeep.dtypes import DTYPES
from torchkeep.errors import LoadError
from torchkeep.files.explaining import hints
from torchkeep.files.planning import LoadPlan, Match, Misfit, Policy
from torchkeep.files.renaming import new_name, renames_of
from torchkeep.names import join
from torchkeep.selectors import Selector, as_selector
from torchkeep.selectors.suggest import did_you_mean
from torchkeep.tables.survey import survey
from torchkeep.tensors.keepable import why_not_filled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from torchkeep.files.offering import Source
    from torchkeep.files.renaming import Renames
    from torchkeep.rows import Row
    from torchkeep.tables.survey import Survey


@dataclass(frozen=True)
class Matched:
    """A plan and what is needed to carry it out.

    Attributes:
        plan: the plan.
        pairs: for each of ``plan.matched``, the owner's name in the source and the model's live tensor.
        modules: for each of ``plan.extra``, the module whose extra state it is.
    """

    plan: LoadPlan
    pairs: Sequence[tuple[str, Tensor]]
    modules: Sequence[nn.Module]


class Options(NamedTuple):
    """What `plan_load` and `load_into` were asked for.

    Attributes:
        select: which tensors of the model.
        rename: what the source's names are called in the model.
        policies: by ``"missing"``, ``"unexpected"`` and ``"mismatch"``.
        cast: whether another dtype is converted.
        may_cast: whether that could have been asked for.
    """

    select: str | Selector = "**"
    rename: Renames | None = None
    policies: Mapping[str, Policy] = {"missing": "error", "unexpected": "error", "mismatch": "error"}
    cast: bool = False
    may_cast: bool = True


def match(net: nn.Module, source: Source, options: Options) -> Matched:
    """Plan what of ``source`` goes where in ``net``; see `plan_load`."""
    for what, policy in options.policies.items():
        if policy not in {"error", "ignore"}:
            raise LoadError(f"{what} must be 'error' or 'ignore', not {policy!r}")
    return _Matcher(survey(net), source, options).match()


class _Matcher:
    """Finds what goes where; gathers every problem instead of the first."""

    def __init__(self, found: Survey, source: Source, options: Options) -> None:
        self._found = found
        self._rows = found.listing.rows
        self._source = source
        self._options = options
        self._impossible: list[str] = []
        self._sources = self._renamed(options.rename)

    def match(self) -> Matched:
        """Go through the selected tensors of the model, then through what is left of the source."""
        select = self._options.select
        whole = isinstance(select, str) and select.strip() == "**"
        chosen = self._chosen(select, whole=whole)
        matched, pairs, mismatched = [], [], []
        missing: list[str] = []
        for position in chosen:
            row, tensor = self._rows[position], self._found.tensors[position]
            name = self._source_of(row)
            if name is None:
                missing.append(row.name)
                continue
            offer = self._source.offers[name]
            obstacle = why_not_filled(tensor) or offer.obstacle
            problem = None if obstacle else self._misfit(row, offer.shape, offer.dtype)
            if obstacle:
                self._impossible.append(f"{row.name}: {obstacle}")
            elif problem:
                mismatched.append(Misfit(row.name, name, problem))
            else:
                matched.append(Match(row.name, name, (offer.dtype, row.dtype)))
                pairs.append((offer.owner, tensor))
        unexpected, not_asked = self._left_over(chosen, whole=whole)
        extra, modules = self._extra(missing, unexpected) if whole else ([], [])
        plan = LoadPlan(
            source=self._source.text,
            matched=tuple(matched),
            missing=tuple(missing),
            unexpected=tuple(unexpected),
            mismatched=tuple(mismatched),
            impossible=tuple(self._impossible),
            not_asked=tuple(not_asked),
            extra=tuple(extra),
            policies=self._options.policies,
            hints=self._hints(missing, unexpected, has_matches=bool(matched)),
            _model=self._rows,
            _offers=self._source.offers,
        )
        return Matched(plan, pairs, modules)

    def _renamed(self, rename: Renames | None) -> dict[str, list[str]]:
        """Return the source's names by what they are called in the model."""
        names = [*self._source.offers, *self._source.extra]
        renames = renames_of(rename)
        if not renames:
            return {name: [name] for name in names}
        found: dict[str, list[str]] = {}
        used = set()
        for name in names:
            renamed, by = new_name(renames, name)
            found.setdefault(renamed, []).append(name)
            used.add(id(by))
        for unused in renames:
            if id(unused) not in used:
                text = unused.source.text
                self._impossible.append(
                    f"rename {text!r} matches no name of the source.{did_you_mean(text, names)}"
                )
        for target, sources in found.items():
            if len({self._owner(name) for name in sources}) > 1:
                listed = " and ".join(map(repr, sources))
                self._impossible.append(f"{target}: rename gives this one name to {listed} of the source")
        return found

    def _owner(self, name: str) -> str:
        offer = self._source.offers.get(name)
        return name if offer is None else offer.owner

    def _chosen(self, select: str | Selector, *, whole: bool) -> list[int]:
        if whole:
            return [position for position, row in enumerate(self._rows) if row.persistent]
        indices = as_selector(select).indices(self._found.listing)
        chosen = [position for position in indices if self._rows[position].persistent]
        if indices and not chosen:
            raise LoadError("select matches only non-persistent buffers, which are never saved, nor loaded")
        return chosen

    def _source_of(self, row: Row) -> str | None:
        """Return the name in the source that leads to a row's tensor; several must lead to the same bits."""
        if not row.aliases:  # as for most, and there may be ten thousands
            found = self._sources.get(row.name, ())
            if len(found) == 1:
                return found[0] if found[0] in self._source.offers else None
        offered = (
            [name for name in self._sources.get(target, ()) if name in self._source.offers] for target in row.names
        )
        names = [found[0] for found in offered if found]  # of several for one target, all have been told
        if not names:
            return None
        owners: dict[str, str] = {}
        for name in names:
            owners.setdefault(self._source.offers[name].owner, name)
        first, *others = owners
        for other in others:
            if not self._equal(first, other):
                self._impossible.append(
                    f"{row.name}: its names are tied in the model, but {owners[first]!r} and {owners[other]!r} of "
                    "the source differ; leave one out"
                )
        return names[0]

    def _equal(self, one: str, other: str) -> bool:
        left, right = self._source.offers[one], self._source.offers[other]
        if left.obstacle or right.obstacle:
            return False
        return left[1:] == right[1:] and self._source.same(one, other)

    def _misfit(self, row: Row, shape: tuple[int, ...], dtype: str) -> str | None:
        if shape != row.shape:
            return f"the model has the shape {list(row.shape or ())}, the source {list(shape)}"
        if dtype == row.dtype:
            return None
        differ = f"the model has the dtype {row.dtype}, the source {dtype}"
        if not (_is_number(dtype) and _is_number(row.dtype)):
            return f"{differ}, which can't be converted"
        if dtype.startswith("complex") and not row.dtype.startswith("complex"):
            return f"{differ}, and converting would lose the imaginary part"
        if self._options.cast:
            return None
        return f"{differ}; cast=True converts" if self._options.may_cast else differ

    def _left_over(self, chosen: Sequence[int], *, whole: bool) -> tuple[list[str], list[str]]:
        """Return the names of the source that the model has nothing for, and those that were not asked for."""
        asked = {name for position in chosen for name in self._rows[position].names}
        known = {name for row in self._rows if row.persistent for name in row.names}
        unexpected: list[str] = []
        not_asked: list[str] = []
        for target, names in self._sources.items():
            if target in asked:
                continue
            left = [name for name in names if name in self._source.offers]
            (unexpected if whole and target not in known else not_asked).extend(left)
        return unexpected, not_asked

    def _extra(self, missing: list[str], unexpected: list[str]) -> tuple[list[tuple[str, str]], list[nn.Module]]:
        """Match extra state by key, as ``load_state_dict`` does."""
        offered = set(self._source.extra)
        extra, modules, asked = [], [], set()
        for path, module in self._found.modules.items():
            if type(module).set_extra_state is nn.Module.set_extra_state:
                continue
            key = join(path, "_extra_state")
            asked.add(key)
            names = [name for name in self._sources.get(key, ()) if name in offered]
            if names:
                extra.append((key, names[0]))
                modules.append(module)
            else:
                missing.append(key)
        for target, names in self._sources.items():
            if target not in asked:
                unexpected.extend(name for name in names if name in offered)
        return extra, modules

    def _hints(self, missing: Sequence[str], unexpected: Sequence[str], *, has_matches: bool) -> tuple[str, ...]:
        found: list[str] = []
        left = set(unexpected)
        for row in self._rows:
            found.extend(
                f"{name!r} of the source is a parametrized weight in the model ({row.name!r}); remove the "
                "parametrization, load, and register it again"
                for name in row.plain
                if name in left
            )
            if not row.persistent and row.name in left:
                found.append(f"{row.name!r} is a non-persistent buffer in the model, which is never loaded")
        lacking = set(missing)
        wanted = [name for row in self._rows if row.name in lacking for name in row.names]
        return (*found, *hints(wanted, unexpected, has_matches=has_matches))


def _is_number(dtype: str) -> bool:
    return DTYPES[dtype].code is not None or dtype in {"complex32", "complex128"}
