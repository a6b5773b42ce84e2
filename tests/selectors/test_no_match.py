"""A selector that matches nothing says which part of it found nothing, and what is near."""

from __future__ import annotations

import pytest

from torchkeep.errors import NoMatchError
from torchkeep.rows import Listing, Row, TypeInfo
from torchkeep.selectors import select, where
from torchkeep.selectors.suggest import alternatives, did_you_mean, nearest

MODULE = ("torch.nn.modules.module", "Module")
LINEAR = TypeInfo((("torch.nn.modules.linear", "Linear"), MODULE))
LAYER = TypeInfo((("my.pkg", "Layer"), MODULE))
NAMES = [
    f"encoder.layers.{number}.{leaf}"
    for number in range(4)
    for leaf in ("attn.weight", "attn.bias", "mlp.weight", "mlp.bias")
] + ["head.weight", "'odd one'.x".replace("'", "")]
MODULES = {
    "": TypeInfo((("my.pkg", "Net"), MODULE)),
    "encoder": TypeInfo((("my.pkg", "Encoder"), MODULE)),
    "encoder.layers": TypeInfo((("torch.nn.modules.container", "ModuleList"), MODULE)),
    **{f"encoder.layers.{number}": LAYER for number in range(4)},
    **{f"encoder.layers.{number}.{leaf}": LINEAR for number in range(4) for leaf in ("attn", "mlp")},
    "head": LINEAR,
    "act": TypeInfo((("torch.nn.modules.activation", "ReLU"), MODULE)),
    "odd one": TypeInfo((("my.pkg", "Odd"), MODULE)),
}
NET = Listing(
    [Row(name, (4, 4), "float32", kind="parameter", trainable=True) for name in NAMES], MODULES, "the model"
)

# Each: the selector, words of the reason, and the suggestions.
MISSES = [
    # names
    ("encoder", "`encoder` is a module, not a tensor", ["encoder.**"]),
    ("encoder.layers.1", "`encoder.layers.1` is a module", ["encoder.layers.1.**"]),
    ("encoder.layers.*", "`encoder.layers.*` fits only modules", ["encoder.layers.*.**"]),
    (
        "weight",
        "no name begins with `weight` (found: `encoder`, `head`, `'odd one'`)",
        ["**.weight", "head.weight"],
    ),
    ("encodr.**.bias", "no name begins with `encodr`", ["encoder.**.bias"]),
    (
        "encoder.layer.*.attn.weight",
        "no name goes on with `layer` after `encoder` (found: `layers`)",
        ["encoder.layers.*.attn.weight"],
    ),
    ("encodr.layer.*.atn.weight", "no name begins with `encodr`", ["encoder.layers.*.attn.weight"]),
    ("encoder.layrs.*.weight", "no name goes on with `layrs`", ["encoder.layers.*.**.weight"]),
    ("encoder.*.weight", "after `encoder.*`", ["encoder.*.**.weight"]),
    ("attn.weight", "no name begins with `attn`", ["**.attn.weight"]),
    ("layers.1", "no name begins with `layers`", ["**.layers.1.**"]),
    ("head.weight.x", "nothing stands under `head.weight`", ["head.weight"]),
    ("encoder.layers.7.attn.bias", "no name goes on with `7` after `encoder.layers`", None),
    ("**.wieght", "no name has the segment `wieght`", ["**.weight"]),
    ("encoder.layers[4:].**", "a number in `[4:]` after `encoder.layers` (numbers there run from 0 to 3)", None),
    ("encoder[0].**", "(no numbers stand there)", ["encoder.**[0].**"]),
    ("odd.x", "no name begins with `odd`", ["'odd one'.x"]),
    ("{encodr,hed}.**.weight", "no name begins with `{encodr,hed}`", None),
    ("re:'attn'", "describes only part of a name", ["re:'.*(?:attn).*'"]),
    ("re:'(?i)ATTN'", "describes only part of a name", []),
    ("re:'decoder.*'", "no name holds what `re:'decoder.*'` describes; names are such as `encoder.layers.0", []),
    # classes
    ("@Linaer", "no module is of class `@Linaer`", ["@Linear"]),
    ("@=Modul", "no module is of class `@=Modul`", ["@=ModuleList > **"]),
    ("@nn.Linear", "no module is of class `@nn.Linear`", ["@torch.nn.modules.linear.Linear"]),
    ("@Layr", "no module is of class `@Layr`", ["@Layer > **"]),
    ("@Leyer > atn.weight", "no module is of class `@Leyer`", ["@Layer > attn.weight"]),
    ("@Layer", "own no tensor directly, only through modules in them", ["@Layer > **"]),
    ("@ReLU", "modules of class `@ReLU` own no tensor directly or through modules in them", []),
    ("@ReLU > **", "modules of class `@ReLU` hold no tensor", []),
    ("@Leyer > attn.*", "no module is of class `@Leyer`", ["@Layer > attn.*"]),
    ("(@Leyer | @Encodr) > **", "of class `@Leyer` or `@Encodr`", ["@Layer > **", "@Encoder > **"]),
    ("@Layer > atn.weight", "in modules of class `@Layer`, no name begins with `atn`", ["@Layer > attn.weight"]),
    ("@Layer > attn", "in modules of class `@Layer`, `attn` is a module", ["@Layer > attn.**"]),
    ("@Encoder > layers[9].**", "numbers there run from 0 to 3", ["@Encoder > layers[-1].**"]),
    # states and fields
    (":frozen", "no tensor is `:frozen`", []),
    ("[dtype=f16]", "no tensor has `[dtype=float16]`", ["[dtype=float32]"]),
    ("[device=cuda]", "no tensor has `[device=cuda]`", ["[device=cpu]"]),
    ("[device!=cpu]", "no tensor has `[device!=cpu]`", []),
    ("[shape=4]", "no tensor has `[shape=4]`", ["[shape=4x4]"]),
    ("[ndim>2]", "no tensor has `[ndim>2]`: ndim is always 2", []),
    # algebra
    ("encodr.** & **.weight", "`encodr.**` finds nothing, as no name begins with `encodr`", ["encoder.**"]),
    ("encoder.** & **.wieght", "`**.wieght` finds nothing, as no name has", ["**.weight"]),
    ("encoder.** & head.**", "no tensor that `encoder.**` matches is matched by `head.**` too", []),
    ("head.** - **.weight", "`**.weight` takes away all that `head.**` matches", []),
    ("encoder.** - **.bias & head.**", "no tensor that `encoder.** - **.bias` matches is matched by", []),
    ("encodr.** | hed.**", "`hed.**` finds nothing", ["encoder.**", "head.**"]),
    ("a | b | c | d | e", "nor do 2 more parts", None),
    ("~(encoder.** | head.* | :param)", "`encoder.** | head.* | :param` matches everything", []),
]


@pytest.mark.parametrize(("text", "reason", "near"), MISSES, ids=[miss[0] for miss in MISSES])
def test_a_miss_names_its_part_and_what_is_near(text, reason, near):
    """The sentence holds the selector, the part that found nothing, what was found there, and repairs."""
    with pytest.raises(NoMatchError) as caught:
        select(text).indices(NET)
    error = caught.value
    assert error.wanted == text
    assert str(error).startswith(f"`{text}` matches nothing in the model: ")
    assert reason in str(error)
    if near is not None:
        assert list(error.nearest[: len(near)]) == near
        assert bool(near) == bool(error.nearest)
    for suggestion in error.nearest:
        assert f"`{suggestion}`" in str(error)
        assert select(suggestion).indices(NET) != []


def test_without_a_suggestion_the_way_out_is_named():
    """Where nothing is near, the sentence says how to accept that."""
    with pytest.raises(NoMatchError, match=r"use tk\.select\(\.\.\., allow_empty=True\)$"):
        select(":frozen").indices(NET)
    assert select(":frozen", allow_empty=True).indices(NET) == []


def test_a_function_that_holds_for_nothing_is_named():
    """A miss of `where` names the function and how many tensors it was asked about."""

    def is_large(row):
        return row.numel > 100

    with pytest.raises(NoMatchError, match=r"where\(.*is_large\)` is true of none of 18 tensors"):
        where(is_large).indices(NET)


def test_an_empty_source_is_said_to_be_empty():
    """No name is blamed where there are no tensors at all."""
    with pytest.raises(NoMatchError, match=r"matches nothing in the file: the file has no tensors"):
        select("**").indices(Listing([], None, "the file"))


def test_a_part_that_may_not_be_asked_alone_is_no_second_error():
    """Explaining a miss never raises about rows that the selector itself had put aside."""
    lazy = Row("lazy", None, "float32", kind="parameter", trainable=True)
    listing = Listing([*NET.rows, lazy], MODULES, "the model")
    with pytest.raises(NoMatchError, match=r"no tensor that `~:lazy` matches is matched by `\[ndim=3\]` too"):
        select("~:lazy & [ndim=3]").indices(listing)


def test_a_miss_among_a_hundred_thousand_names_finds_the_nearest():
    """Size changes nothing about what is suggested."""
    names = [f"model.layers.{layer}.experts.{expert}.weight" for layer in range(100) for expert in range(1000)]
    listing = Listing([Row(name, (), "float32") for name in names], None, "the file")
    with pytest.raises(NoMatchError) as caught:
        select("model.layers.7.expert.30.wieght").indices(listing)
    assert caught.value.nearest[0] == "model.layers.7.experts.30.weight"


def test_nearest_ranks_by_likeness_and_keeps_quiet_about_strangers():
    """The best comes first, case is no difference, repeated candidates count once, and far ones are left out."""
    assert nearest("linaer", ["Conv2d", "Linear", "Bilinear", "Linear"]) == ("Linear", "Bilinear")
    assert nearest("linaer", ["Linear", "Bilinear", "LinearX"], limit=1) == ("Linear",)
    assert nearest("xyz", ["Linear"]) == ()
    assert nearest("xyz", []) == ()


def test_suggestions_read_as_english():
    """One, two or three suggestions make a question; none make nothing."""
    assert alternatives(["a", "b", "c"]) == "`a`, `b` or `c`"
    assert alternatives(["a"]) == "`a`"
    assert did_you_mean("frozn", ["frozen", "param"], ":") == " did you mean `:frozen`?"
    assert did_you_mean("zzz", ["frozen"]) == ""
