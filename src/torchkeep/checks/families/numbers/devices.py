"""The layer runs on the device that it is moved to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from torchkeep.checks.attempting import require_python
from torchkeep.checks.nested import tensors
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.settings import reseed
from torchkeep.checks.spotting import DeviceMixedError, DeviceSpotter
from torchkeep.checks.subject import SEED, in_a_line, set_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject

_FIX = "make tensors where the inputs or weights are: x.new_zeros(...), device=x.device, .to(x)"


@proves(needs=("eval_determinism", "unregistered_tensor", "hidden_module", "stale_alias"))
def hard_coded_device(subject: Subject) -> Iterator[Finding]:
    """Prove that a layer moved to another device computes there, without needing one.

    Does not apply to TorchScript, where neither the layer nor its inputs hold tensors, or where forward reads
    values (``item``, ``nonzero``, branches on data), which tensors without data can't give. Decided by running
    forward with parameters, buffers and inputs on the meta device, which stands for any accelerator: an operation
    that is given tensors of both devices, or an output left behind on another, fails. The line is where the tensor
    was made.
    """
    require_python(subject)
    layer = subject.layer
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    if not state and not subject.input_tensors:
        raise NotApplicable("neither the layer nor its inputs hold tensors")
    if any(tensor.device.type == "meta" for tensor in (*state.values(), *subject.input_tensors.values())):
        raise NotApplicable("it is on the meta device already")
    subject.snapshot.restore()
    set_mode(layer, training=False)
    spotter = DeviceSpotter()
    reseed(SEED)
    try:
        moved = {name: tensor.detach().to("meta") for name, tensor in state.items()}
        args, kwargs = subject.inputs(lambda _, tensor: tensor.detach().to("meta"))
        with torch.no_grad(), spotter:
            output = functional_call(layer, moved, args, kwargs)
    except DeviceMixedError as error:
        yield Finding(f"on another device {error}", _FIX, where=error.where)
        return
    except Exception as error:  # whatever needs data raises something else in each operation
        raise NotApplicable(f"it can't run on tensors without data: {in_a_line(error)}") from error
    for path, tensor in tensors(output, "output"):
        if tensor.device.type != "meta" and tensor.ndim:
            yield Finding(
                f"it stays on {tensor.device} when the layer and its inputs are on another device",
                _FIX,
                tensor=path,
                where=spotter.made_at(tensor),
            )
