"""`tk.tree` with inputs: shapes and dtypes of every call, on fakes where that can be, for real where it can't."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn

from torchkeep.errors import StructureError
from torchkeep.tables.structure import tree
from torchkeep.tables.tracing.shapes import Fields, TensorShape, describe, text


def f32(*shape):
    return TensorShape(shape, "float32")


class Around(nn.Module):
    """Runs a function of (layer, inputs) as its forward, so that each test says what forward does."""

    def __init__(self, run, layer=None):
        super().__init__()
        self.layer = nn.Linear(3, 4) if layer is None else layer
        self._run = run

    def forward(self, *args, **kwargs):
        return self._run(self.layer, *args, **kwargs)


class FixedHidden(nn.Module):
    """A constant random weight, one layer used twice, a while-loop on values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rand_weight", torch.rand(20, 20))
        self.linear = nn.Linear(20, 20)

    def forward(self, x):
        x = self.linear(x)
        x = F.relu(x @ self.rand_weight + 1)
        x = self.linear(x)
        while x.abs().sum() > 1:
            x = x / 2
        return x.sum()


def test_every_block_reports_what_went_in_and_out():
    """Shapes and dtypes are there, as data and in the text, and nothing was computed for real."""
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5).double().float(), nn.Flatten())
    structure = tree(net, torch.zeros(2, 3, dtype=torch.int64))
    assert (structure.how, structure.mode, structure.reason, structure.notes) == ("fake", "train", "", ())
    assert structure["0"].inputs == (TensorShape((2, 3), "int64"),)
    assert structure["0"].output == f32(2, 3, 6)
    assert structure["1"].output == f32(2, 3, 5)
    assert structure.root.output == f32(2, 15)
    lines = str(structure).splitlines()
    assert lines[1] == "Shapes traced on a fake copy in train mode. A shape without a dtype is float32."
    assert lines[4].split("  ")[0] == "Sequential"
    assert "int64[2, 3]" in lines[5]
    assert "[2, 3, 6]" in lines[5]


def test_the_shapes_are_those_of_a_real_run():
    """For a net of many layers, every hooked real output has the shape and dtype that the trace says."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.LayerNorm(16),
        nn.Linear(16, 2),
    )
    x = torch.rand(2, 3, 17, 17)
    structure = tree(net, x)
    seen = {}
    for path, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, out, path=path: seen.setdefault(path, out))
    net(x)
    tensors = {path: out for path, out in seen.items() if isinstance(out, torch.Tensor)}
    assert len(tensors) > 10
    for path, out in tensors.items():
        assert structure[path].output == TensorShape(tuple(out.shape), str(out.dtype).removeprefix("torch."))


def test_a_loop_on_values_is_run_for_real_and_said_so():
    """The mission's block: shapes are still shown, how they were got is told in text and attribute."""
    structure = tree(FixedHidden(), torch.rand(2, 20))
    assert (structure.how, structure.mode) == ("real", "eval")
    assert structure.reason.startswith("DataDependentOutputException: forward decides on the values of a tensor")
    assert structure.root.output == f32()
    assert structure["linear"].times == 2
    shown = str(structure)
    assert "running a copy for real, in eval mode, without gradients" in shown
    assert "called 2 times" in shown


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: layer(x) * layer(x).sum().item(),
        lambda layer, x: layer(x) + torch.from_numpy(np.tanh(layer(x).detach().numpy())),
        lambda layer, x: layer(x)[x[:, 0] >= 0],
        lambda layer, x: layer(x) if x.any() else layer(x) * 2,
        lambda layer, x: layer(x[: x.argmax().tolist() + 1]),
        lambda layer, x: layer(torch.tensor(x.tolist())),
    ],
    ids=["item", "numpy", "boolean mask", "if", "index from values", "tolist"],
)
def test_whatever_needs_values_is_run_for_real(run):
    """Each way of leaving the shapes-only world falls back to a real run, with its reason."""
    structure = tree(Around(run), torch.rand(2, 3))
    assert structure.how == "real"
    assert structure.reason
    assert structure["layer"].output in (f32(2, 4), f32(1, 4))


def test_a_custom_operator_without_a_shape_rule_is_run_for_real():
    """An operator that only has a kernel for the CPU works, and the text says why it was computed."""
    with torch.library._scoped_library("torchkeep_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        structure = tree(Around(lambda layer, x: torch.ops.torchkeep_test.twice(layer(x))), torch.rand(2, 3))
    assert structure.how == "real"
    assert "UnsupportedOperatorException: an operator has no rule for shapes alone" in structure.reason
    assert structure.root.output == f32(2, 4)


def test_batch_norm_on_a_batch_of_one_is_traced_in_eval_mode():
    """What only training refuses is traced as in eval mode, still without computing, and said."""
    structure = tree(nn.Sequential(nn.BatchNorm1d(3)), torch.rand(1, 3))
    assert (structure.how, structure.mode) == ("fake", "eval")
    assert "in train mode it raised ValueError: Expected more than 1 value per channel" in str(structure)
    assert structure.root.output == f32(1, 3)


def test_training_shapes_are_shown_for_a_net_in_training():
    """A net whose forward differs between the modes is traced in the mode that it is in."""

    class TwoModes(nn.Module):
        def forward(self, x):
            return (x, x[0]) if self.training else x

    assert tree(TwoModes(), torch.rand(2, 3)).root.output == (f32(2, 3), f32(3))
    assert tree(TwoModes().eval(), torch.rand(2, 3)).root.output == f32(2, 3)
    assert tree(TwoModes().eval(), torch.rand(2, 3)).mode == "eval"


def test_nested_outputs_and_inputs_are_described():
    """Tuples, lists, dicts, dataclasses, named tuples, None, numbers and unknown objects."""

    @dataclass
    class Output:
        logits: torch.Tensor
        hidden: tuple[torch.Tensor, ...] | None = None

    class Pair(NamedTuple):
        left: torch.Tensor
        right: int

    def run(layer, batch, pair):
        y = layer(batch["x"])
        return {"out": Output(y, (y, y)), "pair": pair, "many": [y] * 30, "no": None, "other": object()}

    structure = tree(Around(run), {"x": torch.rand(2, 3), "name": "a"}, Pair(torch.rand(1), 3))
    assert structure.root.inputs == (
        {"x": f32(2, 3), "name": "str"},
        Fields("Pair", {"left": f32(1), "right": "3"}),
    )
    out = structure.root.output
    assert out["out"] == Fields("Output", {"logits": f32(2, 4), "hidden": (f32(2, 4), f32(2, 4))})
    assert (out["no"], out["other"]) == (None, "object")
    assert text(out["many"], "float32") == "list(30 x [2, 4])"
    assert text(out["out"], "float32") == "Output(logits=[2, 4], hidden=([2, 4], [2, 4]))"


def test_descriptions_are_short_whatever_the_value():
    """Depth and length of containers are bounded; mappings that are no dict are named."""
    endless = []
    endless.append(endless)
    assert text(describe(endless)) == "list(list(list(list(list(list(...))))))"
    assert text(describe(list(range(20)))) == "list(0, 1, 2, 3, and 16 more)"
    assert text(describe(OrderedDict(a=torch.zeros(2)))) == "OrderedDict(a=float32[2])"
    assert text(describe((None, True, torch.zeros((), dtype=torch.int8)))) == "(None, True, int8[])"


def test_keyword_inputs_alone_are_enough():
    """A net that takes only keywords, dicts among them, is traced."""

    def run(layer, *, batch, mask=None, scale=1.0):
        y = layer(batch["x"]) * scale
        return y if mask is None else y * mask

    structure = tree(Around(run), kwargs={"batch": {"x": torch.rand(2, 3)}, "mask": None, "scale": 2.0})
    assert structure.root.calls[0].kwargs == {"batch": {"x": f32(2, 3)}, "mask": None, "scale": "2.0"}
    assert "  batch={x: [2, 3]}, scale=2.0  " in str(structure)


def test_no_keywords_is_no_call_and_empty_keywords_are_one():
    """`kwargs={}` calls a net that takes no inputs at all."""

    class Source(nn.Module):
        def forward(self):
            return torch.zeros(3)

    assert tree(Source()).how == "not run"
    assert tree(Source(), kwargs={}).root.output == f32(3)


def test_several_calls_of_one_module_show_every_shape():
    """Distinct shapes have lines of their own; alike calls are counted."""
    net = Around(lambda layer, x: (layer(x), layer(x), layer(x[0])))
    structure = tree(net, torch.rand(2, 3))
    assert [(call.args, call.output, call.times) for call in structure["layer"].calls] == [
        ((f32(2, 3),), f32(2, 4), 2),
        ((f32(3),), f32(4), 1),
    ]
    first, second = str(structure).splitlines()[-2:]
    assert first.endswith("called 2 times")
    assert second.split() == ["[3]", "[4]", "called", "once"]


def test_calls_are_counted_where_the_count_changes():
    """A block that is called three times says so; what it calls once in each of them need not."""

    def run(layer, x):
        for _ in range(3):
            x = layer(x)
        return x

    inner = nn.Sequential(nn.Linear(3, 3), Around(lambda layer, x: layer(layer(x)), nn.Linear(3, 3)))
    lines = str(tree(Around(run, inner), torch.rand(2, 3))).splitlines()
    assert [line.rpartition("  ")[2] for line in lines if "called" in line] == ["called 3 times", "called 6 times"]
    assert "layer: Sequential" in lines[5]
    assert "layer: Linear" in lines[8]


def test_very_many_shapes_are_summed_up():
    """A layer called with a growing sequence does not fill the screen."""
    net = Around(lambda layer, x: [layer(x[:length]) for length in range(1, 21)])
    lines = str(tree(net, torch.rand(20, 3))).splitlines()
    assert len(lines) == 3 + 1 + 1 + 4 + 1
    assert lines[-1].endswith("called 16 times with other shapes")


def test_modules_that_are_never_called_are_marked():
    """An unused branch is marked once, at its top; containers without a forward are not."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.ModuleList([nn.Linear(3, 4)])
            self.unused = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            return self.used[0](x)

    lines = [line for line in str(tree(Branches(), torch.rand(2, 3))).splitlines() if "not called" in line]
    assert len(lines) == 1
    assert "unused: Sequential" in lines[0]


def test_forward_called_directly_is_seen():
    """Going around __call__ does not hide a layer."""
    assert tree(Around(lambda layer, x: layer.forward(x)), torch.rand(2, 3))["layer"].output == f32(2, 4)


def test_blocks_with_other_shapes_do_not_fold():
    """Equal blocks through which different shapes go stand alone."""
    net = nn.Sequential(nn.MaxPool1d(2), nn.MaxPool1d(2), nn.MaxPool1d(2))
    shown = str(tree(net, torch.rand(1, 2, 16)))
    assert shown.count("MaxPool1d") == 3
    assert str(tree(net)).count("MaxPool1d") == 1


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers(kind, batch_first):
    """Outputs and states of torch's recurrent layers, which keep weak references to their weights."""
    structure = tree(kind(4, 5, 2, batch_first=batch_first, bidirectional=True), torch.rand(2, 7, 4))
    batch = 2 if batch_first else 7
    state = f32(4, batch, 5)
    assert structure.how == "fake"
    assert structure.root.output == (f32(2, 7, 10), (state, state) if kind is nn.LSTM else state)


def test_packed_sequences_are_run_for_real():
    """Lengths are values, so packing needs them; the shapes are shown all the same."""

    def run(layer, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

    structure = tree(
        Around(run, nn.GRU(4, 5, batch_first=True)), torch.rand(2, 7, 4), torch.tensor([7, 3], dtype=torch.int64)
    )
    assert structure.how == "real"
    assert structure.root.output == f32(2, 7, 5)


def test_transformers_show_every_layer_in_eval_mode_too():
    """Attention's fast path skips the modules inside; the trace takes the path on which they are called."""
    net = (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        .eval()
        .requires_grad_(requires_grad=False)
    )
    structure = tree(net, torch.rand(2, 5, 8))
    assert structure.how == "fake"
    assert structure["layers.1.linear1"].output == f32(2, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled()
    attention = tree(nn.MultiheadAttention(8, 2, batch_first=True), *[torch.rand(2, 5, 8)] * 3)
    assert attention.root.output == (f32(2, 5, 8), f32(2, 5, 5))


def test_parametrised_layers():
    """Weight norm, spectral norm and orthogonal weights are computed on the copy."""
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
    )
    structure = tree(net, torch.rand(2, 3))
    assert structure.how == "fake"
    assert structure.root.output == f32(2, 4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchs_own_hooks_run():
    """The older weight_norm, spectral_norm and pruning compute the weight in a hook; without it nothing runs."""
    pruned = nn.Linear(4, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    net = nn.Sequential(
        torch.nn.utils.weight_norm(nn.Linear(3, 4)), torch.nn.utils.spectral_norm(nn.Linear(4, 4)), pruned
    )
    structure = tree(net, torch.rand(2, 3))
    assert (structure.how, structure.notes) == ("fake", ())
    assert structure.root.output == f32(2, 4)


def test_lazy_layers_take_shape_on_the_copy_only():
    """Their shapes with these inputs are told, in a fake and in a real run, and the net stays lazy."""
    for last in (nn.ReLU(), Around(lambda _layer, x: x * x.sum().item(), nn.ReLU())):
        net = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), last)
        structure = tree(net, torch.rand(2, 3))
        assert structure.how == ("fake" if isinstance(last, nn.ReLU) else "real")
        assert structure.root.output == f32(2, 5)
        assert [tensor.traced_shape for tensor in structure["0"].held] == [(5, 3), (5,)]
        assert "lazy, with these inputs weight [5, 3], bias [5]" in str(structure)
        assert net[0].has_uninitialized_params()
        assert net[1].has_uninitialized_params()


def test_wrappers_run_as_what_they_wrap():
    """DataParallel and compiled modules, inside and outside, do not change the trace."""
    net = nn.Sequential(nn.DataParallel(nn.Linear(3, 4)), torch.compile(nn.Sequential(nn.Linear(4, 5))))
    plain = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5)))
    x = torch.rand(2, 3)
    assert str(tree(torch.compile(nn.DataParallel(net)), x)) == str(tree(plain, x))
    plain.compile()
    assert tree(plain, x).root.output == f32(2, 5)


def test_code_that_reaches_through_a_wrapper_runs():
    """A forward that says `self.inner.module` finds it on the copy."""
    net = Around(lambda layer, x: layer.module(x) + layer(x), nn.DataParallel(nn.Linear(3, 4)))
    assert tree(net, torch.rand(2, 3))["layer"].times == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_traced_modules():
    """TorchScript shows its outermost call; what runs inside cannot be seen and is not called missing."""
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    for module in (torch.jit.script(inner), torch.jit.trace(inner, torch.rand(2, 3))):
        structure = tree(nn.Sequential(module), torch.rand(2, 3))
        assert structure["0"].output == f32(2, 4)
        assert "not called" not in str(structure)


def test_meta_models_of_any_size_run_with_inputs_from_anywhere():
    """Ten billion parameters on the meta device, inputs on the CPU or on meta: traced without memory."""
    net = nn.Sequential(*[nn.Linear(50_000, 50_000, bias=False, device="meta") for _ in range(4)])
    for x in (torch.zeros(2, 50_000), torch.empty(2, 50_000, device="meta")):
        structure = tree(net, x)
        assert structure.how == "fake"
        assert structure.root.output == f32(2, 50_000)


def test_inputs_on_the_meta_device_for_a_real_net():
    """The input may be a mere shape."""
    assert tree(nn.Linear(3, 4), torch.empty(2, 3, device="meta")).root.output == f32(2, 4)


def test_other_dtypes_and_layouts():
    """Low precision, complex numbers, autocast and sparse inputs say their dtype."""
    assert tree(nn.Linear(3, 4).bfloat16(), torch.rand(2, 3).bfloat16()).root.output.dtype == "bfloat16"
    assert "is bfloat16." in str(tree(nn.Linear(3, 4).bfloat16(), torch.rand(2, 3).bfloat16()))
    assert tree(nn.Linear(3, 4, dtype=torch.complex64), torch.rand(2, 3) + 0j).root.output.dtype == "complex64"
    assert tree(nn.Linear(3, 4), torch.eye(3).to_sparse()).root.output == f32(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert tree(nn.Linear(3, 4), torch.rand(2, 3)).root.output.dtype == "bfloat16"


def test_gradients_taken_inside_forward():
    """A net whose output is a gradient is traced, as the fake copy is run with gradients."""

    def run(layer, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).sum(), x)[0]

    structure = tree(Around(run), torch.rand(2, 3))
    assert (structure.how, structure.root.output) == ("fake", f32(2, 3))


def test_real_tensors_from_elsewhere_do_not_force_a_real_run():
    """A mask that lives in a global or a closure is made fake on the way."""
    mask = torch.rand(4)
    structure = tree(Around(lambda layer, x: layer(x) * mask + torch.tensor([1.0]) * 3), torch.rand(2, 3))
    assert structure.how == "fake"


def test_an_error_names_the_module_and_both_inputs():
    """When the real run fails too, the sentence says where, with what, and keeps the cause."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 6)))
    with pytest.raises(StructureError) as caught:
        tree(net, torch.rand(2, 3))
    sentence = str(caught.value)
    assert "'1.1' (Linear), which got (float32[2, 4]), raised RuntimeError" in sentence
    assert "called in eval mode with (float32[2, 3])" in sentence
    assert caught.value.path == "1.1"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_in_the_outermost_forward_says_so():
    """Wrong arguments are the net's own forward's error."""
    with pytest.raises(
        StructureError, match=r"the forward of Linear raised TypeError.*with \(float32\[1\], float32\[1\]\)"
    ):
        tree(nn.Linear(3, 4), torch.rand(1), torch.rand(1))


def test_an_error_that_forward_handles_is_no_error():
    """A module that tries one layer and takes another is traced; only the calls that returned count."""

    def run(layers, x):
        try:
            return layers[0](x)
        except RuntimeError:
            return layers[1](x)

    structure = tree(Around(run, nn.ModuleList([nn.Linear(7, 4), nn.Linear(3, 4)])), torch.rand(2, 3))
    assert structure.root.output == f32(2, 4)
    assert structure["layer.0"].calls == ()


def test_a_meta_model_that_needs_values_is_told_to_be_materialised():
    """There is nothing to compute with, so the sentence says what to do."""
    with pytest.raises(StructureError, match=r"decides on the values of a tensor.*materialise the net first"):
        tree(FixedHidden().to("meta"), torch.rand(2, 20))


def test_keyboard_interrupts_pass():
    """Only exceptions are tried again; who stops the program stops it."""

    def run(_layer, _x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tree(Around(run), torch.rand(2, 3))


def test_torchs_log_stays_quiet(caplog):
    """A shape that does not fit is told by the error alone, not by pages of torch's log as well."""
    with pytest.raises(StructureError):
        tree(nn.Linear(3, 4), torch.rand(2, 5))
    assert caplog.records == []
