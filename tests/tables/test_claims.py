"""Rules over rows: the last that matches wins, unclaimed rows and rules that never win are told."""

from __future__ import annotations

import pytest

from torchkeep.errors import NoMatchError, RuleError, SelectorSyntaxError
from torchkeep.rows import Listing, Row
from torchkeep.selectors import as_selector, select, where
from torchkeep.tables.claims import claim, complaints, folded_names, raise_problems, split_rules

ROWS = [
    Row("0.weight", (2, 2), "float32", kind="parameter", trainable=True, aliases=("1.weight",)),
    Row("0.bias", (2,), "float32", kind="parameter", trainable=True),
    Row("1.bias", (2,), "float32", kind="parameter", trainable=False),
    Row("1.mean", (2,), "float32", kind="buffer", trainable=False),
]
LISTING = Listing(ROWS, {}, "the model")


def claimed(*expressions, **options):
    return claim(LISTING, [as_selector(expression) for expression in expressions], **options)


def told(claims):
    return complaints(LISTING, claims, what="parameters", remedy="add a rule")


def test_the_last_rule_that_matches_wins():
    """Later rules override earlier ones, also when they match a tie under another name."""
    claims = claimed("**", "**.bias", "1.weight")
    assert claims.winner == (2, 1, 1, None)
    assert claims.losers == ((0,), (0,), (0,), ())
    assert claims.won() == [[], [1, 2], [0]]
    assert claims.overridden == (0,)


def test_buffers_are_claimed_only_where_a_rule_says_so():
    """A buffer falls to a rule that says :buffer, and to no other, and never needs one."""
    assert claimed("**", buffers=True).winner == (0, 0, 0, None)
    assert claimed("**", ":buffer", buffers=True).winner == (0, 0, 0, 1)
    assert claimed("**", "1.mean & :buffer", buffers=True).winner == (0, 0, 0, 1)
    assert claimed("**", "1.mean & :buffer", "**", buffers=True).winner == (2, 2, 2, 1)
    closed = claimed("**", ":buffer")
    assert (closed.winner, closed.idle) == ((0, 0, 0, None), (1,))


def test_candidates_decide_who_needs_a_rule():
    """Rows that are no candidates are neither claimed nor missed."""
    claims = claimed("**.bias", candidates=lambda row: bool(row.trainable))
    assert claims.winner == (None, 0, None, None)
    assert claims.unclaimed == (0,)
    idle = claimed("**.weight", "0.bias", "1.bias", candidates=lambda row: bool(row.trainable))
    assert (idle.idle, idle.overridden, idle.unclaimed) == ((2,), (), ())


def test_a_rule_without_a_match_is_an_error():
    """One miss is raised as it is, several together; a rule that may be empty is no miss."""
    with pytest.raises(NoMatchError, match=r"\*\*\.wieght"):
        claimed("**", "**.wieght")
    with pytest.raises(NoMatchError, match=r"(?s)\*\*\.wieght.*\*\*\.baas"):
        claimed("**.wieght", "**.baas", "**")
    claims = claim(LISTING, [as_selector("**"), select("nothing", allow_empty=True)])
    assert (claims.overridden, claims.idle, claims.won()[1]) == ((), (), [])


def test_complaints_name_rules_and_rows():
    """Each unclaimed row, each overridden rule with those above it, and each idle rule is named."""
    assert told(claimed("**")) == []
    unclaimed, overridden, idle = told(claimed("0.*", "0.bias", "0.weight", "1.mean"))
    assert unclaimed == "no rule claims 1 of the parameters of the model: 1.bias; add a rule"
    assert "'0.*' never wins" in overridden
    assert "('0.bias', '0.weight')" in overridden
    assert "'1.mean' matches none of the parameters" in idle


def test_many_unclaimed_rows_are_folded():
    """Repeated blocks are named once, with their number, and a long list is cut with the number of the rest."""
    rows = [Row(f"layers.{i}.weight", (2,), "float32", kind="parameter") for i in range(12)]
    assert folded_names(rows) == "layers[0:12].weight (12)"
    odd = [Row(f"w{'x' * i}", (i + 1,), "float32", kind="parameter") for i in range(12)]
    assert folded_names(odd, limit=2) == "w, wx and 10 more"


def test_rules_come_as_a_mapping_or_as_pairs():
    """Both forms give the same; keys may be built selectors; an iterator is read once."""
    built = where(lambda row: row.numel > 2)
    selectors, values = split_rules({"**": 1, built: 2}, "a number")
    again, same = split_rules(iter([("**", 1), [built, 2]]), "a number")
    assert [str(s.text) for s in selectors] == [str(s.text) for s in again]
    assert selectors[1] is again[1] is built
    assert values == same == [1, 2]


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ("**", "not str"),
        (3, "not int"),
        (["**"], r"rule 1 is no pair: '\*\*'"),
        ([("**", 1), ("a", 1, 2)], "rule 2 is no pair"),
        ({3: 1}, "rule 1 starts with int, which is no selector"),
        ({}, "there is no rule at all"),
    ],
)
def test_what_is_no_rules(rules, problem):
    """Anything else is a RuleError that says what rules are."""
    expected = "rules are a mapping or a list of pairs, each a selector and a number"
    with pytest.raises(RuleError, match=f"{expected}.*{problem}"):
        split_rules(rules, "a number")
    with pytest.raises(SelectorSyntaxError):
        split_rules({"[": 1}, "a number")


def test_problems_are_raised_together():
    """One problem reads as one sentence, several as a list; all are on the error; none raises nothing."""
    raise_problems([], "no plan")
    with pytest.raises(RuleError, match=r"^no plan: a$"):
        raise_problems(["a"], "no plan")
    with pytest.raises(RuleError, match=r"^no plan:\n  - a\n  - b$") as caught:
        raise_problems(["a", "b"], "no plan")
    assert caught.value.problems == ("a", "b")
