"""Checkpoints committed through the archive alone, for tests of what reads them."""

from __future__ import annotations

import msgspec
import torch
from torch import nn

from saved_values import bits_of
from torchkeep.archive import TensorBytes, Writer
from torchkeep.archive.described import StateTree, encode_state
from torchkeep.files.modules import module_facts
from torchkeep.formats.values import Encoder
from torchkeep.names import join
from torchkeep.storage.local_folders import LOCAL_FOLDERS
from torchkeep.tables.survey import survey
from torchkeep.tensors.copying import copy_out
from torchkeep.tensors.dtypes import dtype_name
from torchkeep.tensors.plain import encode_plain


def bytes_of(tensor):
    """Return a tensor as a commit takes it."""
    return TensorBytes.whole(
        dtype_name(tensor.dtype),
        tuple(tensor.shape),
        lambda start, nbytes, address: copy_out(tensor, start, nbytes, address),
    )


class Taken:
    """A state taken apart: modules and nested values, the parts under their names; or one module alone."""

    def __init__(self, state):
        self.tensors, self.aliases, self.modules, self.order = {}, {}, {}, []
        self._path = ""
        if isinstance(state, nn.Module):
            value = self._module("", state)
        else:
            value = {"dict": {part: self._part(part, one) for part, one in state.items()}}
        raw = msgspec.Raw(msgspec.json.encode(value))
        order = tuple(self.order) if self.aliases else ()
        self.tree = encode_state(StateTree(value=raw, modules=self.modules, order=order))

    def _part(self, part, one):
        return self._module(part, one) if isinstance(one, nn.Module) else self._values(part, one)

    def _module(self, prefix, net):
        found = survey(net)
        for row, tensor in zip(found.listing.rows, found.tensors, strict=True):
            if row.persistent:
                owner = join(prefix, row.name)
                self.tensors[owner] = tensor
                self.aliases.update({join(prefix, alias): owner for alias in row.aliases})
                self.order += [join(prefix, name) for name in row.names]
        extra = {}
        for path, module in found.modules.items():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                key = join(path, "_extra_state")
                extra[key] = self._values(join(prefix, key), module.get_extra_state())
        self.modules[prefix] = module_facts(found.listing, extra)
        return {"module": prefix}

    def _values(self, prefix, value):
        def hook(found, path):
            if not isinstance(found, torch.Tensor):
                return encode_plain(found)
            name = join(prefix, path.name)
            self.tensors[name] = found
            self.order.append(name)
            return "tensor", name

        encoder = Encoder(hook)
        node = encoder.encode(value)
        encoder.raise_problems()
        return node


def commit(writer, step, state, **options):
    """Commit a state."""
    taken = Taken(state)
    tensors = {name: bytes_of(tensor.detach()) for name, tensor in taken.tensors.items()}
    return writer.commit(step, tensors, aliases=taken.aliases, tree=taken.tree, **options)


def make_store(root, states, *, chunk=16 << 20, metrics=None, recipe=None):
    """Make a store of states by step, and return its path as text."""
    with Writer(LOCAL_FOLDERS, str(root), chunk=chunk) as writer:
        for step, state in states.items():
            found = None if metrics is None else metrics.get(step)
            commit(writer, step, state, metrics=found, recipe=recipe)
    return str(root)


class Counter(nn.Module):
    """Keeps a tensor and a number in its extra state."""

    def __init__(self):
        super().__init__()
        self.kept = None

    def get_extra_state(self):
        return {"seen": torch.arange(5), "count": 7}

    def set_extra_state(self, state):
        self.kept = state


class Net(nn.Module):
    """A tie, buffers, extra state."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.counter = Counter()


def bits(net):
    """Return the bits of a model's tensors by name."""
    return {name: bits_of(tensor) for name, tensor in net.state_dict().items() if isinstance(tensor, torch.Tensor)}


def state_of(net):
    """Return what a training run would keep of a model."""
    moments = {name: {"exp_avg": torch.randn_like(one)} for name, one in net.named_parameters()}
    return {"model": net, "optimizer": {"state": moments, "lr": 0.1, "betas": (0.9, None)}, "step": 4}
