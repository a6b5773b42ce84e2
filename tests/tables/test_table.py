"""ParameterTable: looking up, selecting, sums, freezing, set operations, showing; live modules and mappings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import MissingFieldError, NoMatchError, SelectorSyntaxError, SourceError, TableError
from torchkeep.selectors import select, where


class Block(nn.Module):
    """A layer and a norm with buffers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)


def make_net():
    """Three blocks; the last two share their linear layer's weight."""
    net = nn.Sequential(Block(), Block(), Block())
    net[2].linear.weight = net[1].linear.weight
    return net


def test_rows_names_and_tensors_run_in_parallel():
    """Each row stands for one tensor, in the order of the state_dict, and the tensors are the live objects."""
    net = make_net()
    table = tk.params(net)
    names = [name for name in net.state_dict() if name != "2.linear.weight"]
    assert table.names() == names == [row.name for row in table] == [row.name for row in table.rows]
    assert len(table) == len(names)
    live = dict(net.named_parameters()) | dict(net.named_buffers())
    assert all(tensor is live[name] for name, tensor in zip(names, table.tensors(), strict=True))


def test_a_row_says_what_is_known():
    """A row holds name, kind, persistence, shape, dtype, device, sizes, trainable, class and aliases."""
    net = make_net()
    net[0].linear.bias.requires_grad_(requires_grad=False)
    rows = {row.name: row for row in tk.params(net)}
    weight, bias, count = rows["1.linear.weight"], rows["0.linear.bias"], rows["0.norm.num_batches_tracked"]
    assert (weight.shape, weight.numel, weight.nbytes, weight.dtype) == ((3, 3), 9, 36, "float32")
    assert (weight.kind, weight.trainable, weight.aliases) == ("parameter", True, ("2.linear.weight",))
    assert (weight.device, weight.module_type, weight.persistent) == ("cpu", "Linear", True)
    assert bias.trainable is False
    assert (count.kind, count.shape, count.dtype, count.trainable) == ("buffer", (), "int64", False)


def test_sums_count_a_tie_once_and_buffers_apart():
    """The sums are those of net.parameters(), which counts a shared Parameter once."""
    net = make_net()
    table = tk.params(net)
    assert table.numel == sum(p.numel() for p in net.parameters())
    assert table.nbytes == 4 * table.numel
    assert table.buffer_numel == 3 * (3 + 3 + 1)
    assert table.buffer_nbytes == 3 * (3 * 4 + 3 * 4 + 8)
    assert table.select(":buffer").numel == 0


def test_looking_up_a_name():
    """A name, an alias and a quoted spelling lead to the live object itself; `in` agrees."""
    net = make_net()
    net[0].add_module("block 1", nn.Linear(2, 2))
    table = tk.params(net)
    assert table["1.linear.weight"] is net[1].linear.weight
    assert table["2.linear.weight"] is net[1].linear.weight
    assert table["0.'block 1'.bias"] is table["0.block 1.bias"] is getattr(net[0], "block 1").bias
    assert "2.linear.weight" in table
    assert "0.'block 1'.bias" in table
    assert "0.linear.wieght" not in table
    assert "**.bias" not in table  # a pattern is no name
    assert 3 not in table


def test_an_unknown_name_suggests_the_nearest():
    """A typo names the right spelling; a name outside a selection is told apart from one that is nowhere."""
    table = tk.params(make_net())
    with pytest.raises(NoMatchError, match=r"no tensor named '0\.linear\.wieght'.*`0\.linear\.weight`") as caught:
        table["0.linear.wieght"]
    assert caught.value.wanted == "0.linear.wieght"
    assert caught.value.nearest[0] == "0.linear.weight"
    assert isinstance(caught.value, KeyError)
    with pytest.raises(NoMatchError, match=r"is in the model, but not in this table of 3"):
        table.select("**.linear.bias")["0.linear.weight"]
    with pytest.raises(TypeError, match="indexed by a tensor's name, not by int"):
        table[0]


def test_a_computed_weight_names_what_it_is_computed_from():
    """A parametrized weight's plain name is no tensor of its own: the error names the originals."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    with pytest.raises(
        NoMatchError, match=r"computed from 0\.parametrizations\.weight\.original0 and .*original1"
    ):
        tk.params(net)["0.weight"]
    assert len(tk.params(net).select("0.weight")) == 2


def test_select_counts_levels_within_the_table():
    """[-1] means the last one of the table that it is asked of."""
    table = tk.params(nn.Sequential(Block(), Block(), Block()))
    assert table.select("[-1].linear.bias").names() == ["2.linear.bias"]
    assert table.select("[0:2].**").select("[-1].linear.bias").names() == ["1.linear.bias"]
    assert tk.params(make_net(), "**.linear.*").names() == [
        "0.linear.weight",
        "0.linear.bias",
        "1.linear.weight",
        "1.linear.bias",
        "2.linear.bias",
    ]
    large = tk.params(make_net()).select(where(lambda row: row.numel == 9))
    assert large.names() == ["0.linear.weight", "1.linear.weight"]


def test_select_without_a_match_is_an_error():
    """Nothing selected is never silent, in params and in select; neither is a wrong selector."""
    net = make_net()
    with pytest.raises(NoMatchError):
        tk.params(net, "**.wieght")
    with pytest.raises(NoMatchError, match="this table of 3 tensors of the model"):
        tk.params(net).select("**.linear.bias").select("**.linear.weight")
    with pytest.raises(SelectorSyntaxError):
        tk.params(net).select("[")
    assert len(tk.params(net).select(select("nothing", allow_empty=True))) == 0
    assert len(tk.params(nn.ReLU())) == 0


def test_set_operations():
    """|, & and - work on tensors, keep the model's order and refuse another source."""
    net = make_net()
    table = tk.params(net)
    biases, first = table.select("**.bias"), table.select("0.**")
    assert (biases | first).names() == [n for n in table.names() if n.endswith(".bias") or n.startswith("0.")]
    assert (biases & first).names() == ["0.linear.bias", "0.norm.bias"]
    assert (biases - first).names() == [n for n in biases.names() if not n.startswith("0.")]
    assert (tk.params(net, "0.**.bias") | tk.params(net, "1.**.bias")).names() == [
        "0.linear.bias",
        "0.norm.bias",
        "1.linear.bias",
        "1.norm.bias",
    ]
    assert len(biases - biases) == 0
    with pytest.raises(TableError, match="two sources"):
        table | tk.params(copy.deepcopy(net))
    with pytest.raises(TypeError):
        table | {"0.linear.bias"}


def test_freeze_and_unfreeze_change_parameters_only():
    """Freezing returns the table, reaches what was selected and nothing else; rows follow at once."""
    net = make_net()
    table = tk.params(net)
    biases = table.select("**.bias")
    assert biases.freeze() is biases
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == set(biases.names())
    assert [row.trainable for row in biases] == [False] * 6
    assert table.select(":frozen").names() == biases.names()
    assert table.freeze().select(":param & :trainable | 0.linear.bias").names() == ["0.linear.bias"]
    table.unfreeze()
    assert all(p.requires_grad for p in net.parameters())
    assert not any(b.requires_grad for b in net.buffers())


def test_freeze_reaches_every_parameter_over_one_storage():
    """Two Parameters over one memory are one row: both are frozen."""
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    net[1].weight = nn.Parameter(net[0].weight.data)
    tk.params(net, "0.weight").freeze()
    assert (net[0].weight.requires_grad, net[1].weight.requires_grad) == (False, False)


def test_freeze_where_it_makes_no_sense():
    """A mapping, a table of buffers and integer parameters are refused before anything has changed."""
    net = make_net()
    with pytest.raises(TableError, match="can't freeze the mapping: only the parameters of a live module"):
        tk.params(net.state_dict()).freeze()
    with pytest.raises(TableError, match="holds no parameter"):
        tk.params(net, ":buffer").unfreeze()
    net.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    net[0].linear.bias.requires_grad_(requires_grad=False)
    with pytest.raises(TableError, match=r"can't unfreeze codes \(int64\).*nothing was changed"):
        tk.params(net).unfreeze()
    assert not net[0].linear.bias.requires_grad
    tk.params(net).freeze()
    assert not any(p.requires_grad for p in net.parameters())


def test_a_table_follows_its_module():
    """dtype, device, a new tie and a replaced layer show in a table that was made before."""
    net = make_net()
    table = tk.params(net)
    chosen = table.select("0.**")
    net[0].half()
    assert {row.dtype for row in chosen} == {"float16", "int64"}
    net[1].to("meta")
    assert table.select(":meta").names()[0] == "1.linear.weight"
    replaced = net[0].linear = nn.Linear(3, 4, bias=True)
    assert chosen["0.linear.weight"] is replaced.weight
    assert next(iter(chosen)).shape == (4, 3)
    before = table.numel
    net[0].norm.bias = net[0].norm.weight
    assert table.numel == before - 3
    assert chosen["0.norm.bias"] is chosen["0.norm.weight"] is net[0].norm.weight


def test_each_name_leads_to_what_hangs_there():
    """Two Parameters over one memory are one row, yet each name gives its own; a tie undone is seen at once."""
    net = make_net()
    table = tk.params(net)
    net[2].linear.weight = nn.Parameter(net[1].linear.weight.data)
    assert table["2.linear.weight"] is net[2].linear.weight is not net[1].linear.weight
    assert table["1.linear.weight"] is net[1].linear.weight
    tied = table.numel
    net[2].linear.weight = nn.Parameter(torch.ones(3, 3))
    assert table["2.linear.weight"] is net[2].linear.weight
    assert table.numel == tied + 9
    assert "2.linear.weight" in table.names()


def test_memory_that_comes_to_be_shared_is_seen():
    """The same Parameter object over other memory makes a tie, or unmakes one."""
    net = make_net()
    table = tk.params(net)
    before = table.numel
    net[0].linear.weight.data = net[1].linear.weight.data
    assert table.numel == before - 9
    net[0].linear.weight.data = torch.zeros(3, 3)
    assert table.numel == before


def test_replacing_a_whole_block_is_seen():
    """A lookup goes the way that the name goes now, also when a module far above was replaced."""
    net = nn.Sequential(nn.Sequential(Block()))
    table = tk.params(net)
    old = table["0.0.linear.weight"]
    net[0] = nn.Sequential(Block())
    assert table["0.0.linear.weight"] is net[0][0].linear.weight is not old
    net.append(nn.Linear(2, 2))
    assert "1.weight" not in table  # which names a table holds was decided when it was made
    assert len(table) == 7


def test_wrappers_and_parametrizations_are_looked_through():
    """A wrapped module is the same source as the bare one, and a lookup finds its way through both."""
    net = nn.Sequential(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))), Block())
    wrapped = nn.Sequential(nn.DataParallel(net[0]), net[1])
    table = tk.params(nn.DataParallel(wrapped))
    assert table.names() == tk.params(net).names()
    assert table["0.0.parametrizations.weight.original"] is net[0][0].parametrizations.weight.original
    assert len(table & tk.params(wrapped)) == len(table)
    wrapped[0].module = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TableError, match=r"has lost 0\.0\.parametrizations\.weight\.original"):
        table.select("1.**")
    wrapped[0].module = net[0]
    assert table["0.0.bias"] is net[0][0].bias


def test_a_table_that_lost_a_name_says_so():
    """A removed layer is an error that names it, and nothing is frozen behind the model's back."""
    net = make_net()
    table = tk.params(net)
    del net[0]
    with pytest.raises(TableError, match=r"the model has changed and has lost 2\.linear\.bias, 2\.norm\.weight"):
        table.freeze()
    assert all(p.requires_grad for p in net.parameters())


def test_lazy_parameters():
    """A lazy parameter has no shape and counts nothing until it has seen an input; the same table follows."""
    net = nn.Sequential(nn.LazyLinear(3))
    table = tk.params(net)
    assert [row.shape for row in table] == [None, None]
    assert table.numel == 0
    assert table.stats()["0.weight"].note.startswith("no values")
    net(torch.ones(1, 2))
    assert [row.shape for row in table] == [(3, 2), (3,)]
    assert table.numel == 9


def test_a_state_dict():
    """Kinds and classes are not known, ties are seen, names are as they are, extra state is left out and told."""
    net = make_net()
    state = net.state_dict()
    state["1._extra_state"] = {"steps": 3}
    table = tk.params(state)
    assert table.names() == tk.params(net).names()
    assert table["2.linear.weight"] is state["2.linear.weight"]
    assert table["2.linear.weight"].data_ptr() == table["1.linear.weight"].data_ptr()
    assert {(row.kind, row.trainable, row.module_type) for row in table} == {(None, None, None)}
    assert table.numel == tk.params(net).numel + tk.params(net).buffer_numel
    assert table.buffer_numel == 0
    assert "left out, since they are no tensors: 1._extra_state" in str(table)
    with pytest.raises(MissingFieldError):
        table.select("@Linear")


def test_the_same_selection_of_module_and_state_dict():
    """A selector by name and field selects the same in a module and in its state_dict."""
    net = make_net()
    for expression in ("**.weight", "[1:].**", "[-1].linear.*", ":tied", "[ndim>=2]", "** - [dtype=int64]"):
        assert tk.params(net, expression).names() == tk.params(net.state_dict(), expression).names()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (3, "found an int"),
        (nn.Linear, "the class Linear; make an instance"),
        ([torch.zeros(1)], "found a list"),
        (torch.zeros(1), "found a Tensor"),
        ({"a": torch.zeros(1), "b": {"c": torch.zeros(1)}}, "a dict under 'b'"),
        ({0: torch.zeros(1)}, "one is 0"),
        ("my model", r"'my model'.*\.safetensors"),
    ],
)
def test_what_is_no_source(source, found):
    """Each wrong source is a SourceError (a TypeError) that says what was found and what is accepted."""
    with pytest.raises(SourceError, match=found):
        tk.params(source)


def test_text_folds_and_names_totals():
    """The printed table shows repeated blocks in one line that selects them again."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    table = tk.params(net)
    assert "[0:12].weight" in str(table)
    assert table.select("[0:12].weight").names() == [f"{i}.weight" for i in range(12)]
    assert f"{table.numel}" in str(table).replace(",", "").replace("_", "")
    evens = table.select(where(lambda row: int(row.name.split(".")[0]) % 2 == 0))
    assert "[0:11]" not in str(evens)  # would select the odd ones too when pasted into the whole model


def test_repr_shows_the_table_cut_to_a_screen():
    """At the prompt a table shows itself; a long one is cut and says how to see all of it."""
    small = tk.params(nn.Linear(2, 2))
    assert repr(small) == str(small)
    net = nn.ModuleDict({f"layer_{'x' * i}": nn.Linear(i + 1, 1) for i in range(100)})
    table = tk.params(net)
    lines = repr(table).splitlines()
    assert len(lines) == 40
    assert f"{len(str(table).splitlines()) - 39} more lines: print(table) shows them all" in repr(table)
    assert lines[-1] == str(table).splitlines()[-1]


def test_a_modules_own_equality_is_not_asked():
    """Whether a layer was replaced is seen by identity; a class whose == raises does no harm."""

    class Incomparable(nn.Linear):
        __hash__ = nn.Module.__hash__

        def __eq__(self, other):
            raise RuntimeError

    net = nn.Sequential(Incomparable(2, 3))
    table = tk.params(net)
    net[0] = Incomparable(2, 4)
    assert table.rows[0].shape == (4, 2)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_model_is_listed_and_followed():
    """A model of TorchScript has a table like any other, alone and inside another, and the table follows it."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    table = tk.params(scripted)
    assert table.names() == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert table["1.weight"].shape == (1, 3)
    table.select("0.*").freeze()
    assert [row.trainable for row in tk.params(nn.Sequential(scripted)).rows] == [False, False, True, True]
    assert [parameter.requires_grad for parameter in scripted.parameters()] == [False, False, True, True]
