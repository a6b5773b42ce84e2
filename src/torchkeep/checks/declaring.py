"""What a layer means to do, so that checks don't take it for a mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from torchkeep.selectors import Selector

Selection: TypeAlias = "str | Selector | Sequence[str | Selector]"


@dataclass(frozen=True, kw_only=True)
class Declare:
    """What a layer means to do.

    Attributes:
        batch_dim: the dimension of every input and output along which samples are independent. ``"auto"``: 0,
            where every tensor that goes in or out has the same size there, and mixing is only a warning. None: not
            checked.
        stochastic: its output is random in eval mode too.
        causal_dim: the dimension of every input and output along which position ``t`` of the output must not
            depend on later positions of the input. None: not causal.
        stop_gradient: selectors of the parameters that get no gradient on purpose.
        mutates: selectors of the parameters and buffers that a forward pass changes on purpose, also in eval mode.
        dtypes: the floating-point dtypes that the layer must run in. None: float64 and bfloat16 are tried, and
            cause a warning at most.
    """

    batch_dim: int | Literal["auto"] | None = "auto"
    stochastic: bool = False
    causal_dim: int | None = None
    stop_gradient: Selection = ()
    mutates: Selection = ()
    dtypes: Sequence[torch.dtype] | None = None
