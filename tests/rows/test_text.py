"""Text: what the table and the totals show, and that nothing in a name can disturb them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from torchkeep.rows import Row
from torchkeep.rows.text import render, shape_text, size_text, table
from torchkeep.selectors import as_literal

WEIGHT = {"shape": (4, 2), "dtype": "float32", "kind": "parameter", "trainable": True}


def test_render_shows_blocks_once_and_adds_up():
    """The whole text: one line for a repeated block with its count, sums for the line, totals below."""
    rows = [
        Row("embed.weight", (100, 4), "bfloat16", kind="parameter", trainable=True, aliases=("head.weight",)),
        *(
            Row(f"layers.{i}.weight", (64, 3, 7, 7), "float32", kind="parameter", trainable=False)
            for i in range(3)
        ),
        Row("steps", (), "int64", kind="buffer", trainable=False, persistent=False, device="cuda:0"),
        Row("later", None, "float32", kind="parameter", trainable=True, device="meta"),
    ]
    assert render(rows).splitlines() == [
        "name                count  shape     dtype     elements       size  kind       notes",
        "embed.weight               100x4     bfloat16       400      800 B  parameter  tied to head.weight",
        "layers[0:3].weight     x3  64x3x7x7  float32     28,224  110.2 KiB  parameter  frozen",
        "steps                      scalar    int64            1        8 B  buffer     not persistent, cuda:0",
        "later                      lazy      float32                        parameter  meta",
        "",
        "5 parameters: 28,624 elements, 111.0 KiB (400 trainable, 28,224 frozen)",
        "1 buffer: 1 element, 8 B",
        "among them: 1 tied (counted once), 1 lazy (no elements yet), 1 not persistent",
    ]


def test_sources_without_kinds_show_tensors():
    """A plain state_dict knows no kinds: no such column, and the totals speak of tensors."""
    assert render([Row("a.weight", (3, 2), "float32"), Row("a.bias", (3,), "float32")]).splitlines() == [
        "name      shape  dtype    elements  size",
        "a.weight  3x2    float32         6  24 B",
        "a.bias    3      float32         3  12 B",
        "",
        "2 tensors: 9 elements, 36 B",
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "no tensors"),
        ([Row("a", **WEIGHT)], "1 parameter: 8 elements, 32 B (all trainable)"),
        ([Row("a", **{**WEIGHT, "trainable": False})], "1 parameter: 8 elements, 32 B (all frozen)"),
        ([Row("a", **{**WEIGHT, "trainable": None})], "1 parameter: 8 elements, 32 B"),
    ],
)
def test_totals_say_what_trains(rows, expected):
    """Whether everything trains, or nothing, or it is not known, is said in words."""
    assert render(rows).splitlines()[-1] == expected


def test_names_are_spelled_as_selectors():
    """Odd segments are quoted, so that a line's name can be pasted back."""
    shown = render([Row("0.block 1.0.bias", (1,), "float32", aliases=("b c",))])
    assert "0.'block 1'.0.bias " in shown
    assert "tied to 'b c'" in shown


def test_long_alias_lists_are_cut_and_counted():
    """A tensor with very many names shows three of them, and how many more there are."""
    row = Row("a", (1,), "float32", aliases=tuple(f"x{i}" for i in range(1_003)))
    assert render([row]).splitlines()[1].endswith("tied to x0, x1, x2 and 1,000 more")


def test_very_long_names_do_not_push_the_columns_away():
    """A name of more than 100 characters stands whole on its own line; the columns stay where they are."""
    shown = render([Row("n" * 120, (2,), "float32"), Row("short", (2,), "float32")]).splitlines()
    assert shown[:4] == [
        "name   shape  dtype    elements  size",
        "n" * 120,
        "       2      float32         2   8 B",
        "short  2      float32         2   8 B",
    ]


def test_wide_and_combining_characters_align():
    """Columns line up on a terminal for Chinese names and for letters with combining accents."""
    names = ["块.权重", "e\u0301.w", "plain.weight"]
    lines = table(("name", "shape", "end"), [(name, "2x3", "|") for name in names]).splitlines()
    assert {cell_len(line[: line.index("|")]) for line in lines[1:]} == {cell_len(lines[0]) - len("end")}


def test_nothing_in_a_name_reaches_the_terminal_as_control():
    """Newlines, escape sequences, text direction marks and lone surrogates are shown escaped, on one line."""
    shown = render([Row("a\n\x1b[31m\u202eb\ud800", (1,), "float32")])
    assert r"'a\n\x1b[31m\u202eb\ud800'" in shown
    assert as_literal(r"'a\n\x1b[31m\u202eb\ud800'") == "a\n\x1b[31m\u202eb\ud800"
    assert all(line.isprintable() for line in shown.splitlines())


CELLS = st.text(alphabet=st.sampled_from("ab0 块\u0301\n\x1b"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6), st.text("<>", max_size=4))
def test_every_row_is_one_line_and_columns_are_equally_wide(rows, align):
    """For any cells, right-aligned last cells all end at the same column, and there is a line for each row."""
    lines = table(("one", "two", "three", "end"), [(*row, "|") for row in rows], align).splitlines()
    assert len(lines) == len(rows) + 1
    assert len({cell_len(line) for line in lines[1:]}) <= 1


def test_columns_are_aligned_and_empty_ones_left_out():
    """Columns go to the side asked for; one without text disappears with its header."""
    assert table(("a", "b", "c", "d"), [("x", "", "1", "left"), ("yy", "", "10", "")], "<<>") == (
        "a    c  d\nx    1  left\nyy  10"
    )
    assert table(("a", "b"), []) == "a  b"
    assert table((), []) == ""


def test_a_row_of_the_wrong_length_is_refused():
    """Too few cells are an error, not a shifted table."""
    with pytest.raises(ValueError, match="argument 3 is shorter"):
        table(("a", "b"), [("1", "2"), ("1",)])


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (13 * 1024**3, "13.0 GiB"),
        (1024**5 * 3, "3.0 PiB"),
        (1024**6 * 2048, "2,048.0 EiB"),
    ],
)
def test_sizes_for_people(nbytes, expected):
    """Sizes take the unit in which they read shortest, and never 1024.0 of one."""
    assert size_text(nbytes) == expected


def test_shapes_are_spelled_as_selectors_do():
    """A shape can be pasted into ``[shape=...]``."""
    assert [shape_text(shape) for shape in ((64, 3, 7), (5,), (0, 2), (), None)] == [
        "64x3x7",
        "5",
        "0x2",
        "scalar",
        "lazy",
    ]


def test_plain_tables_need_neither_torch_nor_rich():
    """Where every name is ASCII, laying out rows imports nothing slow."""
    code = (
        "import sys; from torchkeep.rows import Row; from torchkeep.rows.text import render;"
        "render([Row('a.0.w', (1,), 'float32')]); print({'torch', 'rich', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
