"""Each form of the language, on one small model that has an example of everything."""

from __future__ import annotations

import pytest

from torchkeep.errors import MissingFieldError
from torchkeep.rows import Listing, Row, TypeInfo
from torchkeep.selectors import select

MODULE = ("torch.nn.modules.module", "Module")


def type_info(module, *qualnames):
    """Return a class with its bases, all of one module."""
    return TypeInfo((*((module, qualname) for qualname in qualnames), MODULE))


LINEAR = type_info("torch.nn.modules.linear", "Linear")
BLOCK = type_info("my.pkg", "Block")
MODULES = {
    "": type_info("my.pkg", "Net"),
    "embed": type_info("torch.nn.modules.sparse", "Embedding"),
    "blocks": type_info("torch.nn.modules.container", "ModuleList"),
    "head": type_info("my.pkg", "Head", "Linear"),
    "odd one": type_info("tests.test_x", "test_it.<locals>.Odd"),
    "norm": type_info("my.pkg", "Outer.Norm"),
    **{f"blocks.{number}": BLOCK for number in (0, 1, 2, 10)},
    **{f"blocks.{number}.fc": LINEAR for number in (0, 1, 2, 10)},
    "blocks.10.inner": BLOCK,
    "blocks.10.inner.fc": LINEAR,
    "wn": LINEAR,
    "wn.parametrizations": type_info("torch.nn.modules.container", "ModuleDict"),
    "wn.parametrizations.weight": type_info("torch.nn.utils.parametrize", "ParametrizationList"),
}


def parameter(name, *shape, **more):
    """Return the row of a trainable float32 parameter."""
    return Row(name, **({"shape": shape, "dtype": "float32", "kind": "parameter", "trainable": True} | more))


ROWS = [
    parameter("embed.weight", 100, 8, aliases=("head.weight",)),
    parameter("blocks.0.fc.weight", 8, 8),
    parameter("blocks.0.fc.bias", 8),
    parameter("blocks.1.fc.weight", 8, 8, trainable=False),
    parameter("blocks.2.fc.weight", 8, 8, dtype="bfloat16"),
    parameter("blocks.10.fc.weight", 8, 8, device="cuda:0"),
    parameter("blocks.10.inner.fc.weight", 8, 8, device="meta"),
    parameter("head.bias", 100),
    Row("norm.mean", (), "float32", kind="buffer", trainable=False),
    Row("blocks.11", (3,), "int64", kind="buffer", trainable=False, persistent=False),
    parameter("odd one.x", 2),
    parameter("wn.parametrizations.weight.original0", 8, 1, plain=("wn.weight",)),
    parameter("lazy", shape=None),
]
NET = Listing(ROWS, MODULES, "the model")
FC = [f"blocks.{number}.fc.weight" for number in (0, 1, 2, 10)]

FORMS = {
    # Names
    "lazy": ["lazy"],
    "blocks.0.fc.*": ["blocks.0.fc.weight", "blocks.0.fc.bias"],
    "blocks.*.fc.w*t": FC,
    "*.*ias": ["head.bias"],
    "**.fc.bias": ["blocks.0.fc.bias"],
    "blocks.**.weight": [*FC, "blocks.10.inner.fc.weight"],
    "blocks.10.**.fc.weight": ["blocks.10.fc.weight", "blocks.10.inner.fc.weight"],
    "lazy.**": ["lazy"],
    "**.**.lazy": ["lazy"],
    "blocks.0.fc.{weight,bias}": ["blocks.0.fc.weight", "blocks.0.fc.bias"],
    "{norm,he{x,ad}}.{m*,b*}": ["head.bias", "norm.mean"],
    "{ norm , head }.*": ["embed.weight", "head.bias", "norm.mean"],
    "'odd one'.x": ["odd one.x"],
    '"odd one".*': ["odd one.x"],
    "'odd '*.x": ["odd one.x"],
    "{'odd one',norm}.*": ["norm.mean", "odd one.x"],
    "re:'blocks.[0-9].fc..*'": ["blocks.0.fc.weight", "blocks.0.fc.bias", *FC[1:3]],
    're:"lazy"': ["lazy"],
    # Slices: by value; -1 is the highest number among persistent names, so the buffer `blocks.11` does not count
    "blocks[0:2].fc.weight": FC[:2],
    "blocks[1:].fc.weight": FC[1:],
    "blocks[:2].fc.weight": FC[:2],
    "blocks[:].fc.weight": FC,
    "blocks.[:].fc.weight": FC,
    "blocks[2].**": FC[2:3],
    "blocks[-1].fc.*": FC[3:],
    "blocks[-9:].fc.*": FC[2:],
    "blocks[-9].fc.*": FC[2:3],
    "blocks[:-1].fc.weight": FC[:3],
    "blocks[-100:1].fc.weight": FC[:1],
    "blocks[ 0 : 2 ].fc.weight": FC[:2],
    "blocks[11]": ["blocks.11"],
    "**[1].**": FC[1:2],
    # Ties and parametrized weights
    "head.weight": ["embed.weight"],
    "wn.weight": ["wn.parametrizations.weight.original0"],
    "wn.parametrizations.weight.*": ["wn.parametrizations.weight.original0"],
    # Classes
    "@Linear": [
        "embed.weight",
        "blocks.0.fc.weight",
        "blocks.0.fc.bias",
        *FC[1:],
        "blocks.10.inner.fc.weight",
        "head.bias",
        "wn.parametrizations.weight.original0",
    ],
    "@=Head": ["embed.weight", "head.bias"],
    "@=my.pkg.Head": ["embed.weight", "head.bias"],
    "@my.Head": ["embed.weight", "head.bias"],
    "@torch.nn.Embedding": ["embed.weight"],
    "@torch.nn.modules.sparse.Embedding": ["embed.weight"],
    "@Norm": ["norm.mean"],
    "@Outer.Norm": ["norm.mean"],
    "@my.pkg.Outer.Norm": ["norm.mean"],
    "@Odd": ["odd one.x"],
    "@'test_it.<locals>.Odd'": ["odd one.x"],
    "@'tests.test_x.test_it.<locals>.Odd'": ["odd one.x"],
    "@Net": ["lazy"],
    # Inside modules of a class
    "@Block > fc.weight": [*FC, "blocks.10.inner.fc.weight"],
    "@Block > inner.fc.weight": ["blocks.10.inner.fc.weight"],
    "@ModuleList > [-1].fc.weight": FC[3:],
    "@Block > @Block > **": [
        "blocks.0.fc.weight",
        "blocks.0.fc.bias",
        *FC[1:],
        "blocks.10.inner.fc.weight",
    ],
    "(@Embedding | @Head) > *": ["embed.weight", "head.bias"],
    "@Linear > bias": ["blocks.0.fc.bias", "head.bias"],
    "@Block > re:'fc.bias'": ["blocks.0.fc.bias"],
    "@Block > (fc.* - *.weight)": ["blocks.0.fc.bias"],
    # In each block by itself: `blocks.10.inner.fc.weight` is no `fc.weight` as seen from `blocks.10`.
    "@Block > (** - fc.weight)": ["blocks.0.fc.bias", "blocks.10.inner.fc.weight"],
    "@Block > ~fc.weight": ["blocks.0.fc.bias", "blocks.10.inner.fc.weight"],
    # Kind, state, fields
    ":param & **.bias": ["blocks.0.fc.bias", "head.bias"],
    ":buffer": ["norm.mean", "blocks.11"],
    ":frozen": ["blocks.1.fc.weight"],
    "blocks.** - :trainable": ["blocks.1.fc.weight", "blocks.11"],
    ":tied": ["embed.weight"],
    ":meta": ["blocks.10.inner.fc.weight"],
    ":lazy": ["lazy"],
    "~:lazy & [ndim=0]": ["norm.mean"],
    "~:lazy & [ndim!=2] - [ndim<1]": ["blocks.0.fc.bias", "head.bias", "blocks.11", "odd one.x"],
    "** - :lazy & [numel>=8e2]": ["embed.weight"],
    "** - :lazy & [nbytes<=12]": ["norm.mean", "odd one.x"],
    "** - :lazy & [shape=100x8]": ["embed.weight"],
    "** - :lazy & [ shape = () ]": ["norm.mean"],
    "[dtype=bf16]": ["blocks.2.fc.weight"],
    "[dtype!=torch.float]": ["blocks.2.fc.weight", "blocks.11"],
    "[device=cuda]": ["blocks.10.fc.weight"],
    "[device=cuda:0]": ["blocks.10.fc.weight"],
    "[device!=cpu]": ["blocks.10.fc.weight", "blocks.10.inner.fc.weight"],
    # Algebra
    "head.bias | embed.*": ["embed.weight", "head.bias"],
    "**.bias - head.* | lazy": ["blocks.0.fc.bias", "lazy"],
    "lazy | **.bias & head.**": ["head.bias", "lazy"],
    "**.bias - (head.* | lazy)": ["blocks.0.fc.bias"],
    "**.bias - head.* & **": ["blocks.0.fc.bias"],
    "~**.*.*": ["lazy"],
    "~~lazy": ["lazy"],
    "~@Block > **.weight & blocks.**": ["blocks.0.fc.bias", "blocks.11"],
    "\n  **.bias\n  - (\n    head.*\n  )\n": ["blocks.0.fc.bias"],
}


@pytest.mark.parametrize(("text", "names"), FORMS.items(), ids=FORMS)
def test_each_form_selects_what_the_language_says(text, names):
    """Every form, alone and combined, selects the rows that its definition says, in their order."""
    assert [ROWS[position].name for position in select(text).indices(NET)] == names


def found(listing, text):
    """Return the names that a selector selects, none too."""
    return [listing.rows[position].name for position in select(text, allow_empty=True).indices(listing)]


@pytest.mark.parametrize("name", ["my.pk.Block", "kg.Block", "Blo", "block", "pkg.Block.x", "my.pkg.Outer"])
def test_a_class_is_named_in_full(name):
    """Parts of a class's name, or of its module's, name nothing."""
    assert found(NET, f"@{name} > **") == []


def test_plain_names_do_not_count_as_numbers_present():
    """A parametrized weight's plain name stands in no file, so -1 means the same in the live module and there."""
    rows = [parameter("p.1.w", 2), parameter("p.1.original", 2, plain=("p.7",))]
    assert found(Listing(rows, None, "the model"), "p[-1].w") == ["p.1.w"]


def test_a_tensor_in_two_modules_is_seen_from_each_by_itself():
    """What is taken away as seen from one module stays as seen from the other."""
    rows = [parameter("one.a", 2, aliases=("two.b",)), parameter("two.a", 2, aliases=("two.c",))]
    listing = Listing(rows, {"": MODULES[""], "one": BLOCK, "two": BLOCK}, "the model")
    assert found(listing, "@Block > (a - b)") == ["one.a", "two.a"]
    assert found(listing, "@Block > (a & c)") == ["two.a"]
    assert found(listing, "@Block > (a & b)") == []
    assert found(listing, "@Block > c") == ["two.a"]


def test_modules_around_are_not_inside():
    """Right of ``>`` only modules at or under the left side's count, not those that hold it."""
    listing = Listing([parameter("b.a.w", 2)], {"": MODULES[""], "b": BLOCK, "b.a": LINEAR}, "the model")
    assert found(listing, "@Block > @Linear > w") == ["b.a.w"]
    assert found(listing, "@Linear > @Block > a.w") == []
    assert found(listing, "@Linear > @Block > **") == []


MISSING = {
    "@Linear": ("`@Linear` asks for a module's class, which the mapping does not know", None),
    "a | (@Block > x)": ("`@Block` asks for a module's class", None),
    "nothing & @Linear": ("`@Linear` asks for a module's class", None),
    ":param": ("`:param` asks what the mapping does not know of a, b, 'c d' and 1 more", {"kind": None}),
    ":buffer": ("`:buffer` asks what the mapping does not know", {"kind": None}),
    ":trainable": ("`:trainable` asks what the mapping does not know", {"trainable": None}),
    ":frozen": ("`:frozen` asks what the mapping does not know", {"trainable": None}),
    "~:frozen": ("`:frozen` asks what the mapping does not know", {"trainable": False, "kind": None}),
    "[ndim=1]": ("`[ndim=1]` asks what the mapping does not know of a.*run the model once", {"shape": None}),
    "~[shape=2]": ("`~:lazy & [shape=2]`", {"shape": None}),
}


@pytest.mark.parametrize(("text", "expected"), MISSING.items(), ids=MISSING)
def test_what_a_source_does_not_know_is_an_error(text, expected):
    """A class, kind or shape that the source does not hold is never taken for "no match"."""
    words, fields = expected
    known = {"shape": (2,), "kind": "parameter", "trainable": True} | (fields or {})
    listing = Listing(
        [Row(name, dtype="float32", **known) for name in ("a", "b", "c d", "e")], None, "the mapping"
    )
    with pytest.raises(MissingFieldError) as caught:
        select(text, allow_empty=True).indices(listing)
    first, *rest = words.split(".*")
    assert first in str(caught.value)
    assert all(part in str(caught.value) for part in rest)


def test_fields_are_asked_only_of_rows_that_still_matter():
    """``&`` and ``-`` ask their right side only about what the left side left, so lazy rows can be put aside."""
    assert [ROWS[position].name for position in select("embed.* & [ndim=2]").indices(NET)] == ["embed.weight"]
    with pytest.raises(MissingFieldError, match="lazy"):
        select("[ndim=2] & embed.*").indices(NET)


def test_a_buffer_is_neither_trainable_nor_frozen_even_where_that_is_unknown():
    """A source that knows kinds but not what is trainable can still tell it of buffers."""
    listing = Listing([Row("a", (2,), "float32", kind="buffer")], None, "the file")
    assert select(":trainable | :frozen", allow_empty=True).indices(listing) == []
