"""Who claims what when weights are computed: a rule on the plain name takes all that the weight is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as with_fields

from torchkeep.rows import Listing, Row
from torchkeep.tables.claims import Claims, claim
from torchkeep.tables.modules import type_info
from torchkeep.tensors.dtypes import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchkeep.init.computed import Computed
    from torchkeep.selectors import Selector


def with_computed(listing: Listing, computed: Sequence[Computed]) -> Listing:
    """Add a row for each computed weight at the end; what it is computed from answers to its own name only."""
    originals = {position for weight in computed for position in weight.originals}
    rows = [
        with_fields(row, plain=()) if position in originals else row for position, row in enumerate(listing.rows)
    ]
    rows.extend(_row(weight, [listing.rows[position] for position in weight.originals]) for weight in computed)
    return Listing(rows, listing.modules, listing.source)


def claim_rows(listing: Listing, computed: Sequence[Computed], selectors: Sequence[Selector]) -> Claims:
    """Let rules claim the rows of `with_computed`.

    A rule that matches a computed weight claims the weight, not its originals, though it matches them too. A later
    rule that matches only originals takes those for itself; when it takes all, the weight needs no rule.

    Args:
        listing: from `with_computed`.
        computed: the weights, whose rows stand at the end.
        selectors: one for each rule.

    Returns:
        The claims. Originals that a weight covers are claimed by nobody, and are not unclaimed.

    Raises:
        NoMatchError: a rule matches nothing.
        MissingFieldError: a rule asks what the listing does not know.
    """
    claims = claim(listing, selectors, buffers=True)
    if not computed:
        return claims
    winner, losers = list(claims.winner), list(claims.losers)
    unclaimed = set(claims.unclaimed)
    for position, weight in enumerate(computed, start=len(listing.rows) - len(computed)):
        top = winner[position]
        covering = {*losers[position], top}
        beaten: set[int] = set()
        covered = []
        for original in weight.originals:
            matched = (*losers[original], winner[original])
            own = [rule for rule in matched if rule is not None and rule not in covering]
            if own and (top is None or own[-1] > top):
                winner[original], losers[original] = own[-1], tuple(own[:-1])
            else:
                winner[original], losers[original] = None, ()
                beaten.update(own)
                covered.append(original)
        unclaimed.difference_update(weight.originals, [position])
        if top is not None and not covered:
            winner[position] = None
            beaten.add(top)
        elif top is None and listing.rows[position].kind == "parameter":
            unclaimed.update(covered if len(covered) < len(weight.originals) else [position])
        losers[position] = tuple(sorted(beaten.union(losers[position])))
    winning = set(winner)
    overridden = {rule for rules in losers for rule in rules} - winning
    return replace(
        claims,
        winner=tuple(winner),
        losers=tuple(losers),
        unclaimed=tuple(sorted(unclaimed)),
        overridden=tuple(sorted(overridden)),
    )


def _row(weight: Computed, originals: Sequence[Row]) -> Row:
    return Row(
        name=weight.name,
        shape=weight.shape,
        dtype=dtype_name(weight.dtype),
        device=originals[0].device,
        kind=originals[0].kind,
        persistent=originals[0].persistent,
        trainable=any(row.trainable for row in originals),
        module_type=type_info(type(weight.module)).name,
        aliases=weight.aliases,
    )
