"""keeping_ties under random ties and random sequences of what PyTorch can do to a model."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchkeep.errors import TieError
from torchkeep.tying import keeping_ties, ties

LAYERS = 5


def whole(step):
    return lambda net, _: step(net)


STEPS = {
    "to_empty": whole(lambda net: net.to_empty(device="cpu")),
    "meta": whole(lambda net: net.to("meta")),
    "double": whole(lambda net: net.double()),
    "half": whole(lambda net: net.half()),
    "assign": whole(
        lambda net: net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    ),
    "one to_empty": lambda net, at: net[at].to_empty(device="cpu"),
    "one meta": lambda net, at: net[at].to("meta"),
    "one assigned": lambda net, at: setattr(net[at], "weight", nn.Parameter(net[at].weight.detach().clone())),
    "one filled": lambda net, at: nn.init.ones_(net[at].weight),
    "one frozen": lambda net, at: net[at].weight.requires_grad_(requires_grad=False),
}


@st.composite
def nets(draw):
    """Layers of which some are one module, some share a Parameter, some share storage."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(LAYERS)))
    for at in range(1, LAYERS):
        like = draw(st.integers(0, at - 1))
        kind = draw(st.sampled_from(["apart", "module", "parameter", "storage"]))
        if kind == "module":
            net[at] = net[like]
        elif kind == "parameter":
            net[at].weight = net[like].weight
        elif kind == "storage":
            net[at].weight = nn.Parameter(net[like].weight.data)
    return net


def objects(net):
    """Which names lead to one object."""
    named = list(net.named_parameters(remove_duplicate=False))
    return {(one, other) for one, p in named for other, q in named if p is q}


@settings(max_examples=150, deadline=None)
@given(
    net=nets(),
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, LAYERS - 1)), max_size=5),
    flag=st.sampled_from([None, "overwrite_module_params", "swap_module_params"]),
)
def test_the_same_names_are_one_afterwards(net, steps, flag):
    """The same ties and objects under the same names, or an error where values were written; live optimizers."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before, one, kept = ties(net), objects(net), True
    try:
        if flag:
            getattr(torch.__future__, f"set_{flag}_on_conversion")(True)  # noqa: FBT003 - torch's own spelling
        with keeping_ties(net, optimizer):
            for name, at in steps:
                STEPS[name](net, at)
    except TieError:
        # Who writes to one of two names that an earlier step took apart must write the same to the other.
        assert {name for name, _ in steps} & {"assign", "one assigned", "one filled"}
        kept = False
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(value=False)
        torch.__future__.set_swap_module_params_on_conversion(value=False)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    live = {id(p) for p in net.parameters()}
    assert len(held) == len(set(held))
    assert set(held) <= live
    if kept:
        assert ties(net) == before
        assert objects(net) == one
        assert set(held) == live
