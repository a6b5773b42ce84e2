"""Decide what every tensor of a model is filled with, without touching the model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.errors import RuleError
from torchkeep.init.claiming import claim_rows, with_computed
from torchkeep.init.computed import Computed, find_computed
from torchkeep.init.fixed import Keep
from torchkeep.init.initializers import Initializer, Subject
from torchkeep.init.parts import is_distributed, local_index
from torchkeep.init.wholes import TorchDefault
from torchkeep.rows import Listing, Row
from torchkeep.tables.claims import Claims, Rules, complaints, folded_names, raise_problems, split_rules
from torchkeep.tables.modules import unwrap
from torchkeep.tables.survey import Survey, survey
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.pausing import without_collections

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from torchkeep.selectors import Selector

_REMEDY = "add a rule for them, such as {'**': tk.init.keep()} as the first"
_HEADLINE = "the model can't be initialised by these rules"


class Item(Struct, frozen=True, eq=False):
    """One tensor, or one computed weight, and what becomes of it.

    Attributes:
        row: what is known of it; a computed weight stands under its plain name.
        rule: the selector of the rule that claims it.
        initializer: what the rule gives.
        dtype: of the tensor.
        module: the module that owns it.
        position: of the tensor in the survey; None for a computed weight.
        computed: the computed weight; None for a tensor.
        raw: positions of the originals of a computed weight that rules claim for themselves.
        overridden: the selectors of earlier rules that matched too, each with the names under which it did.
    """

    row: Row
    rule: str
    initializer: Initializer
    dtype: torch.dtype
    module: nn.Module
    position: int | None
    computed: Computed | None
    raw: tuple[int, ...]
    overridden: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Global shape; a lazy parameter that is kept has an empty one."""
        return self.row.shape or ()


@dataclass(frozen=True)
class Decision:
    """What every tensor of a model is filled with.

    Attributes:
        found: the model as it was surveyed.
        items: in the order of the model.
        computed: the weights that modules compute from other tensors.
        seed: of all that is drawn.
        rules: as they were given.
    """

    found: Survey
    items: tuple[Item, ...]
    computed: tuple[Computed, ...]
    seed: int
    rules: tuple[tuple[Selector, Initializer], ...]

    def is_stale(self) -> bool:
        """Tell whether the model is no longer made of the same modules, tensors, shapes and dtypes."""
        found = self.found
        return _other_modules(found) or any(
            places[0].registry.get(places[0].key) is not tensor
            or (not is_lazy(tensor) and (tensor.shape != row.shape or dtype_name(tensor.dtype) != row.dtype))
            for row, tensor, places in zip(found.listing.rows, found.tensors, found.places, strict=True)
        )


@without_collections()
def decide(net: nn.Module, rules: Rules[Initializer], seed: int) -> Decision:
    """Work out what every tensor of ``net`` is filled with.

    Raises:
        SourceError: ``net`` is no module.
        RuleError: the rules can't be carried out; all that is wrong is in ``problems``.
        NoMatchError: a rule matches nothing.
        SelectorError: a selector can't be read, or asks what is not known.
    """
    number = _check_seed(seed)
    selectors, initializers = split_rules(rules, "an initializer such as tk.init.zeros()")
    raise_problems(_not_initializers(selectors, initializers), _HEADLINE)
    found = survey(net)
    computed = find_computed(found)
    listing = with_computed(found.listing, computed) if computed else found.listing
    claims = claim_rows(listing, computed, selectors)
    items = tuple(_items(found, listing, computed, claims, initializers))
    problems = complaints(listing, claims, what="parameters", remedy=_REMEDY)
    problems += _refusals(found, items)
    raise_problems(problems, _HEADLINE)
    return Decision(found, items, tuple(computed), number, tuple(zip(selectors, initializers, strict=True)))


def _other_modules(found: Survey) -> bool:
    """Tell whether a module was added, removed or replaced, or has more or fewer tensors, since the survey."""
    children = tensors = 0
    for path, module in found.modules.items():
        children += sum(child is not None for child in module._modules.values())  # noqa: SLF001 - children() skips some
        for registry in (module._parameters, module._buffers):  # noqa: SLF001 - as above
            tensors += sum(tensor is not None for tensor in registry.values())
        if path:
            above, _, key = path.rpartition(".")
            child = found.modules[above]._modules.get(key)  # noqa: SLF001 - as above
            if child is None or unwrap(child) is not module:
                return True
    return children != len(found.modules) - 1 or tensors != sum(map(len, found.places))


def _check_seed(seed: Any) -> int:
    """Return the seed as an int; any size and sign will do."""
    if not isinstance(seed, bool):
        try:
            return operator.index(seed)
        except TypeError:
            pass
    raise RuleError(f"seed is a whole number of any size, not {seed!r}; give one, such as seed=0")


def _not_initializers(selectors: Sequence[Selector], given: Sequence[Any]) -> list[str]:
    """Say which rules give something else than an initializer, and how to write what is probably meant."""
    problems = []
    for selector, value in zip(selectors, given, strict=True):
        if isinstance(value, Initializer):
            continue
        if isinstance(value, int | float):
            fix = f"write tk.init.constant({value!r})"
        elif isinstance(value, str):
            fix = f"write tk.init.{value}()" if value.isidentifier() else "write tk.init.zeros(), say"
        elif callable(value) and getattr(value, "__module__", "").startswith("torchkeep.init"):
            fix = f"call it: tk.init.{value.__name__}()"
        elif callable(value):
            fix = "write tk.init.custom(lambda tensor, generator: ...) around it"
        else:
            fix = "write one of those in tk.init, such as tk.init.normal(0, 0.02)"
        problems.append(f"the rule {selector.text!r} gives {value!r}, which is no initializer; {fix}")
    return problems


def _items(
    found: Survey,
    listing: Listing,
    computed: Sequence[Computed],
    claims: Claims,
    initializers: Sequence[Initializer],
) -> list[Item]:
    """Make the items in the order of the model: a computed weight stands where its first original does."""
    texts = [selector.text for selector in claims.selectors]
    matched_under = _MatchedNames(listing, claims)
    tensors = len(found.tensors)
    items: list[tuple[int, Item]] = []
    for position, (row, winner) in enumerate(zip(listing.rows, claims.winner, strict=True)):
        if winner is None:
            continue
        overridden = tuple((texts[rule], matched_under(row, rule)) for rule in claims.losers[position])
        rule, given = texts[winner], initializers[winner]
        if position < tensors:
            dtype, module = found.tensors[position].dtype, found.places[position][0].module
            items.append((position, Item(row, rule, given, dtype, module, position, None, (), overridden)))
        else:
            weight = computed[position - tensors]
            raw = tuple(original for original in weight.originals if claims.winner[original] is not None)
            item = Item(row, rule, given, weight.dtype, weight.module, None, weight, raw, overridden)
            items.append((weight.originals[0], item))
    if computed:
        items.sort(key=lambda pair: pair[0])
    return [item for _, item in items]


class _MatchedNames:
    """Tell under which names of a tie a rule matches it."""

    def __init__(self, listing: Listing, claims: Claims) -> None:
        self._listing, self._selectors = listing, claims.selectors
        self._found: dict[int, set[str]] = {}

    def __call__(self, row: Row, rule: int) -> tuple[str, ...]:
        """Return the names, the owner first; those of an untied tensor are not asked for."""
        if not row.aliases:
            return row.names
        if rule not in self._found:
            rows = [
                Row(
                    name,
                    row.shape,
                    row.dtype,
                    row.device,
                    row.kind,
                    row.persistent,
                    row.trainable,
                    row.module_type,
                )
                for row in self._listing.rows
                for name in row.names
            ]
            apart = Listing(rows, self._listing.modules, self._listing.source)
            try:
                matched = self._selectors[rule].indices(apart)
            except LookupError:  # it selects ties, say, of which there are none when each name stands alone
                matched = []
            self._found[rule] = {rows[position].name for position in matched}
        return tuple(name for name in row.names if name in self._found[rule]) or row.names


def _refusals(found: Survey, items: Iterable[Item]) -> list[str]:
    """Say which items can't be filled as their rules want, one sentence for each reason."""
    reasons: dict[str, list[Row]] = {}
    known: dict[Hashable, str | None] = {}
    filled: set[str] = set()
    for item in items:
        keeps = isinstance(item.initializer, Keep)
        kind = type(item.module) if isinstance(item.initializer, TorchDefault) else None
        refused = item.computed.refusal if item.computed else None
        key = (id(item.initializer), item.row.shape, item.dtype, item.row.device, refused, kind)
        if key not in known:
            known[key] = _refusal(item)
        reason = known[key]
        if not keeps:
            originals = item.computed.originals if item.computed else ()
            filled.update((item.row.name, *(found.listing.rows[position].name for position in originals)))
            reason = reason or _unwritable(found, item)
        if reason:
            reasons.setdefault(reason, []).append(item.row)
    problems = [f"{folded_names(rows)}: {reason}" for reason, rows in reasons.items()]
    problems += [
        f"{', '.join(map(repr, group))} overlap in memory without being ties, so filling one changes the others; "
        "tie them with tk.tie, or give them memory of their own"
        for group in found.overlaps
        if filled.intersection(group)
    ]
    return problems


def _refusal(item: Item) -> str | None:
    """Say what is wrong for every tensor of this shape and dtype under this rule."""
    if not isinstance(item.initializer, Keep):
        if item.row.shape is None:
            return "lazy, without a shape yet; run one batch through the model first, or use tk.init.keep()"
        if item.computed and item.computed.refusal:
            return item.computed.refusal
    subject = Subject(item.shape, item.dtype, item.row.device == "meta", item.module)
    return item.initializer.complaint(subject)


def _unwritable(found: Survey, item: Item) -> str | None:
    """Say why the tensor's memory can't be written element by element."""
    for position in item.computed.originals if item.computed else [item.position]:
        assert position is not None
        tensor = found.tensors[position]
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            return "made in inference mode, which can't be filled outside of it; use a copy (tensor.clone())"
        if is_distributed(tensor) and local_index(tensor) is None:
            return "sharded in parts that are no rectangles: only Shard and Replicate can be filled"
        if tensor.layout != torch.strided:
            return f"{str(tensor.layout).removeprefix('torch.')} tensors can't be filled; use tk.init.keep()"
        if 0 in tensor.stride() and any(
            step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            return "expanded, so that several elements are one; give it memory of its own (tensor.clone())"
    return None
