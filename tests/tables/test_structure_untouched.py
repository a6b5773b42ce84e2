"""`tk.tree` touches nothing: not the net, not the inputs, not torch's global state, also when forward raises."""

from __future__ import annotations

import random
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchkeep.errors import StructureError
from torchkeep.tables.structure import tree

WAYS = ("fake", "real", "raises")


class Busy(nn.Module):
    """Changes everything that a forward can change, then is traced, computed or raises, as asked."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.norm = nn.BatchNorm1d(3)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.drop = nn.Dropout(0.5)
        self.codes = nn.Parameter(torch.rand(4, 3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.plain = torch.zeros(3)
        self.generator = torch.Generator().manual_seed(0)
        self.hidden = [nn.BatchNorm1d(3)]
        self.cache = {}
        self.history = []
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        self.scratch.add_(x.sum(0))
        self.plain.add_(1)
        self.cache["last"] = x
        self.history.append(x)
        self.made_on_the_way = nn.Linear(3, 3)
        self.eval() if self.training else self.train()
        x.add_(1)
        with torch.no_grad():
            self.codes.mul_(0.5)
            self.codes.data.view(-1)[0] = 7
            self.spectral.bias.copy_(x[0])
        x = x + torch.rand(3) + torch.rand(3, generator=self.generator) + random.random() + np.random.rand()  # noqa: NPY002, S311 - the global states are what is tested
        x = self.drop(self.spectral(self.hidden[0](self.norm(x))))
        torch.manual_seed(5)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(not torch.is_grad_enabled())
        if self.way == "real":
            x = x * x.sum().item()
        if self.way == "raises":
            raise OSError("no such thing")
        return x


def everything(net, *tensors):
    """Return all that could have changed in a net and some tensors, to compare with ==."""
    named = [
        *net.named_parameters(),
        *net.named_buffers(),
        *((str(i), tensor) for i, tensor in enumerate(tensors)),
    ]
    named.append(("plain", net.plain))
    named += [(f"hidden.{name}", tensor) for name, tensor in net.hidden[0].state_dict(keep_vars=True).items()]
    return {
        "tensors": [
            (
                name,
                id(tensor),
                tensor.data_ptr(),
                tensor._version,
                tensor.requires_grad,
                None if tensor.grad is None else tensor.grad.tolist(),
                tensor.tolist(),
            )
            for name, tensor in named
        ],
        "modules": [(name, id(module), type(module), module.training) for name, module in net.named_modules()],
        "attributes": [sorted(vars(module)) for module in net.modules()],
        "hooks": [
            [list(hooks.items()) for name, hooks in vars(module).items() if name.endswith("_hooks")]
            for module in net.modules()
        ],
        "plain": (net.calls, dict(net.cache), list(net.history), net.hidden[0].training),
        "generator": net.generator.get_state().tolist(),
    }


def global_state():
    """Return torch's, numpy's and Python's global settings, to compare with ==."""
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        *(part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()),  # noqa: NPY002 - the legacy state is global
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def run(way, net, *args):
    """Call tree; expect the error where one is due."""
    if way == "raises":
        with pytest.raises(StructureError, match="OSError: no such thing"):
            tree(net, *args)
    else:
        assert tree(net, *args).how == way


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_net_or_the_inputs_changes(way, training):
    """Values, identities, versions, gradients, modes, hooks and attributes are what they were."""
    net = Busy(way).train(training)
    net.norm.register_forward_hook(lambda *_: None)
    net.codes.grad = torch.ones(4, 3)
    x = torch.rand(2, 3)
    before = everything(net, x)
    run(way, net, x)
    assert everything(net, x) == before


@pytest.mark.parametrize("way", WAYS)
def test_no_global_setting_changes(way):
    """Random states, grad mode, default dtype and device are what they were, in whatever mode the caller is."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            net, x = Busy(way), torch.rand(2, 3)
            before = global_state()
            run(way, net, x)
            assert global_state() == before
            assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_a_pending_backward_still_works(way):
    """Version counters are not moved, so a graph built before is still good after."""
    net = Busy(way)
    loss = (net.spectral(torch.rand(2, 3)) * net.codes[:2]).sum()
    run(way, net, torch.rand(2, 3))
    loss.backward()
    assert net.codes.grad is not None


def test_an_input_may_be_part_of_a_graph():
    """Inputs that are no leaves can't be deep-copied by torch; they are traced, and their graph is left alone."""
    leaf = torch.rand(2, 3, requires_grad=True)
    x = leaf * 2
    tree(nn.ReLU(inplace=True), x)
    x.sum().backward()
    assert leaf.grad.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("way", ["fake", "real"])
def test_the_callers_hooks_do_not_run(way):
    """Hooks that were registered from outside, for one module or for all, see nothing of it, and are named."""
    seen = []

    def watch(*_):
        seen.append("called")

    net = Busy(way)
    net.norm.register_forward_hook(watch)
    net.register_forward_pre_hook(watch, with_kwargs=True)
    net.drop.register_full_backward_hook(watch)
    handles = [register_module_forward_hook(watch), register_module_forward_pre_hook(watch)]
    try:
        structure = tree(net, torch.rand(2, 3))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == []
    assert "hooks that were not run on the copy" in str(structure)
    assert "norm: test_the_callers_hooks_do_not_run.<locals>.watch" in structure.notes[0]


def test_global_hooks_are_back_afterwards():
    """Hooks for all modules are set aside only while the copy runs."""
    seen = []
    nets = {way: Busy(way) for way in WAYS}
    handle = register_module_forward_hook(lambda *_: seen.append(1))
    try:
        for way, net in nets.items():
            run(way, net, torch.rand(2, 3))
        nn.ReLU()(torch.zeros(1))
    finally:
        handle.remove()
    assert seen == [1]


def test_hooks_that_a_module_put_on_itself_run():
    """A method registered as a hook by the net's own constructor is part of the net, and works on the copy."""

    class Casting(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.casts = 0
            self.register_forward_pre_hook(self.cast)

        def cast(self, _module, args):
            self.casts += 1
            return tuple(arg.float() for arg in args)

    net = nn.Sequential(Casting())
    structure = tree(net, torch.zeros(2, 3, dtype=torch.int64))
    assert structure.how == "fake"
    assert structure.notes == ()
    assert net[0].casts == 0


def test_the_callers_objects_are_not_copied_for_a_hook():
    """A hook that is a method of a trainer does not drag a copy of the trainer along."""

    class Trainer:
        def hook(self, *_):
            raise AssertionError("must not run")

        def __deepcopy__(self, memo):
            raise AssertionError("must not be copied")

    net = nn.Linear(3, 4)
    net.register_forward_hook(Trainer().hook)
    assert tree(net, torch.rand(2, 3)).notes


def test_what_cannot_be_copied_is_shared_and_named():
    """A lock and a generator in an attribute don't stand in the way; the text says that they are the net's own."""

    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            with self.lock:
                return self.linear(x)

    structure = tree(nn.Sequential(Locked()), torch.rand(2, 3))
    assert structure.how == "fake"
    assert structure.notes == ("could not be copied, so the copy used the net's own: 0.lock",)
    assert str(structure).endswith(structure.notes[0])


def test_a_module_that_copies_to_itself_is_copied_all_the_same():
    """Classes that refuse deepcopy, or return themselves from it, do not get their own state changed."""

    class Single(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.answer = answer

        def __deepcopy__(self, memo):
            return self.answer(self)

        def __getstate__(self):
            raise TypeError("not to be pickled")

        def forward(self, x):
            return self.norm(x)

    def refuse(_):
        raise TypeError("not to be copied")

    for answer in (lambda module: module, refuse):
        net = nn.Sequential(Single(answer))
        assert tree(net, torch.rand(2, 3)).how == "fake"
        assert net[0].norm.num_batches_tracked == 0


@pytest.mark.parametrize("needs_values", [False, True])
def test_a_patched_forward_that_holds_on_to_the_original(needs_values):
    """Traced, the original is left alone; computed, it could only be changed, so that is refused."""
    norm = nn.BatchNorm1d(3)
    original = norm.forward
    norm.forward = lambda x: original(x * x.sum().item()) if needs_values else original(x)
    if needs_values:
        with pytest.raises(StructureError, match="holds on to the original"):
            tree(nn.Sequential(norm), torch.rand(2, 3))
    else:
        assert tree(nn.Sequential(norm), torch.rand(2, 3)).how == "fake"
    assert norm.num_batches_tracked == 0
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_globals_that_forward_writes_to_are_spared_while_shapes_are_traced():
    """A tensor outside the net is made fake before it is written to."""
    outside = torch.zeros(3)

    class Counting(nn.Module):
        def forward(self, x):
            outside.add_(1)
            outside[0].mul_(2)
            torch.add(x[0], 1, out=outside)
            return x + outside

    assert tree(Counting(), torch.rand(2, 3)).how == "fake"
    assert outside.tolist() == [0, 0, 0]


def test_a_real_run_does_not_double_the_parameters():
    """The copy's parameters are the same memory, as long as nobody writes to them."""
    addresses = []

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            y = self.linear(x) * x.sum().item()
            addresses.append(self.linear.weight.data_ptr())
            return y

    net = Large()
    assert tree(net, torch.rand(2, 3)).how == "real"
    assert addresses == [net.linear.weight.data_ptr()]


def test_a_real_run_writes_to_memory_of_its_own():
    """What forward writes through any view is seen by the copy's other views, and by nobody else."""
    seen = {}

    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))
            self.tied = nn.Parameter(self.weight.detach())

        def forward(self, x):
            x.sum().item()
            self.weight.view(-1)[1:].fill_(3)
            self.tied.data[0, 0] = 4
            torch._foreach_add_([self.weight, x], 1)
            seen.update(weight=self.weight.tolist(), tied=self.tied.tolist(), x=x.tolist())
            return x

    net, x = Writing(), torch.zeros(2)
    assert tree(net, x).how == "real"
    assert seen == {"weight": [[5, 4], [4, 4]], "tied": [[5, 4], [4, 4]], "x": [1, 1]}
    assert net.weight.tolist() == net.tied.tolist() == [[0, 0], [0, 0]]
    assert x.tolist() == [0, 0]


def test_parameters_hidden_from_the_net_cost_no_memory_either():
    """A module in a plain list is no child, but its parameters are fake on the copy like all others."""
    from torch._subclasses.fake_tensor import FakeTensor

    seen = []

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = [nn.Linear(3, 4)]

        def forward(self, x):
            seen.append(type(self.teacher[0].weight))
            return self.teacher[0](x)

    assert tree(Student(), torch.rand(2, 3)).how == "fake"
    assert seen == [FakeTensor]


def test_a_computed_copy_is_gone_at_once():
    """Its memory does not wait for Python's garbage collector."""
    import gc

    copies = []

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.register_buffer("large", torch.zeros(3))

        def forward(self, x):
            y = self.linear(x + self.large) * x.sum().item()
            copies.append(weakref.ref(self.large))
            return y

    gc.disable()
    try:
        assert tree(Large(), torch.rand(2, 3)).how == "real"
        (copied,) = copies
        assert copied() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["fake", "real"])
def test_nothing_is_kept_alive(way):
    """Neither the net nor the inputs outlive the caller's last reference because of the structure."""
    net, x = Busy(way), torch.rand(2, 3)
    structure = tree(net, x)
    dead = weakref.ref(net), weakref.ref(x)
    del net, x
    import gc

    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    assert structure.root.output is not None


def test_inference_mode_and_fake_mode_of_the_caller():
    """The caller's own modes neither break the trace nor are left by it."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with torch.inference_mode():
        assert tree(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.rand(2, 3)).how == "fake"
        assert tree(Busy("real"), torch.rand(2, 3)).how == "real"
        assert torch.is_inference_mode_enabled()
    with FakeTensorMode():
        assert tree(nn.Linear(3, 4), torch.rand(2, 3)).how == "fake"
        assert isinstance(torch.zeros(1), FakeTensor)
    with torch.device("meta"):
        assert tree(nn.Linear(3, 4), torch.rand(2, 3)).how == "fake"
        assert torch.zeros(1).device.type == "meta"


def test_a_function_that_holds_on_to_the_net_is_told():
    """What a lambda that remembers ``self`` calls is the net itself: the text says so; no tensor is written."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.step = lambda x: self.norm(2 * x)
            self.plain = nn.Linear(3, 3)

        def forward(self, x):
            return self.plain(self.step(x))

    net = Remembering()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    structure = tree(net, torch.rand(4, 3))
    (note,) = structure.notes
    assert note.startswith("called on the net itself")
    assert note.endswith("were not seen: norm")
    assert note in str(structure)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert tree(nn.Sequential(nn.Linear(3, 3)), torch.rand(4, 3)).notes == ()
