"""A block several times in a row."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

from torchkeep.errors import BlockError
from torchkeep.nn import requiring
from torchkeep.nn.chain import Chain
from torchkeep.recipes import block

Factory: TypeAlias = Callable[[], nn.Module]

_RESETS = ("reset_parameters", "_reset_parameters")


@block(name="torchkeep.nn.Repeat")
class Repeat(Chain):
    """Applies a block ``times`` times, one after the other; blocks are named ``0``, ``1``, ....

    Given a module and ``shared=False``, block ``0`` is that module itself and the others are deep copies of it,
    which are initialised afresh: every module in a copy runs its ``reset_parameters``, so that no two blocks start
    out with equal parameters. (torch's TransformerEncoder copies without that.) Where a class that owns parameters
    has none, that is an error: give a function that makes a new block instead.

    With ``shared=True`` all names are the one same module: a tie, counted, drawn, trained and saved once.

    Shape: that of the block, which must take what it returns; mostly ``(*) -> (*)``.

    Args:
        block: a module, or a function (a class, too) that is called without arguments and makes one.
        times: how often to apply it; 1 or more.
        shared: whether it is one block that is applied again and again.

    Raises:
        BlockError: an argument does not fit, or a copy can't be initialised afresh.
    """

    def __init__(self, block: nn.Module | Factory, times: int, *, shared: bool = False) -> None:
        super().__init__()
        self.times = requiring.whole_number("Repeat", "times", times, least=1)
        self.shared = bool(shared)
        if not isinstance(block, nn.Module) and not callable(block):
            raise BlockError(f"Repeat: block must be a module or a function that makes one, found {block!r}")
        first = block if isinstance(block, nn.Module) else _made(block)
        for position in range(self.times):
            if shared or position == 0:
                self.append(first)
            else:
                self.append(_fresh_copy(block) if isinstance(block, nn.Module) else _made(block))

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - nn.Sequential's own name for it
        """Apply the blocks in turn; further arguments (a mask, say) go to each of them."""
        for step in self:
            input = step(input, *args, **kwargs)  # noqa: A001 - same
        return input


def _made(factory: Factory) -> nn.Module:
    return requiring.module("Repeat", "what block makes", factory())


def _fresh_copy(block: nn.Module) -> nn.Module:
    """Copy a block and initialise the copy: children before what they are in, as constructors do."""
    copied = deepcopy(block)
    inside = list(copied.named_modules())
    for path, module in inside:
        if parametrize.is_parametrized(module):
            raise BlockError(
                f"Repeat: {_where(path, module)} is parametrised, so a copy of it can't be initialised afresh; "
                "give a function that makes a new block"
            )
    for path, module in reversed(inside):
        _reset(path, module)
    return copied


def _reset(path: str, module: nn.Module) -> None:
    resets = [reset for name in _RESETS if callable(reset := getattr(module, name, None))]
    if resets:
        resets[0]()
    elif any(True for _ in module.parameters(recurse=False)):
        raise BlockError(
            f"Repeat: {_where(path, module)} owns parameters and has no reset_parameters, so a copy of it can't "
            "be initialised afresh; add that method, or give a function that makes a new block"
        )


def _where(path: str, module: nn.Module) -> str:
    kind = parametrize.type_before_parametrizations(module).__name__
    return f"{path!r} ({kind})" if path else kind
