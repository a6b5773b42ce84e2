"""`tk.tree` without inputs: nesting, counts, ties, folding, marks, text."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchkeep.errors import NoMatchError, SourceError
from torchkeep.tables.structure import tree


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.act = nn.ReLU()
        self.second = nn.Linear(2 * width, width)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Block() for _ in range(12)])
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight


def row(structure, label):
    """Return the line of the text that shows ``label``."""
    (line,) = [line for line in str(structure).splitlines() if f" {label}" in line]
    return line


def test_numbers_are_pytorchs_own_and_add_up():
    """The root counts what parameters() yields, a tie once, and every node is the sum of what is in it."""
    net = Net()
    structure = tree(net)
    assert structure.root.numel == sum(parameter.numel() for parameter in net.parameters())
    assert structure.root.nbytes == sum(parameter.nbytes for parameter in net.parameters())
    assert structure.root.buffer_numel == sum(buffer.numel() for buffer in net.buffers())
    for node in structure.nodes:
        own = sum(tensor.numel for tensor in node.held if tensor.kind == "parameter")
        assert node.numel == own + sum(child.numel for child in node.children)


def test_nodes_are_named_modules():
    """Every path and class of named_modules() is there, in its order, and can be looked up."""
    net = Net()
    structure = tree(net)
    assert [node.path for node in structure.nodes] == [path for path, _ in net.named_modules()]
    for path, module in net.named_modules():
        assert structure[path].type == type(module).__name__


def test_a_wrong_path_names_the_nearest():
    """A typo is answered with what was probably meant."""
    with pytest.raises(NoMatchError, match=r"no module `layers\.0\.frist`.*`layers\.0\.first`") as caught:
        tree(Net())["layers.0.frist"]
    assert "layers.0.first" in caught.value.nearest


def test_alike_blocks_fold_into_a_slice():
    """Twelve equal blocks are one entry whose label says which, with the count of one of them."""
    text = str(tree(Net()))
    assert text.count("Block") == 1
    assert "layers[0:12]: Block" in text
    assert "12 x 280" in text
    assert text.count("first: Linear(8, 16)") == 1


def test_only_neighbours_that_are_alike_fold():
    """A block of another size, other flags or other state splits the run; single blocks keep their name."""
    net = nn.Sequential(Block(), Block(), Block(4), Block(), Block(), Block().requires_grad_(requires_grad=False))
    text = str(tree(net))
    labels = [line.split(":")[0].split()[-1] for line in text.splitlines() if "Block" in line]
    assert labels == ["[0", "2", "[3", "5"]
    assert "[0:2]: Block" in text
    assert "[3:5]: Block" in text


def test_a_run_of_named_children_does_not_fold():
    """Only numeric names are a slice; a gap in the numbers, or 01, is none."""
    net = nn.Module()
    for name in ("a", "b", "0", "2", "03", "04"):
        net.add_module(name, nn.Linear(2, 2))
    assert str(tree(net)).count("Linear(2, 2)") == 6


def test_a_tied_parameter_is_counted_at_its_first_place_and_marked_at_the_others():
    """The head that is the embedding counts nothing and says whose weight it has."""
    structure = tree(Net())
    assert structure["embed"].numel == 80
    assert structure["head"].numel == 0
    assert structure["head"].held[0].same_as == "embed.weight"
    assert "weight is embed.weight, counted there" in row(structure, "head: Linear")


def test_parameters_that_share_storage_are_one():
    """Two Parameter objects over the same memory count once, on the meta device too."""
    for device in ("cpu", "meta"):
        net = nn.Sequential(nn.Linear(3, 3, bias=False, device=device), nn.Linear(3, 3, bias=False, device=device))
        net[1].weight = nn.Parameter(net[0].weight.detach())
        assert tree(net).root.numel == 9


def test_a_shared_module_appears_once_in_full():
    """The second place of a module says where the first is and holds nothing, nor does the text go into it."""
    shared = Block()
    net = nn.Sequential(shared, nn.Tanh(), shared)
    structure = tree(net)
    assert structure.root.numel == structure["0"].numel == 280
    assert (structure["2"].same_as, structure["2"].numel, structure["2"].children) == ("0", 0, ())
    assert row(structure, "2: Block").endswith("the same module as 0")
    assert str(structure).count("first: Linear") == 1


def test_one_activation_in_every_block_is_shown_in_the_first():
    """The case that other summaries over-count: blocks that share one activation with parameters still fold."""
    act = nn.PReLU()
    blocks = [nn.Sequential(nn.Linear(4, 4), act) for _ in range(4)]
    net = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
    structure = tree(net)
    assert structure.root.numel == 4 * 20 + 1
    assert "blocks[1:4]: Sequential" in str(structure)
    assert structure["blocks.3.1"].same_as == "blocks.0.1"
    assert str(structure).count("the same module as blocks.0.1") == 1


def test_blocks_with_the_same_ties_inside_fold():
    """Each block ties two of its own layers and uses one of them twice; what is inside is told of the first."""

    def tied():
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
        other.weight = one.weight
        return nn.Sequential(one, other, one)

    structure = tree(nn.Sequential(*[tied() for _ in range(3)]))
    assert str(structure).count("[0:3]: Sequential") == 1
    assert "weight is 0.0.weight, counted there" in str(structure)
    assert "the same module as 0.0" in str(structure)
    assert structure.root.numel == 3 * (16 + 4 + 4)


def test_blocks_that_share_different_modules_do_not_fold():
    """Two second places look alike but for what they are places of, and that matters."""
    one, other = nn.PReLU(), nn.PReLU()
    net = nn.Sequential(one, other, nn.Sequential(one), nn.Sequential(other))
    shown = str(tree(net))
    assert "the same module as 0" in shown
    assert "the same module as 1" in shown


def test_parameters_beside_modules_are_listed():
    """A parameter that hangs on a module with children has a line of its own."""
    structure = tree(Net())
    assert "cls_token: parameter [1, 1, 8]" in str(structure)
    assert structure[""].held[0].shape == (1, 1, 8)


def test_marks_for_frozen_buffers_lazy_and_parametrised():
    """What is special about a module's tensors stands in its line."""
    frozen = nn.Linear(3, 4).requires_grad_(requires_grad=False)
    half_frozen = nn.Linear(3, 4)
    half_frozen.bias.requires_grad_(requires_grad=False)
    net = nn.ModuleDict(
        {
            "frozen": frozen,
            "partly": half_frozen,
            "norm": nn.BatchNorm1d(4),
            "lazy": nn.LazyLinear(2),
            "normed": parametrizations.weight_norm(nn.Linear(2, 2)),
        }
    )
    structure = tree(net)
    assert row(structure, "frozen: Linear").endswith("frozen")
    assert row(structure, "partly: Linear").endswith("4 of them frozen")
    assert row(structure, "norm: BatchNorm1d").endswith("40 B in buffers")
    assert row(structure, "lazy: LazyLinear").endswith("lazy")
    assert row(structure, "normed: Linear").endswith("weight parametrised")
    assert structure.root.frozen == 16 + 4
    assert "20 of them frozen; 9 elements in buffers, 40 B" in str(structure).splitlines()[0]


def test_a_buffer_beside_modules_is_listed_as_a_buffer():
    """A constant random weight is seen, and not counted as a parameter."""
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_buffer("rand_weight", torch.rand(20, 20))
    structure = tree(net)
    assert "rand_weight: buffer [20, 20]" in str(structure)
    assert structure.root.numel == 6
    assert structure.root.buffer_nbytes == 1600


def test_extras_read_as_the_constructor_call():
    """Defaults are left out; what differs from them is kept; long extras are cut."""
    net = nn.ModuleList(
        [
            nn.Linear(3, 4, bias=False),
            nn.Conv2d(3, 4, 5, stride=2),
            nn.LayerNorm((4, 4)),
            nn.ReLU(),
            nn.LSTM(3, 4, batch_first=True),
        ]
    )
    assert [tree(module).root.extra for module in net] == [
        "3, 4, bias=False",
        "3, 4, (5, 5), stride=(2, 2)",
        "(4, 4)",
        "",
        "3, 4, batch_first=True",
    ]


def test_a_layer_without_extras_shows_its_tensors():
    """A custom layer that says nothing of itself is described by the shapes that it holds."""

    class MyLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 3))
            self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    assert "MyLinear(weight [5, 3], bias float64[3])" in str(tree(MyLinear()))


def test_an_extra_repr_that_raises_is_told_and_does_no_harm():
    """One class's broken extra_repr does not hide the structure."""

    class Broken(nn.Linear):
        def extra_repr(self):
            raise KeyError("x")

    assert "0: Broken(extra_repr raised KeyError)" in str(tree(nn.Sequential(Broken(2, 2))))


def test_extra_repr_never_computes_a_parametrised_weight():
    """Looking at a spectrally normed weight in train mode would move its power iteration."""

    class Showy(nn.Linear):
        def extra_repr(self):
            return f"norm={self.weight.norm()}"

    net = parametrizations.spectral_norm(Showy(4, 4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert "norm=" not in str(tree(net))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_wrappers_are_looked_through():
    """DataParallel and compiled modules do not show, neither as nodes nor in names."""
    net = nn.Sequential(nn.DataParallel(nn.Linear(2, 3)), torch.compile(nn.Sequential(nn.ReLU())))
    plain = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    for wrapped in (net, nn.DataParallel(net), torch.compile(net)):
        assert str(tree(wrapped)) == str(tree(plain))


def test_wide_names_keep_the_columns_straight():
    """Chinese letters take two columns of a terminal, and odd names are quoted as in a selector."""
    net = nn.Module()
    net.add_module("编码器", nn.Linear(2, 2))
    net.add_module("block 1", nn.Linear(2, 2))
    wide, odd = [line for line in str(tree(net)).splitlines() if "Linear" in line]
    assert "'block 1': Linear(2, 2)" in odd
    assert "编码器: Linear(2, 2)" in wide
    assert len(wide) + 3 == len(odd)


def test_a_deep_net_needs_no_deep_stack():
    """Two thousand modules inside each other are shown."""
    net = nn.Linear(1, 1)
    for _ in range(2000):
        net = nn.Sequential(net)
    structure = tree(net)
    assert len(structure.nodes) == 2001
    assert str(structure).count("0: Sequential") == 1999


def test_a_big_model_costs_no_memory():
    """A 10-billion-parameter model on the meta device is counted."""
    structure = tree(nn.Sequential(*[nn.Linear(50_000, 50_000, bias=False, device="meta") for _ in range(4)]))
    assert structure.root.numel == 10_000_000_000
    assert "10,000,000,000 parameters, 37.3 GiB" in str(structure)


def test_notebooks_and_rich_show_the_same_text():
    """Brackets and angle brackets are shown, not interpreted."""
    from rich.console import Console

    structure = tree(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert "[0:2]: Linear(2, 2)" in structure._repr_html_()
    assert structure._repr_html_().startswith("<pre")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(structure)
    assert "[0:2]: Linear(2, 2)" in captured.get()


def test_what_is_no_module_is_refused():
    """A state_dict has no structure, and a list no keywords."""
    with pytest.raises(SourceError, match="OrderedDict"):
        tree(nn.Linear(2, 2).state_dict())
    with pytest.raises(SourceError, match=r"kwargs must be a mapping.* not \[1\]"):
        tree(nn.Linear(2, 2), kwargs=[1])


def test_a_key_with_a_dot_is_shown_quoted():
    """A module that a hand-written container holds under a dotted key stands in the tree under that key."""
    net = nn.Module()
    net._modules["a.b"] = nn.Linear(2, 3)
    structure = tree(net)
    assert structure["a.b"].numel == 9
    assert structure.root.children == (structure["a.b"],)


def test_lists_and_dicts_of_parameters_show_what_they_hold():
    """ParameterList and ParameterDict show their tensors as any layer does, not torch's prose about them."""
    net = nn.ModuleList([nn.ParameterList([torch.zeros(2)]), nn.ParameterDict({"a b": torch.zeros(2, 3)})])
    text = str(tree(net))
    assert "ParameterList(0 [2])" in text
    assert "ParameterDict(a b [2, 3])" in text
    assert "containing" not in text
