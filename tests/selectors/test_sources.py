"""The same selector means the same tensors in a live module, in its state_dict and in its file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from selector_reference import spell
from selector_strategies import name_patterns, regexes

KEYS = ["a", "b", "ab", "weight", "0", "1", "2", "10", "block 1", "层", "it's"]


class Leaf(nn.Module):
    """Holds a parameter and, if asked, a buffer that a state_dict holds and one that it does not."""

    def __init__(self, *, buffers):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        if buffers:
            self.register_buffer("kept", torch.zeros(3))
            self.register_buffer("11", torch.zeros(4), persistent=False)


def build(tree, shared):
    """Build a module of a nest of dicts; a leaf is True or False for buffers, or None for the shared layer."""
    if tree is None:
        return shared
    if isinstance(tree, bool):
        return Leaf(buffers=tree)
    net = nn.Module()
    for key, child in tree.items():
        net.add_module(key, build(child, shared))
    return net


trees = st.recursive(
    st.booleans() | st.none(),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, min_size=1, max_size=4),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({"b": {"0": None, "1": True, "2": None}, "a": None}, ("names", [("deep",), ("number", -1), ("deep",)]))
@given(trees, name_patterns | regexes)
def test_a_module_its_state_dict_and_its_file_answer_alike(tmp_path, tree, node):
    """Names, slices and ties select the same persistent tensors wherever the parameters come from."""
    net = build(tree, Leaf(buffers=False))
    path = tmp_path / "net.safetensors"
    tk.save(net, path)
    selector = tk.select(spell(node), allow_empty=True)
    live = [row.name for row in tk.params(net).select(selector) if row.persistent]
    assert tk.params(net.state_dict()).select(selector).names() == live
    assert tk.params(path).select(selector).names() == live


@pytest.mark.parametrize("text", [":param", ":trainable", "@Leaf"])
def test_a_state_dict_says_what_it_does_not_know(text):
    """A mapping of plain tensors has no kinds, no requires_grad and no classes; asking is an error."""
    plain = {name: tensor.detach() for name, tensor in Leaf(buffers=True).state_dict().items()}
    with pytest.raises(tk.TorchkeepError, match="does not know"):
        tk.params(plain).select(text)
