"""What is no selector is refused, with the caret at the spot and a sentence that says what to do."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.errors import SelectorError, SelectorSyntaxError
from torchkeep.selectors import select

# Each: the selector with a caret before the character that does not fit, and words that the sentence must hold.
MISTAKES = [
    ("^", "empty; write `**`"),
    ("^  ", "empty; write `**`"),
    ("a.^.b", "segment is empty"),
    ("^.a", "segment is empty"),
    ("a.^", "segment is empty"),
    ("enc^**", "`*` for part of a segment"),
    ("a.^**b.c", "`*` for part of a segment"),
    ("^***", "alone between dots"),
    ("^{q,k", "add `}`"),
    ("a.^{q,{k,v}", "add `}`"),
    ("a^}.b", "closes nothing"),
    ("{a^.b,c}", "write `a.b | c.d`"),
    ("{a,^}", "write each one out"),
    ("{^}", "write each one out"),
    ("{a^**,b}", "alone between dots"),
    ("{a ^b}", "hold alternatives"),
    ("^'abc", "add '"),
    ('a.^"abc', 'add "'),
    ("'a^.b'", "quote each one"),
    (r"'a^\d'", "re:'...'"),
    (r"'a^\x1g'", "re:'...'"),
    (r"'a^\U00110000'", "re:'...'"),
    (r"'a^\x2eb'", "quote each one"),
    ("a^ b".replace("^ ", " ^"), "operator is missing"),
    ("a ^-b", "write `- b`, or `'-b'`"),
    ("a^- b", "space on both sides"),
    ("a ^&b", "space on both sides"),
    ("a^&b", "space on both sides"),
    ("(a)^-b", "space on both sides"),
    ("@Linear^| b", "space on both sides"),
    ("a ^&& b", "write one `&`"),
    ("a ^|| b", "write one `|`"),
    ("a ^and b", "write `&` for `and`"),
    ("a ^or b", "write `|` for `or`"),
    ("^& a", "expected before `&`"),
    ("^- a", "expected before `-`"),
    ("a - ^| b", "expected before `|`"),
    ("a ^|", "expected after `|`"),
    ("(a ^-)", "expected after `-`"),
    ("a & ^~", "expected after `~`"),
    ("(^)", "hold nothing"),
    ("^(a | b", "add `)`"),
    ("a | b^)", "closes nothing"),
    ("a^(b)", "operator between spaces"),
    ("a ^> b", "`a` is none"),
    ("(@A | b) ^> c", "`(@A | b)` is none"),
    ("~@A ^> b > c".replace("^> b >", "> b ^>"), "`b` is none"),
    ("**.weight^[ndim>=2]", "put ` & ` before it"),
    (":param^[ndim>=2]", "put ` & ` before it"),
    ("[^ndmi=2]", "did you mean `ndim`?"),
    ("[^name=2]", "known are ndim, numel"),
    ("[ndim^]", "comparison is expected"),
    ("[ndim^==2]", "write `=`"),
    ("[ndim>=^two]", "such as 2, 1_000 or 1e6"),
    (f"[numel>^{'9' * 5000}]", "at most 100 characters"),
    ("[ndim>=^]", "such as 2, 1_000 or 1e6"),
    ("^[ndim>=2", "add `]`"),
    ("[dtype=^flaot32]", "did you mean `float32`"),
    ("[dtype=^]", "unknown dtype"),
    ("[dtype^>float32]", "no order"),
    ("[device=^]", "such as cpu"),
    ("[shape=^2,3]", "written 64x3x7x7"),
    ("[shape^<2x3]", "no order"),
    (":^frozn", "did you mean `:frozen`?"),
    (":^", "known are `:param`"),
    ("a^:param", "join it with ` & `"),
    ("a^@Linear", "join it with ` & `"),
    ("@^", "expected after `@`"),
    ("@^a..B", "expected after `@`"),
    ("@Conv^*", "named in full"),
    ("re:^foo", "stands in quotes"),
    ("re:^ 'foo'", "stands in quotes"),
    ("re:^'foo", "add '"),
    ("re:'a^(b'", "no regular expression"),
    ("re:'a{1^,99999999999}'".replace("^", "").replace("'a", "'^a"), "no regular expression"),
    ("a[0:6^:2]", "no step"),
    ("a[0^,1]", "write `.{0,3}`"),
    ("a[^*]", "`[:]` for every number"),
    ("a[^]", "such as `[3]`"),
    ("a[1^x]", "such as `[3]`"),
    ("a^[0", "add `]`"),
    ("a[0]^b", "a dot must follow `]`"),
    ("a^]", "closes nothing"),
    ("a[1234567890123456789^]".replace("9^]", "^9]"), "at most 18 digits"),
    ("a.^?", "`*` stands for any part"),
    ("^!a", "write `~`"),
    ("a^,b", "write `{a,b}`"),
    (r"h^\.a", "re:'...'"),
    ("a^=b", "stands only in a field"),
    ("a.b^%", "quoted, such as 'a%b'"),
    ("a^~b", "operator between spaces"),
]


@pytest.mark.parametrize(("marked", "words"), MISTAKES, ids=[marked for marked, _ in MISTAKES])
def test_the_caret_stands_at_the_spot(marked, words):
    """Each mistake that people make is found where it is, and the sentence says what to write instead."""
    position = marked.index("^")
    text = marked.replace("^", "", 1)
    with pytest.raises(SelectorSyntaxError) as caught:
        select(text)
    error = caught.value
    assert (error.text, error.position) == (text, position)
    assert words in error.problem
    assert str(error) == f"{error.problem}\n  {text}\n  {' ' * position}^"


def test_the_caret_is_right_below_wide_and_broken_text():
    """The picture is one line, and the caret accounts for characters that take two columns or none."""
    with pytest.raises(SelectorSyntaxError) as caught:
        select("层.\n")
    assert str(caught.value).splitlines()[1:] == ["  层. ", "     ^"]


def test_the_error_is_a_value_error_that_survives_pickling():
    """Callers may catch ValueError, and a worker may hand the error on, details included."""
    with pytest.raises(ValueError, match="is empty") as caught:
        select("a..b")
    back = pickle.loads(pickle.dumps(caught.value))
    assert (str(back), back.text, back.position) == (str(caught.value), "a..b", 2)


def test_what_is_no_text_is_refused_by_type():
    """A selector is a string or a Selector; the error says what was given."""
    with pytest.raises(SelectorError, match="a selector is a string or a Selector, not int: 3"):
        select(3)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="ab.*{},[]'\"\\ &|-~>@:=()0:!re:ndim<"))
def test_any_text_is_a_selector_or_a_syntax_error(text):
    """No text crashes the parser, and the caret never leaves the text."""
    try:
        select(text)
    except SelectorSyntaxError as error:
        assert 0 <= error.position <= len(text)  # noqa: PT017 - most texts raise nothing


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + "a" + ")" * 5000,
        "~" * 5000 + "a",
        "{" * 5000 + "a" + "}" * 5000,
        "@A > " * 5000 + "a",
        "~(" * 5000 + "a" + ")" * 5000,
    ],
    ids=["parentheses", "not", "braces", "inside", "mixed"],
)
def test_bottomless_nesting_is_a_syntax_error(text):
    """Nesting beyond what people write is refused, never a RecursionError."""
    with pytest.raises(SelectorSyntaxError, match="nested deeper than 64 levels"):
        select(text)


@pytest.mark.parametrize(
    "text", [" | ".join(["a"] * 20_000), " - ".join(["a"] * 20_000), ".".join(["a"] * 20_000), "- " * 20_001]
)
def test_long_selectors_are_read(text):
    """Length is no depth: operators in a row nest nothing and are read in time linear in their number."""
    assert select(text.strip()).text == text.strip()
