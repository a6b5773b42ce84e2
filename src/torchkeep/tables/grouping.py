"""`optimizer_groups`: named parameter groups for torch.optim, by rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchkeep.tables.claims import Rules, claim, complaints, folded_names, raise_problems, split_rules
from torchkeep.tables.survey import Survey, survey
from torchkeep.tensors.identity import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from torchkeep.rows import Row

_RESERVED = ("params", "param_names")


def optimizer_groups(net: nn.Module, rules: Rules[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups for ``torch.optim``.

    Every trainable parameter is in exactly one group: that of the last rule that matches any of its names. A tied
    one is there once, under its owner's name. Groups come in the order of the rules, parameters in that of
    the model. A rule built with ``tk.select(..., allow_empty=True)`` that matches nothing makes no group.

    An optimizer changes the dicts that it is given (torch does so), so make new groups for each optimizer.

    Args:
        net: the model.
        rules: a mapping, or a list of pairs, from selectors to the options of the group, such as
            ``{"**": {"weight_decay": 0.01}, "**.bias": {"weight_decay": 0.0}}``; options may be empty.

    Returns:
        One dict for each group: ``"params"``, a list of ``(name, parameter)``, from which torch keeps the names as
        ``param_names``; ``"name"``, the rule as text; and the options, which may give another ``"name"``.

    Raises:
        RuleError: trainable parameters that no rule claims, rules that never win or match nothing trainable,
            options that are no mapping or hold ``"params"``, distinct Parameters that share memory; all at once.
        NoMatchError: a rule matches nothing.
        SelectorSyntaxError: a rule is no selector.
        SourceError: ``net`` is no module.

    Example:
        >>> groups = tk.optimizer_groups(net, {"**": {}, "**.bias": {"weight_decay": 0.0}})
        >>> torch.optim.AdamW(groups, lr=1e-3)
    """
    found = survey(net)
    selectors, options = split_rules(rules, "the options of a group")
    listing = found.listing
    claims = claim(listing, selectors, candidates=_is_trainable)
    problems = [
        problem
        for selector, given in zip(selectors, options, strict=True)
        if (problem := _wrong_options(selector.text, given))
    ]
    problems += _shared_memory(found)
    problems += complaints(
        listing,
        claims,
        what="trainable parameters",
        remedy="add a rule for them, such as '**': {} in first place, or freeze them",
    )
    raise_problems(problems, "these rules make no optimizer groups")
    return [
        {
            "params": [(listing.rows[position].name, found.tensors[position]) for position in positions],
            "name": selector.text,
            **given,
        }
        for selector, given, positions in zip(selectors, options, claims.won(), strict=True)
        if positions
    ]


def _is_trainable(row: Row) -> bool:
    return bool(row.trainable)


def _wrong_options(rule: str, options: object) -> str:
    """Say what is wrong with the options of a rule, or nothing."""
    if not isinstance(options, Mapping):
        return f"the options of the rule {rule!r} must be a mapping such as {{'lr': 0.1}}, not {options!r}"
    reserved = [key for key in _RESERVED if key in options]
    if reserved:
        return f"the options of the rule {rule!r} may not hold {reserved[0]!r}: the rule says which parameters"
    wrong = [key for key in options if not isinstance(key, str)]
    return f"the options of the rule {rule!r} must have names as keys, not {wrong[0]!r}" if wrong else ""


def _shared_memory(found: Survey) -> list[str]:
    """Refuse distinct Parameters over the same memory: each would have a gradient and a step of its own."""
    problems = []
    for row, places in zip(found.listing.rows, found.places, strict=True):
        distinct = {id(place.tensor): place.tensor.requires_grad for place in places if place.kind == "parameter"}
        if len(distinct) > 1 and any(distinct.values()):
            names, spelled = " and ".join(row.names), ", ".join(map(repr, row.names))
            problems.append(
                f"{names} are {len(distinct)} Parameters over the same memory, each with its own "
                f"gradient and step; tk.tie them first: tk.tie(net, {spelled})"
            )
    at = {row.name: position for position, row in enumerate(found.listing.rows)}
    for group in found.overlaps:
        rows = [row for name in group if (row := found.listing.rows[at[name]]).kind == "parameter"]
        trains = any(row.trainable for row in rows)
        if trains and _share_elements([found.tensors[at[row.name]] for row in rows]):
            problems.append(
                f"{folded_names(rows)} overlap in memory without being one tensor, so that a step of one "
                "changes the other; give each its own memory with .clone()"
            )
    return problems


def _share_elements(tensors: Sequence[Tensor]) -> bool:
    """Tell whether some byte belongs to two tensors; columns of one matrix interleave and share none."""
    spans = [(tensor, place) for tensor in tensors if (place := span(tensor)) is not None]
    first = min((place.start for _, place in spans), default=0)
    last = max((place.stop for _, place in spans), default=0)
    taken = torch.zeros(last - first, dtype=torch.bool, device="cpu")
    for tensor, place in spans:
        size = tensor.element_size()
        steps = [(count, step) for count, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
        shape, strides = [count for count, _ in steps], [step * size for _, step in steps]
        own = taken.as_strided([*shape, size], [*strides, 1], place.start - first)
        if own.any():
            return True
        try:
            own.fill_(value=True)
        except (
            RuntimeError
        ):  # it overlaps itself, as a sliding window does: then it also shares with whatever is near
            return True
    return False
