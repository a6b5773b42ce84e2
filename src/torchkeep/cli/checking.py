"""``torchkeep check``: whether a layer behaves, for shells and build servers."""

from __future__ import annotations

import gc
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchkeep import __version__
from torchkeep.cli.endings import DONE, NO, Answer
from torchkeep.dtypes import canonical_dtype
from torchkeep.errors import CheckError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>(?:\d+(?:,\d+)*)?)(?::(?P<dtype>[\w.]+)(?::(?P<below>\d+))?)?"
)


@dataclass(frozen=True)
class InputSpec:
    """One input to make.

    Attributes:
        name: of a keyword input; empty for a positional one.
        shape: of the tensor.
        dtype: its canonical name.
        below: whole numbers are drawn from 0 up to, but not including, this.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    below: int

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read ``[NAME=]2,20[:DTYPE[:BELOW]]``.

        Raises:
            ValueError: it is none; the sentence says what was expected.
        """
        found = _INPUT.fullmatch(text)
        if found is None:
            raise ValueError(
                f"expected [NAME=]SHAPE[:DTYPE[:BELOW]], such as 2,20 or ids=2,20:int64:100, found {text!r}"
            )
        dtype = canonical_dtype(found["dtype"] or "float32")
        if dtype is None:
            raise ValueError(f"{found['dtype']!r} is no dtype of torch; in {text!r}")
        shape = tuple(int(size) for size in found["shape"].split(",") if size)
        return cls(found["name"] or "", shape, dtype, int(found["below"] or 2))

    def make(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the tensor: standard normal values, or whole numbers below `below`."""
        import torch  # noqa: PLC0415 - the command's help needs none

        from torchkeep.tensors.dtypes import torch_dtype  # noqa: PLC0415 - same

        dtype = torch_dtype(self.dtype)
        if dtype is None:
            raise CheckError(f"this torch has no dtype {self.dtype}; give another for --input")
        if dtype.is_floating_point or dtype.is_complex:
            drawn = torch.randn(self.shape, generator=generator, dtype=torch.float32, device="cpu")
        else:
            drawn = torch.randint(0, max(self.below, 1), self.shape, generator=generator, device="cpu")
        return drawn.to(dtype)


def check(
    target: str, inputs: Sequence[InputSpec], only: Sequence[str], skip: Sequence[str], *, as_json: bool
) -> Answer:
    """Check a layer.

    Args:
        target: ``PKG.MODULE:FACTORY``; a factory, a class whose constructor needs nothing, or an instance.
        inputs: what to call the layer with.
        only: names of the checks to run; empty: all that are not opt-in.
        skip: names of checks to leave out.
        as_json: whether to answer with a JSON document instead of text.

    Returns:
        The answer; its code is "no" when the layer does not behave, or no check applied.

    Raises:
        CheckError: the target can't be imported, makes no layer, or does not run on the inputs.
    """
    gc.enable()  # unlike the other commands', a check's graphs are large and hold cycles
    # What the layer prints is no part of the answer.
    with redirect_stdout(sys.stderr):
        import torch  # noqa: PLC0415 - the command's help needs none

        from torchkeep.checks.running import check as run  # noqa: PLC0415 - same

        made = _target(target)
        generator = torch.Generator(device="cpu").manual_seed(0)
        tensors = [(one.name, one.make(generator)) for one in inputs]
        report = run(
            made,
            *(tensor for name, tensor in tensors if not name),
            kwargs={name: tensor for name, tensor in tensors if name},
            only=only or None,
            skip=skip,
        )
    if not as_json:
        return Answer(f"{report}\n", DONE if report.ok else NO)
    import msgspec  # noqa: PLC0415 - text needs none of it

    document = {"torchkeep": __version__, "schema": 1, "target": target, **report.to_json()}
    return Answer(msgspec.json.encode(document).decode() + "\n", DONE if report.ok else NO)


def _target(target: str) -> Any:
    """Import what ``PKG.MODULE:FACTORY`` names, as Python would from the current folder."""
    from importlib import import_module  # noqa: PLC0415 - only this command imports by name

    module_name, _, path = target.partition(":")
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = import_module(module_name)
    except (Exception, SystemExit) as cause:
        raise CheckError(
            f"can't import {module_name!r}: {type(cause).__name__}: {cause}; give a module that Python can import "
            "from the current folder"
        ) from cause
    for part in path.split("."):
        if not hasattr(found, part):
            names = (
                [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            )
            from torchkeep.selectors.suggest import nearest  # noqa: PLC0415 - only this error needs it

            near = ", ".join(nearest(part, names)) or "none"
            raise CheckError(f"{module_name!r} has no {path!r}; the nearest: {near}")
        found = getattr(found, part)
    return found
