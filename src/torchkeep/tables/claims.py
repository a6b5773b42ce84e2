"""Which rule claims which row: the last one that matches wins.

Initialising and optimizer groups both take rules ``{selector: something}`` and read them the same way. This module
decides who wins and says in words what is wrong; it carries nothing out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torchkeep.errors import NoMatchError, RuleError
from torchkeep.selectors import Selector, as_selector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.rows import Listing, Row

T = TypeVar("T")
Rules: TypeAlias = (
    Mapping[str | Selector, T] | Mapping[str, T] | Mapping[Selector, T] | Iterable[tuple[str | Selector, T]]
)
"""Rules as users write them: a mapping, or pairs; keys are selectors, as text or built.

Three mappings, because a type checker holds a mapping's keys to be invariant.
"""


@dataclass(frozen=True)
class Claims:
    """Who won what.

    Attributes:
        selectors: the rules' selectors, in the order given.
        winner: for each row of the listing, the position of the rule that claims it, or None.
        losers: for each row, the positions of the earlier rules that matched it too, in order.
        unclaimed: positions of the candidates that no rule matches.
        overridden: positions of the rules that match candidates but win none of them.
        idle: positions of the rules that match rows, none of which they may claim (buffers, say).
    """

    selectors: tuple[Selector, ...]
    winner: tuple[int | None, ...]
    losers: tuple[tuple[int, ...], ...]
    unclaimed: tuple[int, ...]
    overridden: tuple[int, ...]
    idle: tuple[int, ...]

    def won(self) -> list[list[int]]:
        """Return, for each rule, the positions of the rows that it claims, in the listing's order."""
        rows: list[list[int]] = [[] for _ in self.selectors]
        for position, rule in enumerate(self.winner):
            if rule is not None:
                rows[rule].append(position)
        return rows


def is_parameter(row: Row) -> bool:
    """Tell whether the row is a parameter: the candidates when nothing else is said."""
    return row.kind == "parameter"


def split_rules(rules: Rules[T], value: str) -> tuple[list[Selector], list[T]]:
    """Take rules apart into selectors and values.

    Args:
        rules: a mapping or an iterable of pairs.
        value: what a rule's second half is, for the error, such as ``"an initializer"``.

    Returns:
        The selectors and the values, in the order given, equally many.

    Raises:
        RuleError: ``rules`` is neither a mapping nor pairs whose first half is a selector, or holds no rule.
        SelectorSyntaxError: a key is text, but not a selector.
    """
    expected = f"rules are a mapping or a list of pairs, each a selector and {value}"
    given: Any = rules  # what a user passes may be anything
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise RuleError(f"{expected}, not {type(given).__name__}")
    selectors, values = [], []
    for number, pair in enumerate(given.items() if isinstance(given, Mapping) else given, start=1):
        if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004 - a pair
            raise RuleError(f"{expected}; rule {number} is no pair: {pair!r}")
        key, held = pair
        if not isinstance(key, str | Selector):
            raise RuleError(f"{expected}; rule {number} starts with {type(key).__name__}, which is no selector")
        selectors.append(as_selector(key))
        values.append(held)
    if not selectors:
        raise RuleError(f"{expected}; there is no rule at all")
    return selectors, values


def claim(
    listing: Listing,
    selectors: Sequence[Selector],
    *,
    candidates: Callable[[Row], bool] = is_parameter,
    buffers: bool = False,
) -> Claims:
    """Let each rule claim the rows it matches; a later rule overrides an earlier one.

    A tie is one row, and a rule matches it under any of its names.

    Args:
        listing: the rows.
        selectors: one for each rule.
        candidates: tells which rows need a rule.
        buffers: whether a rule whose expression says ``:buffer`` may claim buffers too. They never need a rule.

    Returns:
        The claims; nothing in them is an error yet, see `complaints`.

    Raises:
        NoMatchError: a rule matches no row at all (and was not built with ``allow_empty=True``).
        MissingFieldError: a rule asks what the listing does not know.
    """
    wanted = [candidates(row) for row in listing.rows]
    claimable = [need or row.kind == "buffer" for need, row in zip(wanted, listing.rows, strict=True)]
    matches: list[list[int]] = [[] for _ in listing.rows]
    idle = []
    for rule, found in enumerate(_matched(listing, selectors)):
        open_to = claimable if buffers and selectors[rule].mentions_buffers else wanted
        taken = [position for position in found if open_to[position]]
        for position in taken:
            matches[position].append(rule)
        if found and not taken:
            idle.append(rule)
    winning = {rules[-1] for rules in matches if rules}
    return Claims(
        selectors=tuple(selectors),
        winner=tuple(rules[-1] if rules else None for rules in matches),
        losers=tuple(tuple(rules[:-1]) for rules in matches),
        unclaimed=tuple(position for position, need in enumerate(wanted) if need and not matches[position]),
        overridden=tuple(sorted({rule for rules in matches for rule in rules} - winning)),
        idle=tuple(idle),
    )


def _matched(listing: Listing, selectors: Sequence[Selector]) -> list[list[int]]:
    """Evaluate each rule; those without a match are raised together."""
    found, misses = [], []
    for selector in selectors:
        try:
            found.append(selector.indices(listing))
        except NoMatchError as miss:
            misses.append(miss)
    if len(misses) == 1:
        raise misses[0]
    if misses:
        error = NoMatchError("\n".join(map(str, misses)))
        error.wanted, error.nearest = misses[0].wanted, misses[0].nearest
        raise error
    return found


def complaints(listing: Listing, claims: Claims, *, what: str, remedy: str) -> list[str]:
    """Say what is wrong with the claims: one sentence for each rule or set of rows.

    Args:
        listing: the rows that were claimed.
        claims: who won what.
        what: what the candidates are, in the plural, such as ``"parameters"``.
        remedy: what to do about unclaimed ones, such as ``"add a rule such as '**': tk.init.keep()"``.

    Returns:
        Sentences for `RuleError`; empty when every candidate is claimed and every rule wins something.
    """
    problems = []
    if claims.unclaimed:
        rows = [listing.rows[position] for position in claims.unclaimed]
        count = f"{len(rows)} {what}" if len(rows) > 1 else f"1 of the {what}"
        problems.append(f"no rule claims {count} of {listing.source}: {folded_names(rows)}; {remedy}")
    for rule in claims.overridden:
        by = {
            win for win, lost in zip(claims.winner, claims.losers, strict=True) if win is not None and rule in lost
        }
        later = ", ".join(_quoted(claims.selectors[winner]) for winner in sorted(by))
        problems.append(
            f"the rule {_quoted(claims.selectors[rule])} never wins: later rules claim all that it matches "
            f"({later}); move it below them or remove it"
        )
    problems.extend(
        f"the rule {_quoted(claims.selectors[rule])} matches none of the {what}, only other tensors; "
        "correct or remove it"
        for rule in claims.idle
    )
    return problems


def raise_problems(problems: Sequence[str], headline: str) -> None:
    """Raise one `RuleError` for all problems, or none.

    Args:
        problems: one sentence each.
        headline: what could not be done, such as ``"these rules make no optimizer groups"``.

    Raises:
        RuleError: there are problems; they are in its ``problems``.
    """
    if not problems:
        return
    listed = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
    error = RuleError(f"{headline}:{listed}")
    error.problems = tuple(problems)
    raise error


def folded_names(rows: Sequence[Row], limit: int = 8) -> str:
    """Name rows in a sentence: repeated blocks folded, at most ``limit`` patterns, then how many more rows."""
    from torchkeep.rows.folding import fold  # noqa: PLC0415 - only errors need it

    folded = fold(rows)
    counts = [f" ({len(entry.rows)})" if len(entry.rows) > 1 else "" for entry in folded[:limit]]
    shown = ", ".join(entry.pattern + count for entry, count in zip(folded, counts, strict=False))
    rest = sum(len(entry.rows) for entry in folded[limit:])
    return f"{shown} and {rest} more" if rest else shown


def _quoted(selector: Selector) -> str:
    """Spell a rule's selector for a sentence."""
    return repr(selector.text)
