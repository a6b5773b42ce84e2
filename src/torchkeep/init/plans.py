"""The plan as users have it: a table of what fills what, to be read, applied, or asked for single values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from torchkeep.caching import cached_property
from torchkeep.errors import NoMatchError, RuleError
from torchkeep.init.applying import carry_out, whole_value
from torchkeep.init.drawing import one_torch_thread, seed_secret
from torchkeep.init.fans import fans
from torchkeep.init.fixed import Keep
from torchkeep.init.initializers import Elementwise, Initializer
from torchkeep.init.parts import Index, check_index, draw_part
from torchkeep.init.planning import Decision, Item, decide
from torchkeep.init.tabulating import InitRow, html_table, summary, text_table
from torchkeep.selectors.suggest import did_you_mean
from torchkeep.tensors.dtypes import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from torchkeep.tables.claims import Rules


class InitPlan(Sequence[InitRow]):
    """What every parameter of a model is filled with: a sequence of rows, one for each tensor; a tie is one.

    ``print(plan)`` shows the table. Made by `plan` and by ``tk.initialize``.

    Attributes:
        seed: of all that is drawn.
    """

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        self.seed = decision.seed

    @cached_property
    def rows(self) -> tuple[InitRow, ...]:
        """The rows, in the order of the model."""
        return tuple(map(_row, self._decision.items))

    @overload
    def __getitem__(self, index: int | str) -> InitRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InitRow]: ...
    def __getitem__(self, index: int | str | slice) -> InitRow | Sequence[InitRow]:
        """Return a row by position or by name (an alias will do), or some by slice.

        Raises:
            NoMatchError: nothing has that name.
            IndexError: there are not that many rows.
        """
        if isinstance(index, str):
            return self.rows[self._items.index(self._item(index))]
        return self.rows[index]

    def __len__(self) -> int:
        return len(self._items)

    def __str__(self) -> str:
        return text_table(self.rows, self.seed)

    def __repr__(self) -> str:
        return f"<InitPlan: {summary(self.rows, self.seed)}>"

    def _repr_html_(self) -> str:
        return html_table(self.rows, self.seed)

    def apply(self, device: torch.device | str | int | None = None) -> None:
        """Fill the model's tensors.

        In place: Parameters stay the same objects, and autograd notices the change as it does any other in-place
        one. A model that is on the meta device, wholly or in part, is materialised first, as by
        ``tk.materialize``. Ties and ``requires_grad`` stay. What other people's code has a part in (custom,
        torch_default, right_inverse) runs before anything is written: when it raises, the model is as it was.

        Args:
            device: where a model on the meta device goes. None: where the rest of it is, else torch's default
                device. For a model that has no tensor on the meta device, leave it away.

        Raises:
            RuleError: the model has changed since it was planned; ``device`` is not where the model is; or a
                custom function, a reset method or a ``right_inverse`` gave nothing that fits.
            MaterializeError: a buffer on the meta device can't be rebuilt.
        """
        carry_out(self._current(), device)

    def values(self, name: str, index: Index | None = None) -> torch.Tensor:
        """Draw the values of one tensor, or of a part of it, without touching the model.

        Args:
            name: of the tensor, any of its names; of a weight that its module computes, the plain one.
            index: the part: whole numbers, slices and an ellipsis. Only the chunks that it touches are drawn,
                except of what is drawn whole (orthogonal, torch_default, custom). None: all of it.

        Returns:
            What `apply` writes there: on the CPU, in the tensor's dtype, of the shape that ``index`` leaves.

        Raises:
            NoMatchError: the plan has nothing of that name.
            RuleError: the tensor is kept as it is, so there is nothing to draw.
            IndexError: ``index`` is outside the shape.
            TypeError: ``index`` is no such index.
        """
        item = self._item(name)
        part: Index = ... if index is None else index
        check_index(part)
        if isinstance(item.initializer, Keep):
            raise RuleError(f"{name!r} is kept as it is by the rule {item.rule!r}; read it from the model")
        if isinstance(item.initializer, Elementwise):
            distribution = item.initializer.for_dtype(item.shape, item.dtype)
            key = seed_secret(self.seed)
            return draw_part(distribution, key, item.row.name, item.shape, dtype=item.dtype, index=part)
        with one_torch_thread():
            whole = whole_value(self._decision, item)
        return whole[part].to(item.dtype).clone()

    @property
    def _items(self) -> tuple[Item, ...]:
        return self._decision.items

    @cached_property
    def _by_name(self) -> dict[str, Item]:
        return {name: item for item in self._items for name in item.row.names}

    def _item(self, name: str) -> Item:
        if name in self._by_name:
            return self._by_name[name]
        hint = did_you_mean(name, self._by_name)
        error = NoMatchError(f"the plan has no tensor {name!r};{hint or ' see plan.rows for what it has'}")
        error.wanted = name
        raise error

    def _current(self) -> Decision:
        """Return the decision about the model as it is now: the same, but perhaps about other tensor objects."""
        old = self._decision
        if not old.is_stale():
            return old
        new = decide(old.found.net, old.rules, old.seed)
        changed = [one.row.name for one, other in zip(old.items, new.items, strict=False) if _differ(one, other)]
        if changed or len(old.items) != len(new.items):
            example = repr(changed[0]) if changed else f"it had {len(old.items)} tensors and has {len(new.items)}"
            raise RuleError(f"the model has changed since it was planned ({example}); plan again")
        self._decision = new
        return new


def plan(net: nn.Module, rules: Rules[Initializer], seed: int = 0) -> InitPlan:
    """Work out what every parameter of a model would be filled with, touching nothing.

    Rules match parameters; buffers only where the selector says ``:buffer``. A later rule overrides an earlier
    one, on a tied tensor too: the last that matches any of its names wins.

    Args:
        net: the model; it may be on the meta device.
        rules: ``{selector: initializer}``, or a list of such pairs; initializers come from ``tk.init``.
        seed: a whole number of any size and sign; equal seeds give equal values.

    Returns:
        The plan, which can be printed, applied, or asked for values.

    Raises:
        SourceError: ``net`` is no module.
        RuleError: parameters that no rule claims, rules that never win, tensors that can't be filled as their rule
            says; all of it is in ``problems``.
        NoMatchError: a rule matches nothing.
        SelectorError: a selector can't be read, or asks what is not known.
    """
    return InitPlan(decide(net, rules, seed))


def initialize(
    net: nn.Module, rules: Rules[Initializer], *, seed: int = 0, device: torch.device | str | int | None = None
) -> InitPlan:
    """Fill a model's parameters by rules: `plan`, then `InitPlan.apply`.

    The value of an element depends only on the seed, the tensor's canonical name, its global shape and the
    element's index: not on other parameters, the order of layers, threads, device or sharding.

    Args:
        net: the model; it may be on the meta device.
        rules: ``{selector: initializer}``, or a list of such pairs; initializers come from ``tk.init``.
        seed: a whole number of any size and sign.
        device: where a model on the meta device goes; see `InitPlan.apply`.

    Returns:
        The plan that was applied; ``print`` it.

    Raises:
        SourceError: ``net`` is no module.
        RuleError: the rules can't be carried out; nothing was changed.
        NoMatchError: a rule matches nothing.
        SelectorError: a selector can't be read, or asks what is not known.
        MaterializeError: a buffer on the meta device can't be rebuilt; nothing was changed.
    """
    decision = decide(net, rules, seed)
    carry_out(decision, device)
    return InitPlan(decision)


def _row(item: Item) -> InitRow:
    counted = fans(item.row.shape)
    return InitRow(
        name=item.row.name,
        rule=item.rule,
        initializer=item.initializer,
        shape=item.row.shape,
        dtype=dtype_name(item.dtype),
        fan_in=counted.fan_in if counted else None,
        fan_out=counted.fan_out if counted else None,
        std=item.initializer.deviation(item.row.shape) if item.row.shape is not None else None,
        aliases=item.row.aliases,
        overridden=item.overridden,
    )


def _differ(one: Item, other: Item) -> bool:
    """Tell whether two items would be filled with other values, or under other names."""

    def facts(item: Item) -> tuple[Any, ...]:
        return item.row.names, item.row.shape, item.initializer, item.rule

    return facts(one) != facts(other)
