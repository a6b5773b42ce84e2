"""Renames are anchored patterns: what stands for text in one stands for it in the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.errors import SelectorError, SelectorSyntaxError
from torchkeep.files.renaming import new_name, renames_of

RENAMED = [
    ("module.", "", "module.a.b", "a.b"),
    ("module.", "", "a.module.b", None),
    ("module.", "", "module", None),
    ("", "backbone.", "a.b", "backbone.a.b"),
    ("encoder.layer.*.", "blocks.*.", "encoder.layer.3.attn.w", "blocks.3.attn.w"),
    ("encoder.layer.*.", "blocks.*.", "encoder.layer.3", None),
    ("old.*", "new.*", "old.weight", "new.weight"),
    ("old.*", "new.*", "old.a.weight", None),
    ("*.weight", "*.w", "a.weight", "a.w"),
    ("q_*", "*_q", "q_proj", "proj_q"),
    ("*_*.w", "*-*.w", "a_b_c.w", "a_b-c.w"),
    ("**._orig_mod.**", "**.**", "a.b._orig_mod.c", "a.b.c"),
    ("**._orig_mod.**", "**.**", "_orig_mod.c", "c"),
    ("a.**", "b.**", "a.x.y", "b.x.y"),
    ("a.**", "b.**", "a", "b"),
    ("a.**.z", "b.**.z", "a.z", "b.z"),
    ("blocks[0:6].**", "layers[6:12].**", "blocks.5.w", "layers.11.w"),
    ("blocks[0:6].**", "layers[6:12].**", "blocks.6.w", None),
    ("blocks[2:].", "layers[:].", "blocks.10.w", "layers.8.w"),
    ("blocks[3].w", "first[0].w", "blocks.3.w", "first.0.w"),
    ("blocks[0:2][0:2].w", "b[0:2][1:3].w", "blocks.1.0.w", "b.1.1.w"),
    ("blocks[0:2].w", "b[0:2].w", "blocks.x.w", None),
    ("'block 1'.w", "b.w", "block 1.w", "b.w"),
    ("a.w", "'x*y'.w", "a.w", "x*y.w"),
    ("a+b.(c)", "d", "a+b.(c)", "d"),
]


@pytest.mark.parametrize(("source", "target", "name", "wanted"), RENAMED)
def test_a_rename_moves_what_its_wildcards_stand_for(source, target, name, wanted):
    """Anchored at both ends unless it ends with a dot; texts go into the same wildcards, slices may move."""
    renames = renames_of({source: target})
    assert new_name(renames, name) == (wanted or name, renames[0] if wanted else None)


WRONG = [
    ("a.", "b", "end with a dot"),
    ("a", "b.", "end with a dot"),
    ("a.*", "b", "wildcards"),
    ("*.**", "**.*", "wildcards"),
    ("a[0:2]", "b[0:3]", "equally long"),
    ("a[0:2]", "b[0:]", "equally long"),
    ("a**", "b", "whole segments"),
    ("{a,b}", "c", "alternatives"),
    ("a..b", "c", "empty"),
    (".a", "c", "empty"),
    ("'x", "c", "no end"),
    ("a[-1]", "b", "a slice is"),
    ("a[0]b", "c", "whole segment"),
]


@pytest.mark.parametrize(("source", "target", "problem"), WRONG)
def test_a_pattern_that_can_not_be_read_is_shown_with_a_caret(source, target, problem):
    """Each mistake is a SelectorSyntaxError that says what a pattern may hold."""
    with pytest.raises(SelectorSyntaxError, match=problem) as caught:
        renames_of({source: target})
    assert "^" in str(caught.value)


@pytest.mark.parametrize("renames", [5, [("a", 3)], [1], [("a", "b", "c")], {3: "a"}])
def test_what_is_no_rename_is_refused(renames):
    """A mapping of texts, or pairs of them, is expected."""
    with pytest.raises(SelectorError, match="rename is a mapping"):
        renames_of(renames)


SEGMENTS = st.lists(st.sampled_from(["a", "b", "0", "1", "weight"]), min_size=1, max_size=5)


@given(SEGMENTS, st.data())
def test_a_pattern_made_from_a_name_matches_it_and_moves_nothing(segments, data):
    """Any segment replaced by a star, any run by two: renaming a pattern to itself changes no name."""
    pattern = list(segments)
    for position in range(len(pattern)):
        if data.draw(st.booleans()):
            pattern[position] = data.draw(st.sampled_from(["*", "**"]))
    text, name = ".".join(pattern), ".".join(segments)
    renames = renames_of({text: text})
    assert new_name(renames, name) == (name, renames[0])
