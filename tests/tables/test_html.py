"""The notebook's view of a table: escaped, folded, self-contained, cut when long."""

from __future__ import annotations

from html.parser import HTMLParser

import torch
from torch import nn

import torchkeep as tk


class Cells(HTMLParser):
    """Collect tags and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002 - the parser calls it so
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_blocks_are_folded_and_totals_told():
    """Repeated blocks are one line; parameters and buffers are summed apart."""
    net = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(4)))
    shown = Cells(tk.params(net)._repr_html_())
    assert "[0:4].weight" in shown.texts
    assert any(text.startswith("8 parameters: 24 elements, 96 B") for text in shown.texts)
    assert "12 buffers: 28 elements, 128 B" in shown.texts
    assert shown.tags == {"div", "table", "tr", "th", "td"}


def test_names_are_escaped():
    """A name from a file or a state_dict can't put markup into a notebook."""
    name = "<script>alert('x')</script> & <img src=x>"
    text = tk.params({name: torch.zeros(2), f"{name}_extra_state": torch.zeros(1)})._repr_html_()
    shown = Cells(text)
    assert shown.tags == {"div", "table", "tr", "th", "td"}
    assert any(name.replace("'", "\\'") in cell for cell in shown.texts)
    assert "2 tensors" in text


def test_states_lazies_and_ties_are_shown():
    """Frozen, lazy and tied tensors say so."""
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.LazyLinear(2), "c": nn.Linear(2, 2)})
    net["c"].weight = net["a"].weight
    net["a"].bias.requires_grad_(requires_grad=False)
    texts = Cells(tk.params(net)._repr_html_()).texts
    assert {"lazy", "frozen", "trainable", "c.weight"} <= set(texts)


def test_a_long_table_is_cut():
    """Beyond 500 lines the rest is counted, not shown."""
    state = {f"w{'x' * at}": torch.zeros(1) for at in range(350)} | {
        f"v{'y' * at}": torch.zeros(1) for at in range(350)
    }
    text = tk.params(state)._repr_html_()
    assert text.count("<tr>") == 502
    assert "... 200 more lines: print(table) shows them all" in text


def test_marks_that_hide_or_reorder_text_are_shown_as_escapes():
    """A right-to-left override, an escape and half a surrogate pair are seen, and the page can be encoded."""
    shown = tk.params(
        {"a\u202eb": torch.zeros(1), "\x1b[2K": torch.zeros(1), "\ud800": torch.zeros(1)}
    )._repr_html_()
    assert not set("\u202e\x1b\ud800") & set(shown)
    assert all(spelled in shown for spelled in (r"\u202e", r"\x1b", r"\ud800"))
    shown.encode()
