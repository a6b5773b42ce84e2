"""Tensors as they lie in memory at one moment: it stays theirs when the originals are given other memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torchkeep.archive import TensorBytes
from torchkeep.storage.buffers import memory_at
from torchkeep.tensors.copying import copy_out, plain_address
from torchkeep.tensors.dtypes import dtype_name

if TYPE_CHECKING:
    from torch import Tensor


class Held(NamedTuple):
    """A tensor whose memory is held.

    Attributes:
        tensor: over that memory; one that was lazily conjugated is a copy.
        address: of its bytes where they lie in row-major order in the CPU's memory; else None.
        nbytes: how many.
        live: how a commit takes it out of that memory.
    """

    tensor: Tensor
    address: int | None
    nbytes: int
    live: TensorBytes

    @property
    def is_away(self) -> bool:
        """Whether that memory is not the CPU's."""
        return self.address is None and not self.tensor.is_cpu


def hold(tensor: Tensor) -> Held:
    """Hold a tensor's memory."""
    held = tensor.detach()
    if held.is_conj() or held.is_neg():
        held = held.resolve_conj().resolve_neg()
    address, nbytes = plain_address(held), held.nbytes
    source = partial(copy_out, held) if address is None else memory_at(address, nbytes)
    live = TensorBytes.whole(dtype_name(held.dtype), tuple(held.shape), source)
    return Held(held, address, nbytes, live)
