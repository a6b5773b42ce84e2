"""Selectors as Python objects: made, combined, compared, shown."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import reduce
from operator import or_, sub

import pytest

import torchkeep as tk
from torchkeep.errors import NoMatchError, SelectorError
from torchkeep.rows import Listing, Row
from torchkeep.selectors import Selector, as_literal, as_selector, select, where

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias"]
NET = Listing([Row(name, (2,), "float32", kind="parameter", trainable=True) for name in NAMES], None, "the model")


def found(selector):
    """Return the names that a selector selects."""
    return [NAMES[position] for position in selector.indices(NET)]


def test_the_public_names_are_these():
    """What users import from torchkeep is what this package makes."""
    assert (tk.select, tk.where, tk.Selector) == (select, where, Selector)


def test_operators_mean_what_they_mean_in_the_language():
    """Selectors combine in Python as in text, with text on either side."""
    a, bias = select("a.*"), select("**.bias")
    assert found(a | bias) == ["a.weight", "a.bias", "b.bias"]
    assert found(a & bias) == ["a.bias"]
    assert found(a - bias) == ["a.weight"]
    assert found(~a) == ["b.weight", "b.bias"]
    assert found(a | "b.bias") == found("a.*" | bias) == ["a.weight", "a.bias", "b.bias"]
    assert found("a.*" & bias) == ["a.bias"]
    assert found("a.*" - bias) == ["a.weight"]


def test_python_and_the_language_group_alike():
    """Python's precedence differs from the language's, but what is selected does not."""
    a, bias, b = select("a.*"), select("**.bias"), select("b.*")
    assert found(a - bias & a | b) == found(select("a.* - **.bias & a.* | b.*"))
    assert found(~a | bias & a) == found(select("~a.* | **.bias & a.*"))


def test_what_is_no_selector_does_not_combine():
    """Python's own TypeError, as for any operator on foreign types."""
    with pytest.raises(TypeError, match="unsupported operand"):
        select("a") | 3


def test_a_function_selects_rows():
    """`where` hands each row to the function, and combines like any selector."""
    assert found(where(lambda row: row.name.startswith("a"))) == ["a.weight", "a.bias"]
    assert found("**.bias" - where(lambda row: row.name.startswith("a"))) == ["b.bias"]


def test_a_function_is_asked_only_about_what_is_left():
    """Behind ``&`` and ``-`` the function sees only the rows that still matter, and each of them once."""
    asked = []
    found("a.*" & where(lambda row: asked.append(row.name) or True))
    assert asked == ["a.weight", "a.bias"]


def test_a_functions_own_error_is_not_swallowed():
    """What the function raises reaches the caller as it is."""
    with pytest.raises(ZeroDivisionError):
        where(lambda row: row.ndim // 0).indices(NET)


@pytest.mark.parametrize(("fn", "words"), [("a.*", "not str"), (None, "not NoneType")])
def test_where_takes_only_functions(fn, words):
    """Text given to `where` is told apart from text for `select`."""
    with pytest.raises(SelectorError, match=words):
        where(fn)


def test_the_text_is_as_given_and_of_a_combination_canonical():
    """Errors and plans show what the user wrote; combinations show something that reads back."""
    assert select("  a.* |  **.bias ").text == "a.* |  **.bias"
    combined = (select("a.*") | "b.bias") - ~select("**.weight")
    assert combined.text == "(a.* | b.bias) - ~**.weight"
    assert select(combined.text) == combined
    assert repr(select("a.*", allow_empty=True)) == "select('a.*', allow_empty=True)"
    assert "where(" in (select("a") | where(callable)).text


def test_matching_nothing_is_allowed_only_where_every_part_allows_it():
    """A combination is lenient only when all its Selectors are; text has no opinion."""
    strict, lenient = select("x"), select("x", allow_empty=True)
    assert (lenient | "y").indices(NET) == []
    assert (~(lenient | "**")).indices(NET) == []
    assert not (strict | lenient).allow_empty
    with pytest.raises(NoMatchError):
        (strict | lenient).indices(NET)
    with pytest.raises(NoMatchError):
        select(lenient).indices(NET)


def test_selectors_compare_by_meaning_of_the_text():
    """Spacing and quoting are no difference; leniency is; equal selectors hash alike."""
    assert select("a |  'b'") == select("a | b") != select("a | c")
    assert len({select("a | b"), select(" a | b"), select("a | b", allow_empty=True)}) == 2
    assert select("a") != "a"


def test_selectors_survive_pickling():
    """A worker gets the same selector."""
    selector = select("(@A | @B) > {q,k}* & blocks[-2:].** - ~:buffer | [numel>1e6] | re:'x'", allow_empty=True)
    back = pickle.loads(pickle.dumps(selector))
    assert back == selector
    assert back.text == selector.text


def test_a_selector_is_taken_as_it_is():
    """`as_selector` reads text and hands Selectors through."""
    selector = select("a.*", allow_empty=True)
    assert as_selector(selector) is selector
    assert found(as_selector("a.*")) == ["a.weight", "a.bias"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (":buffer", True),
        ("a & ~(b | c - :buffer)", True),
        ("@A > (x & :buffer)", True),
        (":param", False),
        ("buffer", False),
    ],
)
def test_saying_buffer_is_noticed_wherever_it_stands(text, said):
    """Rules take buffers only where their expression says so, at whatever depth."""
    assert select(text).mentions_buffers is said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.b", "a.b"),
        ("0.'block 1'.bias", "0.block 1.bias"),
        ("a.*", None),
        ("a[0]", None),
        ("a b", None),
        ("{a}", None),
    ],
)
def test_plain_names_are_told_from_patterns(text, name):
    """Text that spells one name gives that name; patterns and mistakes give None."""
    assert as_literal(text) == name


def test_thousands_of_selectors_join():
    """Joining in a loop nests nothing, so that it ends neither in a RecursionError nor in the limit on depth."""
    names = [f"x{number}" for number in range(2000)]
    assert found(reduce(or_, map(select, names), select("a.bias"))) == ["a.bias"]
    assert found(reduce(sub, map(select, names), select("a.*"))) == ["a.weight", "a.bias"]


def test_bottomless_nesting_in_python_is_refused_with_a_sentence():
    """What can't be laid flat has a limit, and reaching it is torchkeep's error."""
    with pytest.raises(SelectorError, match="nests deeper than 64 levels"):
        reduce(lambda selector, _: ~selector, range(100), select("a"))


def test_importing_selectors_imports_neither_torch_nor_rapidfuzz():
    """Listing a file must be quick: what only errors need is not loaded before there is one."""
    code = (
        "import sys, torchkeep.selectors; print([m for m in ('torch', 'rapidfuzz', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
