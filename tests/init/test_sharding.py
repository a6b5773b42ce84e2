"""Distributed tensors: each process fills what it holds, with the bits of the whole."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import torchkeep as tk
from torchkeep.init.parts import local_index

init = tk.init

RULES = {
    "**.weight": init.normal(),
    "**.bias": init.uniform(),
    "2.weight": init.orthogonal(),
    "2.bias": init.torch_default(),
    "3.weight": init.constant(3),
}


def make_net():
    return nn.Sequential(*[nn.Linear(300, 301) for _ in range(4)])


@pytest.fixture(scope="module")
def mesh():
    """Two by two processes of which this is the last; nothing is sent (torch caches one rank a process)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    finally:
        dist.destroy_process_group()


def shard(net, mesh, placements):
    """Turn every parameter into a DTensor of which this process holds its part, full of NaN."""
    from torch.distributed.tensor import DTensor, Shard

    for module in net.modules():
        for key, value in list(module._parameters.items()):
            placed = [Shard(0) if value.dim() == 1 and place.is_shard() else place for place in placements]
            facts = {"shape": value.shape, "stride": value.stride(), "run_check": False}
            index = local_index(DTensor.from_local(torch.empty(0), mesh, placed, **facts))
            local = torch.full_like(value, float("nan"))[index].clone()
            module._parameters[key] = nn.Parameter(DTensor.from_local(local, mesh, placed, **facts))
    return net


@pytest.mark.parametrize("layout", ["rows", "columns", "both", "copies"])
def test_every_process_fills_its_part_with_the_bits_of_the_whole(mesh, layout):
    """Sharded by rows, by columns, by both or not at all, evenly or not: the local part is that of the whole."""
    from torch.distributed.tensor import Replicate, Shard

    placements = {
        "rows": [Shard(0), Replicate()],
        "columns": [Replicate(), Shard(1)],
        "both": [Shard(0), Shard(1)],
        "copies": [Replicate(), Replicate()],
    }[layout]
    whole = make_net()
    tk.initialize(whole, RULES, seed=6)
    net = shard(make_net(), mesh, placements)
    plan = tk.initialize(net, RULES, seed=6)
    for name, value in net.named_parameters():
        index = local_index(value)
        part = whole.get_parameter(name)[index]
        assert torch.equal(value.to_local(), part), name
        assert torch.equal(plan.values(name, index), part)
        assert plan[name].shape == whole.get_parameter(name).shape


def test_a_part_that_is_no_rectangle_is_refused(mesh):
    """Partial sums can't be filled: the sentence says what can."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    net = nn.Linear(4, 4, bias=False)
    made = DTensor.from_local(net.weight.detach(), mesh, [Partial(), Replicate()], run_check=False)
    net._parameters["weight"] = nn.Parameter(made)
    with pytest.raises(tk.errors.RuleError, match="only Shard and Replicate"):
        init.plan(net, {"**": init.normal()})
