"""A live model filled in place: all or nothing for what a plan can see, and never silently."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from saved_values import bits_of
from torchkeep.errors import DamageError, LoadError, NoMatchError, SelectorError, SourceError
from torchkeep.formats import open_contents
from torchkeep.tensors.reading import read_into


class Net(nn.Module):
    """Blocks, a head, a buffer, and a tie."""

    def __init__(self, blocks=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(blocks)])
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 3)
        self.head.weight = self.blocks[0].weight


def bits(net):
    return {name: bits_of(tensor) for name, tensor in net.state_dict().items()}


@pytest.fixture
def path(tmp_path):
    tk.save(Net(seed=1), tmp_path / "net")
    return tmp_path / "net"


SOURCES = {
    "file": lambda path: path,
    "text": str,
    "mapping": tk.load,
    "model": lambda _: Net(seed=1),
    "table of a file": tk.params,
    "table of a model": lambda _: tk.params(Net(seed=1)),
    "wrapped model": lambda _: nn.DataParallel(Net(seed=1)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_fills_the_model(path, source):
    """Files, mappings, models and tables give the same bits, under the names of the live tensors."""
    net = Net()
    report = tk.load_into(net, source(path))
    assert bits(net) == bits(Net(seed=1))
    assert report.names == tuple(row.name for row in tk.params(net).rows)
    assert "10 tensors" in str(report)
    assert report.nbytes == sum(row.nbytes for row in tk.params(net).rows)


def test_the_live_tensors_stay_what_they_are(path):
    """Objects, ties, requires_grad, memory format, gradients and an optimizer's references are kept."""
    net = Net()
    net.norm.weight.requires_grad = False
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.head.weight.sum().backward()
    before = dict(net.named_parameters())
    gradient = net.head.weight.grad
    tk.load_into(net, path)
    after = dict(net.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert net.head.weight is net.blocks[0].weight
    assert optimizer.param_groups[0]["params"][0] is net.blocks[0].weight
    assert not net.norm.weight.requires_grad
    assert net.head.weight.grad is gradient
    assert net.head.weight.is_leaf


def test_memory_formats_of_file_and_model_may_differ(tmp_path):
    """Strides are the model's own; the values go where they belong, also part of a tensor at a time."""
    torch.manual_seed(0)
    plain, last = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    tk.save(plain, tmp_path / "plain")
    tk.save(last, tmp_path / "last")
    stride = last.weight.stride()
    wanted = last.weight.detach().clone()
    tk.load_into(last, tmp_path / "plain")
    assert last.weight.stride() == stride
    assert torch.equal(last.weight, plain.weight)
    tk.load_into(plain, tmp_path / "last")
    assert plain.weight.is_contiguous()
    assert torch.equal(plain.weight, wanted)


def test_autograd_notices(path):
    """A value that a backward pass still needs can't be changed behind its back."""
    for source in (path, tk.load(path)):
        net = Net()
        loss = (net.head.weight**2).sum()
        tk.load_into(net, source)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_nothing_is_changed_when_the_plan_has_problems(path, kind):
    """Missing, unexpected, other shapes and dtypes are told together; the model is bit for bit as before."""
    net = Net(blocks=3)
    net.head.bias = nn.Parameter(torch.zeros(4))
    net.norm.to(torch.float64)
    del net.norm.running_mean
    before = bits(net)
    with pytest.raises(LoadError) as caught:
        tk.load_into(net, SOURCES[kind](path))
    assert bits(net) == before
    text, problems = str(caught.value), caught.value.problems
    for part in ("blocks.2.weight", "blocks.2.bias", "norm.running_mean", "[4]", "[3]", "float64", "cast=True"):
        assert part in text
    assert any("'blocks.2.weight'" in problem and "missing" in problem for problem in problems)
    assert any("'norm.running_mean'" in problem and "unexpected" in problem for problem in problems)
    assert any("'head.bias'" in problem and "[3]" in problem for problem in problems)
    assert any("'norm.weight'" in problem and "float64" in problem for problem in problems)


def test_policies_leave_out_what_they_say_and_report_it(path):
    """Each policy excuses its own kind of problem, and the report counts what was left."""
    net = Net(blocks=3)
    net.head.bias = nn.Parameter(torch.full((4,), 7.0))
    del net.norm.running_mean
    left = net.blocks[2].weight.detach().clone()
    report = tk.load_into(net, path, missing="ignore", unexpected="ignore", mismatch="ignore")
    assert report.plan.missing == ("blocks.2.weight", "blocks.2.bias")
    assert report.plan.unexpected == ("norm.running_mean",)
    assert [misfit.name for misfit in report.plan.mismatched] == ["head.bias"]
    assert torch.equal(net.blocks[2].weight, left)
    assert net.head.bias.tolist() == [7.0] * 4
    assert torch.equal(net.head.weight, Net(seed=1).head.weight)
    for part in ("2 missing", "1 unexpected", "1 did not fit"):
        assert part in str(report)
    with pytest.raises(LoadError, match="warn"):
        tk.load_into(net, path, missing="warn")


def test_nothing_is_cast_unless_asked_for(tmp_path):
    """Another dtype is a mismatch; cast=True converts as ``Tensor.to`` does, but never drops imaginary parts."""
    values = {"weight": torch.tensor([[1.5, 2.49]], dtype=torch.float64), "bias": torch.tensor([3.7]).half()}
    tk.save(values, tmp_path / "file")
    for source in (tmp_path / "file", values):
        net = nn.Linear(2, 1)
        with pytest.raises(LoadError, match=r"float64.*cast=True"):
            tk.load_into(net, source)
        report = tk.load_into(net, source, cast=True)
        assert torch.equal(net.weight, values["weight"].float())
        assert torch.equal(net.bias, values["bias"].float())
        assert net.weight.dtype == torch.float32
        assert "2 converted" in str(report)
    odd = {
        "weight": torch.ones(1, 2, dtype=torch.complex64),
        "bias": torch.ones(1, dtype=torch.uint8).view(torch.bits8),
    }
    with pytest.raises(LoadError, match=r"imaginary part(.|\n)*bits8, which can't be converted"):
        tk.load_into(net, odd, cast=True)


def test_a_cast_may_end_within_a_chunk_of_larger_elements(tmp_path):
    """Chunks of the file's dtype are converted one by one into a tensor of smaller elements."""
    values = torch.arange(5_000_000, dtype=torch.float64)
    tk.save({"x": values}, tmp_path / "file")
    net = nn.Module()
    net.register_buffer("x", torch.zeros(5_000_000))
    tk.load_into(net, tmp_path / "file", cast=True)
    assert torch.equal(net.x, values.float())


def test_any_alias_satisfies_a_tie(path):
    """A source that knows a tied tensor under one of its names fills it; the other is not missing."""
    state = tk.load(path)
    del state["head.weight"]
    net = Net()
    tk.load_into(net, state)
    assert torch.equal(net.head.weight, state["blocks.0.weight"])
    state["head.weight"] = state.pop("blocks.0.weight")
    net = Net()
    tk.load_into(net, state)
    assert torch.equal(net.blocks[0].weight, state["head.weight"])


@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_two_sources_for_one_tie_must_have_the_same_bits(tmp_path, kind):
    """Equal copies are fine; different ones are an error that names both, whatever the policies."""
    state = {name: tensor.clone() for name, tensor in Net(seed=1).state_dict().items()}
    tk.save(state, tmp_path / "file")
    net = Net()
    tk.load_into(net, tmp_path / "file" if kind == "file" else state)
    state["head.weight"][0, 0] += 1
    tk.save(state, tmp_path / "file")
    before = bits(net)
    with pytest.raises(LoadError, match=r"tied in the model.*'blocks\.0\.weight'.*'head\.weight'"):
        tk.load_into(net, tmp_path / "file" if kind == "file" else state, mismatch="ignore")
    assert bits(net) == before


def test_one_source_may_fill_two_targets(path):
    """A tie in the source is two equal tensors in a model that does not tie them."""
    net = Net()
    net.head.weight = nn.Parameter(torch.zeros(3, 3))
    tk.load_into(net, path)
    assert torch.equal(net.head.weight, net.blocks[0].weight)
    assert net.head.weight is not net.blocks[0].weight


def test_a_model_may_be_filled_from_its_own_tensors(path):
    """Swapping two tensors of one model reads both before either is written."""
    del path
    net = Net()
    one, two = net.blocks[0].bias.detach().clone(), net.blocks[1].bias.detach().clone()
    swap = {"blocks.0.bias": net.blocks[1].bias, "blocks.1.bias": net.blocks[0].bias}
    tk.load_into(net, swap, select="blocks.*.bias")
    assert torch.equal(net.blocks[0].bias, two)
    assert torch.equal(net.blocks[1].bias, one)


def test_a_selection_is_filled_alone(path):
    """What is not selected stays, and what the source has for it is reported as left out."""
    net = Net()
    norm = net.norm.weight.detach().clone()
    report = tk.load_into(net, path, select="blocks.**")
    assert report.names == ("blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias")
    assert torch.equal(net.norm.weight, norm)
    assert torch.equal(net.blocks[1].bias, Net(seed=1).blocks[1].bias)
    assert "norm.weight" in report.plan.not_asked
    with pytest.raises(NoMatchError, match="blocks"):
        tk.load_into(net, path, select="block.**")


def test_a_selection_of_non_persistent_buffers_is_refused():
    """They are no part of any state."""
    net = nn.Module()
    net.register_buffer("scratch", torch.ones(1), persistent=False)
    with pytest.raises(LoadError, match="non-persistent"):
        tk.load_into(net, {}, select="scratch")


def test_targets_that_can_not_be_filled_are_named():
    """Lazy, meta and expanded targets each say what to do first, whatever the policies."""
    net = nn.ModuleDict({"lazy": nn.LazyLinear(2), "meta": nn.Linear(2, 2, device="meta"), "wide": nn.Module()})
    net["wide"].register_buffer("x", torch.ones(1).expand(3))
    source = {name: torch.ones(1) for name in tk.params(net).names()} | {"wide.x": torch.ones(3)}
    with pytest.raises(LoadError, match=r"lazy.*forward(.|\n)*meta\.weight: .*materialize(.|\n)*wide\.x"):
        tk.load_into(net, source, mismatch="ignore")


def test_sources_that_can_not_be_read_are_named():
    """A sparse or a meta tensor in a mapping has no values to copy."""
    net = nn.Linear(2, 2)
    source = {"weight": torch.eye(2).to_sparse(), "bias": torch.ones(2, device="meta")}
    with pytest.raises(LoadError, match=r"weight: .*sparse(.|\n)*bias: .*meta"):
        tk.load_into(net, source)


def test_what_is_no_source_is_refused(path):
    """Objects, keys and values of the wrong kind are named, with what to give instead."""
    net = Net()
    with pytest.raises(SourceError, match="int"):
        tk.load_into(net, 5)
    with pytest.raises(SourceError, match=r"checkpoint\['model'\]"):
        tk.load_into(net, {"model": net.state_dict(), "epoch": 3})
    with pytest.raises(SourceError, match="keys must be names"):
        tk.load_into(net, {3: torch.ones(1)})
    with pytest.raises(SourceError, match=r"expected a torch\.nn\.Module"):
        tk.load_into(5, path)
    with pytest.raises(SelectorError, match="rename"):
        tk.load_into(net, path, rename=5)


def damage(path, name):
    start, _ = open_contents(path).header.span(name)
    raw = bytearray(path.read_bytes())
    raw[start] ^= 1
    path.write_bytes(raw)


def large_net(seed):
    torch.manual_seed(seed)
    net = nn.Module()
    for name in "abc":
        net.register_buffer(name, torch.randn(5_000_000))
    return net


def test_damage_in_the_middle_names_what_was_replaced(tmp_path):
    """What damaged or sound bytes reached is named, in whole or in part, and nothing else; autograd knows too."""
    path = tmp_path / "file"
    tk.save(large_net(1), path)
    damage(path, "c")
    net, old = large_net(0), large_net(0)
    versions = [buffer._version for buffer in net.buffers()]
    with pytest.raises(DamageError, match=r"'c'.*already replaced.*a") as caught:
        tk.load_into(net, path)
    assert caught.value.tensor == "c"
    changed = {name for name in "abc" if not torch.equal(net.get_buffer(name), old.get_buffer(name))}
    assert {"a", "c"} <= changed == set(caught.value.replaced)
    assert all(buffer._version > before for buffer, before in zip(net.buffers(), versions, strict=True))


def test_small_tensors_are_verified_before_they_are_replaced(tmp_path):
    """Where a chunk is small, damaged bytes never reach the model: the tensor is as it was."""
    path = tmp_path / "file"
    tk.save(nn.Linear(100, 100), path)
    damage(path, "weight")
    net = nn.Linear(100, 100)
    before = bits(net)
    with pytest.raises(DamageError, match=r"'weight'") as caught:
        tk.load_into(net, path)
    assert bits(net)["weight"] == before["weight"]
    assert "weight" not in caught.value.replaced


def test_an_atomic_load_replaces_nothing_when_there_is_damage(tmp_path):
    """With atomic=True the file is read as a whole first; damage leaves the model as it was."""
    path = tmp_path / "file"
    tk.save(large_net(1), path)
    net = large_net(0)
    tk.load_into(net, path, atomic=True)
    assert bits(net) == bits(large_net(1))
    damage(path, "c")
    net = large_net(0)
    with pytest.raises(DamageError, match="the model is as it was") as caught:
        tk.load_into(net, path, atomic=True)
    assert caught.value.replaced == ()
    assert bits(net) == bits(large_net(0))


def test_an_interrupt_in_the_middle_tells_what_was_replaced(tmp_path, monkeypatch):
    """Whatever stops a load, a note on the exception names the tensors that changed."""
    tk.save(large_net(1), tmp_path / "file")

    def interrupted(*args, begun, **options):
        def begun_then_stop(position):
            begun(position)
            raise KeyboardInterrupt

        read_into(*args, begun=begun_then_stop, **options)

    monkeypatch.setattr("torchkeep.files.file_sources.read_into", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        tk.load_into(large_net(0), tmp_path / "file")
    assert "already replaced in the model: a" in caught.value.__notes__[0]


def test_a_file_without_digests_loads_and_says_so(tmp_path):
    """Other writers keep no digests; the report does not pretend that anything was verified."""
    from safetensors.torch import save_file

    net = nn.Linear(2, 2)
    save_file(net.state_dict(), tmp_path / "file")
    report = tk.load_into(nn.Linear(2, 2), tmp_path / "file")
    assert report.verified is False
    assert "no digests" in str(report)
    assert "every byte verified" in str(tk.load_into(nn.Linear(2, 2), tk.save(net, tmp_path / "ours").path))


def test_a_model_is_filled_with_its_own_conjugate():
    """The source lies in the target's memory, and yet has other values, which are the ones that count."""
    net = nn.Module()
    net.register_buffer("w", torch.randn(3, dtype=torch.complex64))
    wanted = net.w.conj().clone()
    tk.load_into(net, {"w": net.w.conj()})
    assert torch.equal(net.w, wanted)
