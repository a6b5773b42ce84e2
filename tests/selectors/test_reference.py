"""The evaluator against a slow and obvious one, on random names and random selectors."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from selector_reference import glob_fits, selected, spell
from selector_strategies import SEGMENTS, listings, name_patterns, names, pieces, selectors
from torchkeep.errors import NoMatchError
from torchkeep.names import quote_name
from torchkeep.rows import Listing, Row
from torchkeep.selectors import as_literal, select
from torchkeep.selectors.parser import parse
from torchkeep.selectors.patterns import _reach, segment_test

many = settings(max_examples=150, deadline=None)


@many
@given(listings(), selectors)
def test_the_same_rows_as_the_reference(listing, node):
    """Whatever the names, ties, classes, kinds and the selector, both readings select the same rows."""
    selector = select(spell(node), allow_empty=True)
    assert selector.indices(listing) == selected(listing, node)


@many
@given(listings(), name_patterns)
def test_the_same_names_as_the_reference(listing, node):
    """Patterns of names alone, of which random selectors hold too few, select the same rows too."""
    assert select(spell(node), allow_empty=True).indices(listing) == selected(listing, node)


@many
@given(selectors)
def test_the_canonical_spelling_reads_back(node):
    """What a tree is spelled as is read as the same tree, so that shown selectors can be pasted."""
    tree = parse(spell(node)).node
    assert parse(str(tree)).node == tree


@many
@given(listings(), name_patterns)
def test_a_file_answers_as_the_live_module(listing, node):
    """Rows that a file can't hold (non-persistent buffers) change nothing for the rows that it holds."""
    selector = select(spell(node), allow_empty=True)
    kept = Listing([row for row in listing.rows if row.persistent], listing.modules, "the file")
    live = [listing.rows[position] for position in selector.indices(listing)]
    assert [kept.rows[position] for position in selector.indices(kept)] == [row for row in live if row.persistent]


@many
@given(listings(), selectors)
def test_a_miss_is_explained_and_every_suggestion_matches(listing, node):
    """No match is always a sentence, never a crash, and each suggested name pattern selects something."""
    assume(not selected(listing, node))
    text = spell(node)
    with pytest.raises(NoMatchError) as caught:
        select(text).indices(listing)
    assert str(caught.value).startswith(f"`{text}` matches nothing in the model: ")
    for suggestion in caught.value.nearest:
        found = select(suggestion, allow_empty=True).indices(listing)
        assert found


texts = st.text(max_size=8) | st.sampled_from(SEGMENTS)


@many
@given(st.lists(st.lists(texts, min_size=1, max_size=4).map(".".join) | names, min_size=1, unique=True))
@example(["", ".", "..a", "a."])
@example(["-", "re:'x'", "**", "*", "{a,b}", "a b", "'", '"', "\\", "@x", ":param", "~a", "a\nb", "[0]"])
def test_pasting_a_quoted_name_selects_exactly_that_row(keys):
    """Whatever a key is called, its quoted spelling selects it and nothing else, and can be shown as it is."""
    listing = Listing([Row(key, (), "float32") for key in keys], None, "the mapping")
    for position, key in enumerate(keys):
        assert select(quote_name(key)).indices(listing) == [position]
        assert as_literal(quote_name(key)) == key
        assert quote_name(key).isprintable()


@many
@given(pieces, st.text("ab1", max_size=6))
def test_a_segment_fits_however_it_is_tried(found, text):
    """Sets, regular expressions and positions side by side, of which one is chosen by size, agree."""
    node = parse(spell(("names", [("glob", found)]))).node
    (segment,) = node.segments
    fits = glob_fits(found, text)
    assert segment_test(segment.pieces)(text) == fits
    assert (len(text) in _reach(segment.pieces, text, {0})) == fits


@pytest.mark.parametrize(
    "text",
    ["re:'a'", """re:"it's \\" q" """, "re:'\\''", "[shape=()]", "[numel>=1.5]", "@'a.<b>.C'", r"@'a\x1b.C'"],
)
def test_unusual_spellings_read_back(text):
    """Quotes in quotes, scalars, fractions and odd class names survive being shown and pasted."""
    tree = parse(text).node
    assert parse(str(tree)).node == tree


def test_the_reference_can_disagree():
    """The comparison is worth something: for a wrong answer the reference says no."""
    listing = Listing([Row("a.0.b", (), "float32"), Row("a.1.b", (), "float32")], {}, "the model")
    assert selected(listing, ("names", [("glob", ["a"]), ("number", -1), ("deep",)])) == [1]
    with pytest.raises(NoMatchError):
        select("a[2].**").indices(listing)
