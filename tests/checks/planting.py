"""What the corpora of broken layers are made of: a layer, the check that must catch it, and how it is proven."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.declaring import Declare
from torchkeep.checks.running import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

PLANTED = "planted"
"""Marks the line that a finding must name, in a comment in the source of a broken layer."""


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal values that are the same in each run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Planted:
    """A layer with one fault.

    Attributes:
        check: name of the check that must catch it.
        make: makes the layer.
        args: its positional inputs.
        kwargs: its keyword inputs.
        declare: what is declared about it.
        status: what becomes of the check.
        tensor: what the finding must name; empty: whatever it names.
    """

    check: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...] = field(default_factory=lambda: (floats(3, 4),))
    kwargs: dict[str, Any] = field(default_factory=dict)
    declare: Declare = field(default_factory=Declare)
    status: str = "failed"
    tensor: str = ""

    def __str__(self) -> str:
        return f"{self.check}-{type(self.make()).__name__}-{self.status}"


def assert_caught(planted: Planted) -> None:
    """Assert that the check catches the fault, names its line where one is marked, and that nothing else fails."""
    report = check(planted.make, *planted.args, kwargs=planted.kwargs, declare=planted.declare)
    result = report[planted.check]
    assert result.status == planted.status, f"{planted.check} did not catch it\n{report}"
    assert result.message
    assert result.fix
    assert planted.tensor in result.tensor
    marked = _marked_line(type(planted.make()))
    assert not marked or result.where == marked, f"expected {marked}\n{result}"
    beside = [other.name for other in report.failed if other.name != planted.check]
    assert not beside, f"{beside} failed beside it\n{report}"


def _marked_line(layer: type[nn.Module]) -> str:
    lines, first = inspect.getsourcelines(layer)
    marked = [first + offset for offset, line in enumerate(lines) if line.rstrip().endswith(PLANTED)]
    return f"{inspect.getsourcefile(layer)}:{marked[0]}" if marked else ""
