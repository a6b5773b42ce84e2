"""Whatever a layer does while it is checked, nothing of the caller's has changed afterwards."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from checks.planting import floats


def _world():
    """Return all global state that checks promise to leave alone, as comparable values."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002 - the global one is what is promised
        "random": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filling": torch.utils.deterministic.fill_uninitialized_memory,
        "anomaly": torch.is_anomaly_enabled(),
        "filters": list(warnings.filters),
    }


def _held(layer, inputs):
    """Return all of a layer and its inputs that checks promise to leave alone."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers()), "input": inputs}
    return {
        "modes": [module.training for module in layer.modules()],
        "hooks": [
            len(getattr(module, name))
            for module in layer.modules()
            for name in vars(module)
            if name.endswith("_hooks")
        ],
        "attributes": [sorted(vars(module)) for module in layer.modules()],
        "tensors": {
            name: (
                id(tensor),
                tensor.data_ptr(),
                tensor.tolist(),
                tensor.dtype,
                tensor.requires_grad,
                len(tensor._backward_hooks or ()),
                None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist()),
            )
            for name, tensor in tensors.items()
        },
        "children": [list(module._modules) for module in layer.modules()],
    }


class Vandal(nn.Module):
    """Changes everything that it can reach, and raises now and then."""

    def __init__(self, *, raises=False):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.log = []
        self.memory = {"state": torch.zeros(4)}
        self.raises = raises

    def forward(self, x):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 - the fault
        random.seed(7)
        torch.set_grad_enabled(mode=False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        warnings.simplefilter("ignore")
        with torch.no_grad():
            self.inner[0].weight.add_(1)
            self.calls.add_(1)
            x.mul_(2)
        self.log.append(x)
        self.memory["state"] = x
        self.extra_attribute = x
        self.inner.train(not self.inner.training)
        self.inner.register_forward_hook(lambda *_: None)
        self.inner[0].weight.register_hook(lambda grad: grad) if self.inner[0].weight.requires_grad else None
        self.inner[0].bias.requires_grad_(requires_grad=False)
        self.inner[0].weight.grad = torch.ones_like(self.inner[0].weight)
        self.inner.add_module(f"more{len(self.log)}", nn.Identity())
        if self.raises and len(self.log) > 1 and self.training:
            raise ValueError("enough")
        return self.inner(x.to(self.inner[0].weight.dtype))


@pytest.fixture
def _numbers():
    """Put back what the test itself changed."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(mode=True)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.usefixtures("_numbers")
def test_nothing_of_the_callers_changes(raises):
    """Values, memory, mode, hooks, gradients, attributes, inputs, random states and settings are as before."""
    layer, inputs = Vandal(raises=raises), floats(3, 4)
    layer.inner[0].bias.grad = torch.full((4,), 3.0)
    layer.inner[2].eval()
    before, world = _held(layer, inputs), _world()
    report = tk.check(layer, inputs)
    assert report.failed
    assert _held(layer, inputs) == before
    assert _world() == world


@pytest.mark.usefixtures("_numbers")
def test_an_odd_world_stays_odd():
    """The caller's own settings, however unusual, are those after a check."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    world = _world()
    with torch.no_grad():
        assert tk.check(lambda: nn.Linear(4, 4), floats(3, 4).double()).ok
        assert not torch.is_grad_enabled()
    assert _world() == world


def test_a_layer_that_does_not_run_changes_nothing_either():
    """The caller's world is whole after a LayerCallError as well."""
    layer, inputs = Vandal(), torch.ones(2, 5)
    before, world = _held(layer, inputs), _world()
    with pytest.raises(tk.errors.LayerCallError):
        tk.check(layer, inputs)
    assert _held(layer, inputs) == before
    assert _world() == world


class Draws(nn.Module):
    """Holds generators, an array and a plain object of its own, and changes them all."""

    def __init__(self):
        super().__init__()
        self.torch = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.old = np.random.RandomState(1)
        self.python = random.Random(1)  # noqa: S311 - nothing secret
        self.table = np.zeros(3)
        self.log = SimpleNamespace(calls=0, seen=[])

    def forward(self, x):
        self.table += 1
        self.log.calls += 1
        self.log.seen.append(x)
        drawn = torch.rand((), generator=self.torch) + self.numpy.random() + self.old.rand() + self.python.random()
        return x * drawn


def test_generators_arrays_and_plain_objects_are_put_back():
    """What a layer holds that is no tensor and no module is as before too."""
    layer = Draws()
    tk.check(layer, floats(3, 4))
    fresh = Draws()
    assert layer.log == fresh.log
    assert layer.table.tolist() == [0, 0, 0]
    assert torch.equal(layer.torch.get_state(), fresh.torch.get_state())
    assert (layer.numpy.random(), layer.old.rand(), layer.python.random()) == (
        fresh.numpy.random(),
        fresh.old.rand(),
        fresh.python.random(),
    )


class Frozen(OrderedDict):
    """A dict that refuses to be changed once it is made, as diffusers' configurations do."""

    def update(self, *_args, **_kwargs):
        raise TypeError("frozen")


class Label(tuple):  # noqa: SLOT001 - it has attributes, on purpose
    """A tuple that has no length, as e3nn's irreps, and attributes of its own."""

    def __len__(self):
        raise NotImplementedError


class Configured(nn.Module):
    """Holds both, and empties the dict in forward in the ways that there are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.config = Frozen([("size", 4), ("names", ["a"])])
        self.label = Label(({"calls": 0}, "1o"))
        self.label.calls = []

    def forward(self, x):
        self.config.clear()
        tuple.__getitem__(self.label, 0)["calls"] += 1
        self.label.calls.append(1)
        return self.linear(x)


def test_containers_that_refuse_are_put_back_all_the_same():
    """A dict that can't be updated and a tuple without a length stop no check, and hold what they held."""
    layer = Configured()
    report = tk.check(layer, floats(3, 4))
    assert report.ok, str(report)
    assert list(layer.config.items()) == [("size", 4), ("names", ["a"])]
    assert tuple.__getitem__(layer.label, 0) == {"calls": 0}
    assert layer.label.calls == []


def test_torchscript_holds_the_same_parameters():
    """A scripted module keeps its tensors out of Python's reach; they are the same ones, with the same values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        layer = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    held = [*layer.parameters(), *layer.buffers()]
    values = [tensor.tolist() for tensor in held]
    assert tk.check(layer, floats(3, 4)).ok
    now = [*layer.parameters(), *layer.buffers()]
    assert [id(tensor) for tensor in now] == [id(tensor) for tensor in held]
    assert [tensor.tolist() for tensor in now] == values


class WidensProducts(nn.Linear):
    """Sets the precision of matrix products for everyone, in the newer way."""

    def forward(self, x):
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
        return super().forward(x)


def test_precision_set_through_backends_is_put_back():
    """Where matrix products have a precision of their own, checks run, and a layer that changes it is found."""
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert tk.check(nn.Linear(4, 4), floats(3, 4)).ok
        (found,) = tk.check(WidensProducts(4, 4), floats(3, 4), only=["settings_unchanged"]).failed
        assert "float32 matmul precision" in found.message
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before
