"""Patterns and names made to be slow: each would run for years if anything here were tried twice."""

from __future__ import annotations

import gc
import weakref

import pytest

from torchkeep.errors import NoMatchError
from torchkeep.rows import Listing, Row, TypeInfo
from torchkeep.selectors import select
from torchkeep.selectors.catalogue import catalogue_of

MODULE = ("torch.nn.modules.module", "Module")


def listing(*names):
    """Return a listing of scalars."""
    return Listing([Row(name, (), "float32") for name in names], None, "the file")


MANY_A = ".".join("a" * 300)
HOSTILE = [
    ("**.a." * 30 + "**.b", MANY_A, False),
    ("**.a." * 30 + "**.a", MANY_A, True),
    ("**.*." * 30 + "**.b", MANY_A, False),
    (".".join(["**"] * 200) + ".b", MANY_A, False),
    ("**.*a*.**.*a*." * 8 + "**.b", MANY_A, False),
    ("*a" * 40 + "*b", "a" * 5000, False),
    ("*a" * 40 + "*b", "a" * 5000 + "b", True),
    ("{a,aa}" * 60 + "b", "a" * 200, False),
    ("{a,aa}" * 60 + "b", "a" * 90 + "b", True),
    ("{*,*a}" * 30 + "b", "a" * 300, False),
    ("{{a,*},{aa,*a}}" * 30 + "b", "a" * 300 + "b", True),
    ("**[-1]." * 30 + "**.x", ".".join("1" * 200), False),
    ("**[:]." * 30 + "**", ".".join("1" * 200), True),
    ("{" + ",".join(f"x{number}" for number in range(50_000)) + "}", "x49999", True),
    ("{" + ",".join(f"x{number}*" for number in range(2000)) + "}", "x1999y", True),
]


@pytest.mark.parametrize(("text", "name", "fits"), HOSTILE, ids=range(len(HOSTILE)))
def test_no_pattern_backtracks_without_end(text, name, fits):
    """Wildcards multiply ways to match, but not the time to try them."""
    assert select(text, allow_empty=True).indices(listing(name)) == ([0] if fits else [])


@pytest.mark.parametrize("text", ["**.b", "a.**.b.**.c", "**[-1].**.x", "re:'b+'", "x" * 100])
def test_a_miss_on_a_name_of_many_segments_is_explained(text):
    """A name a hundred times deeper than any module costs neither the stack nor quadratic memory."""
    with pytest.raises(NoMatchError):
        select(text).indices(listing(".".join(["a"] * 100_000)))


def test_names_beyond_the_text_limit_are_told_apart():
    """Long paths are kept in another way than short ones, and mean the same."""
    long = ".".join(["segment"] * 100)
    rows = listing(f"{long}.0.w", f"{long}.1.w", f"{long}.1.b", long, f"{'y' * 600}.w", f"{'y' * 600}.2.w")
    assert select(f"{long}[-1].*").indices(rows) == [1, 2]
    assert select("**.w").indices(rows) == [0, 1, 4, 5]
    assert select(long).indices(rows) == [3]
    assert select(f"{'y' * 600}[-1].w").indices(rows) == [5]


def test_classes_at_long_paths_are_found():
    """A module too deep for the short way is still of its class."""
    path = ".".join(["inner"] * 150)
    plain, linear = TypeInfo((("m", "Net"), MODULE)), TypeInfo((("m", "Linear"), MODULE))
    modules = {".".join(["inner"] * depth): plain for depth in range(150)} | {path: linear}
    rows = Listing([Row(f"{path}.w", (), "float32"), Row("inner.w", (), "float32")], modules, "the model")
    assert select("@Linear").indices(rows) == [0]
    assert select("@Linear > w").indices(rows) == [0]
    assert select("@Net > w").indices(rows) == [1]


def test_digits_without_end_are_no_number():
    """A segment of 5,000 digits is a name, not a number that Python refuses to read."""
    digits = "9" * 5000
    rows = listing(f"a.{digits}", "a.3")
    assert select("a[-1]").indices(rows) == [1]
    assert select(f"a.{digits}").indices(rows) == [0]


def test_what_is_kept_of_a_listing_goes_with_it():
    """The numbered names are worked out once for each listing, and never outlive it."""
    rows = listing("a", "b")
    assert catalogue_of(rows) is catalogue_of(rows)
    kept = weakref.ref(catalogue_of(rows))
    select("a").indices(rows)
    del rows
    gc.collect()
    assert kept() is None
