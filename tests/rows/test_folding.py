"""Folding: what is shown once for many rows pastes back and selects exactly those rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.rows import Listing, Row
from torchkeep.rows.folding import fold
from torchkeep.selectors import select


def rows_of(*names, shape=(2, 3)):
    return [Row(name, shape, "float32") for name in names]


def patterns(rows, **options):
    return [line.pattern for line in fold(rows, **options)]


def assert_pastes_back(folded, rows, everything):
    """Each row is in exactly one line, and each line's pattern selects its rows and nothing else."""
    assert sorted(id(row) for line in folded for row in line.rows) == sorted(map(id, rows))
    listing = Listing(everything, None, "the rows")
    for line in folded:
        chosen = [everything[position] for position in select(line.pattern).indices(listing)]
        assert chosen == list(line.rows), line.pattern


SEGMENTS = st.sampled_from(["0", "1", "2", "3", "03", "10", "a", "b", "a b", "it's", "*", "", "é", "٣"])


@st.composite
def listings(draw):
    """Rows with names that often form repeated blocks, with ties and plain names strewn in."""
    names = set(draw(st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=6)))
    for _ in range(draw(st.integers(0, 2))):
        inner = sorted(names)
        where = draw(st.lists(SEGMENTS, max_size=2))
        numbers = draw(st.sets(st.integers(0, 4), max_size=4))
        names |= {".".join([*where, str(number), name]) for number in numbers for name in inner}
    shuffled = draw(st.permutations(sorted(names)))
    uniform = draw(st.booleans())
    persistent = draw(st.booleans())
    rows = []
    while shuffled:
        name, *shuffled = shuffled
        extra = draw(st.integers(0, 12))
        aliases = tuple(shuffled[: extra - 10]) if extra > 10 else ()
        shuffled = shuffled[len(aliases) :]
        plain = (draw(st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)),) if extra == 10 else ()
        plain = tuple(found for found in plain if found not in names)
        shape = () if uniform else draw(st.sampled_from([(), (2,)]))
        rows.append(Row(name, shape, "float32", aliases=aliases, plain=plain, persistent=persistent))
    return rows


@given(listings(), st.data())
def test_patterns_part_the_rows_and_each_selects_exactly_its_own(rows, data):
    """For any names, ties and selections, the lines part the rows and every pattern pastes back exactly."""
    assert_pastes_back(fold(rows), rows, rows)
    some = data.draw(st.lists(st.sampled_from(rows), unique_by=id), label="selection")
    some.sort(key=rows.index)
    assert_pastes_back(fold(some, among=rows), some, rows)


@given(st.integers(2, 5), st.integers(2, 4), st.randoms())
def test_equal_blocks_fold_at_every_level_whatever_their_order(outer, inner, random):
    """Blocks of blocks come out as one line for each tensor, in whatever order the source lists them."""
    rows = rows_of(*(f"m.{i}.heads.{j}.{leaf}" for i in range(outer) for j in range(inner) for leaf in ("w", "b")))
    random.shuffle(rows)
    prefix = f"m[0:{outer}].heads[0:{inner}]"
    assert sorted(patterns(rows)) == [f"{prefix}.b", f"{prefix}.w"]


def test_a_transformer_reads_as_one_block():
    """The block's tensors stay together, between what comes before and after it."""
    block = [f"layers.{i}.{leaf}" for i in range(12) for leaf in ("attn.weight", "mlp.weight", "mlp.bias")]
    rows = rows_of("embed.weight", *block, "head.weight")
    folded = fold(rows)
    assert [(line.pattern, len(line.rows)) for line in folded] == [
        ("embed.weight", 1),
        ("layers[0:12].attn.weight", 12),
        ("layers[0:12].mlp.weight", 12),
        ("layers[0:12].mlp.bias", 12),
        ("head.weight", 1),
    ]
    assert_pastes_back(folded, rows, rows)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0.w", "1.w"], ["[0:2].w"]),
        (["0.w", "2.w", "4.w"], ["[0:5].w"]),
        (["0.w", "1.v", "2.w"], ["0.w", "1.v", "2.w"]),
        (["0.w", "1.w", "2.v", "3.w", "4.w"], ["[0:2].w", "2.v", "[3:5].w"]),
        (["p.0", "p.1"], ["p[0:2]"]),
        (["0.0.w", "0.1.w", "1.0.w", "1.1.w"], ["[0:2][0:2].w"]),
        (["0.0.w", "0.1.w", "1.0.w", "1.2.w"], ["0[0:2].w", "1[0:3].w"]),
        (["a b.0.w", "a b.1.w"], ["'a b'[0:2].w"]),
        (["0.it's.w", "1.it's.w"], ["[0:2].'it\\'s'.w"]),
        (["00.w", "01.w"], ["[0:2].w"]),
        (["0.w", "00.w", "1.w"], ["0.w", "00.w", "1.w"]),
        (["999999999999999998.w", "999999999999999999.w"], ["999999999999999998.w", "999999999999999999.w"]),
        (["1000000000000000000.w", "1000000000000000001.w"], ["1000000000000000000.w", "1000000000000000001.w"]),
        (["", "."], ["''", "''.''"]),
    ],
)
def test_what_folds_and_how_it_is_spelled(names, expected):
    """Neighbours by value fold; a gap of absent numbers is no gap; what can't be pasted back stays as it is."""
    rows = rows_of(*names)
    assert patterns(rows) == expected
    assert_pastes_back(fold(rows), rows, rows)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (3, 2)},
        {"shape": None},
        {"dtype": "float16"},
        {"device": "meta"},
        {"kind": "buffer"},
        {"trainable": False},
        {"persistent": False},
        {"module_type": "Conv1d"},
    ],
)
def test_blocks_that_differ_in_anything_shown_do_not_fold(change):
    """One tensor that differs in any field keeps its whole block apart from its neighbours."""
    same = {"shape": (2, 3), "dtype": "float32", "kind": "parameter", "trainable": True, "module_type": "Linear"}
    rows = [Row(f"{i}.{leaf}", **same) for i in range(3) for leaf in ("weight", "bias")]
    rows[3] = Row(**{"name": "1.bias", **same, **change})
    assert patterns(rows) == [row.name for row in rows]


def test_ties_that_stay_in_their_block_fold_with_it():
    """Where every block ties the same two of its own tensors, the line shows the alias as a pattern too."""
    rows = [Row(f"layers.{i}.k.weight", (2,), "float32", aliases=(f"layers.{i}.q.0.weight",)) for i in range(3)]
    (line,) = fold(rows)
    assert (line.pattern, line.aliases) == ("layers[0:3].k.weight", ("layers[0:3].q.0.weight",))
    assert_pastes_back([line], rows, rows)


def test_ties_that_leave_their_block_keep_it_apart():
    """A block with a tensor tied to one outside does not fold; its neighbours still do."""
    rows = [
        Row("embed.weight", (2,), "float32", aliases=("layers.1.extra",)),
        *rows_of("layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w"),
    ]
    folded = fold(rows)
    assert [line.pattern for line in folded] == ["embed.weight", "layers.0.w", "layers.1.w", "layers[2:4].w"]
    assert folded[0].aliases == ("layers.1.extra",)
    assert_pastes_back(folded, rows, rows)


def test_blocks_tied_to_each_other_differently_do_not_fold():
    """Aliases at other relative names make blocks differ, even where all else is equal."""
    rows = [
        Row("m.0.a", (2,), "float32", aliases=("m.0.x",)),
        Row("m.0.b", (2,), "float32", aliases=("m.0.y",)),
        Row("m.1.a", (2,), "float32", aliases=("m.1.y",)),
        Row("m.1.b", (2,), "float32", aliases=("m.1.x",)),
    ]
    assert patterns(rows) == ["m.0.a", "m.0.b", "m.1.a", "m.1.b"]


def test_parametrized_weights_fold():
    """Plain names, which selectors match too, stay in their block and do not hinder folding."""
    rows = [
        Row(f"{i}.parametrizations.weight.original{k}", (2,), "float32", plain=(f"{i}.weight",))
        for i in range(2)
        for k in range(2)
    ]
    folded = fold(rows)
    assert [line.pattern for line in folded] == [f"[0:2].parametrizations.weight.original{k}" for k in range(2)]
    assert_pastes_back(folded, rows, rows)


def test_a_block_where_two_tensors_answer_to_one_name_does_not_fold():
    """A tensor whose own name is also another's plain name keeps its block apart from its neighbours."""
    rows = [*rows_of("m.0.w", "m.1.w", "m.0.v"), Row("other", (2, 3), "float32", plain=("m.0.v",))]
    assert patterns(rows) == ["m.0.w", "m.1.w", "m.0.v", "other"]


def test_numbers_outside_the_selection_keep_slices_honest():
    """Of a selection, a line never spans a number that is present in the listing but not selected."""
    rows = rows_of("m.0.w", "m.1.w", "m.2.w", "m.3.w")
    assert patterns([rows[0], rows[1], rows[3]], among=rows) == ["m[0:2].w", "m.3.w"]
    assert patterns([rows[0], rows[1], rows[3]]) == ["m[0:4].w"]


def test_absurdly_deep_names_are_left_alone():
    """Names that nest numbers 30,000 deep are listed as they are, without exhausting the stack."""
    rows = rows_of("0.w", "1.w", ".".join("0" * 30_000), ".".join("0" * 29_999) + ".1")
    assert patterns(rows) == [row.name for row in rows]
