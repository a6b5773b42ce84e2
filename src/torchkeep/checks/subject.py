"""The layer under check, with its inputs: what every check runs, compares and restores."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.checks.nested import mapped, tensors
from torchkeep.checks.settings import Captured, reseed
from torchkeep.checks.snapshot import Snapshot
from torchkeep.errors import CheckError, LayerCallError
from torchkeep.selectors import as_selector
from torchkeep.tables.survey import Survey, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torchkeep.checks.declaring import Declare, Selection

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
SEED = 20_240_229


class Subject:
    """A layer, the inputs it is called with, and what is declared about it.

    Args:
        given: the layer, or a function without arguments that makes one.
        args: positional inputs.
        kwargs: keyword inputs.
        declare: what the layer means to do.

    Attributes:
        layer: the layer that checks run; as given before each check.
        make: the factory, or None where an instance was given.

    Raises:
        CheckError: ``given`` is neither, or the factory makes no module.
    """

    def __init__(
        self,
        given: nn.Module | Callable[[], nn.Module],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declare: Declare,
    ) -> None:
        self.make = None if isinstance(given, nn.Module) else given
        self.layer = given if isinstance(given, nn.Module) else self.fresh()
        self.args, self.kwargs, self.declare = args, dict(kwargs), declare

    def fresh(self) -> nn.Module:
        """Make another instance, from the same random state each time.

        Raises:
            CheckError: the factory raises, or makes no module.
        """
        assert self.make is not None
        with undisturbed():
            reseed(SEED)
            try:
                layer = self.make()
            except Exception as cause:
                sentence = f"the factory raised {type(cause).__name__}: {cause}; it must make the layer"
                raise CheckError(sentence) from cause
        if not isinstance(layer, nn.Module):
            raise CheckError(f"expected a layer or a function that makes one; it made {type(layer).__name__}")
        return layer

    @property
    def survey(self) -> Survey:
        """What the layer holds, under canonical names."""
        return survey(self.layer)

    def selected(self, selection: Selection) -> set[str]:
        """Return the owners' names of the tensors that a declaration selects."""
        parts = (selection,) if not isinstance(selection, tuple | list) else selection
        listing = survey(self.layer).listing
        return {listing.rows[position].name for part in parts for position in as_selector(part).indices(listing)}

    def inputs(self, convert: Callable[[str, torch.Tensor], torch.Tensor] | None = None) -> Inputs:
        """Return copies of the inputs that share nothing with the caller's.

        One tensor given in two places is one tensor in the copy too.

        Args:
            convert: makes the copy of one tensor from its path (``args[0]``, ``kwargs['mask']``) and itself. None:
                a detached clone of the same strides that requires no gradient.
        """
        memo: dict[int, torch.Tensor] = {}

        def copied(path: str, tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in memo:
                memo[id(tensor)] = convert(path, tensor) if convert else tensor.detach().clone()
            return memo[id(tensor)]

        return mapped(self.args, copied, "args"), mapped(self.kwargs, copied, "kwargs")

    @cached_property
    def input_tensors(self) -> dict[str, torch.Tensor]:
        """The caller's input tensors by path, such as ``args[0]``; read only."""
        return {**dict(tensors(self.args, "args")), **dict(tensors(self.kwargs, "kwargs"))}

    def call(
        self,
        inputs: Inputs | None = None,
        *,
        layer: nn.Module | None = None,
        training: bool | None = None,
        seed: int | None = SEED,
        grad: bool = True,
    ) -> Any:
        """Run the layer once and return its output.

        Args:
            inputs: what `inputs` made; None: a fresh copy of the caller's.
            layer: another instance; None: the one under check.
            training: the mode to set first; None: as the layer is.
            seed: of every random generator, set first; None: left as they are.
            grad: whether autograd records.
        """
        layer = self.layer if layer is None else layer
        if training is not None:
            layer.train(training)
        args, kwargs = self.inputs() if inputs is None else inputs
        if seed is not None:
            reseed(seed)
        with torch.set_grad_enabled(grad):
            return layer(*args, **kwargs)

    def first_call(self) -> None:
        """Run the layer as given.

        Raises:
            LayerCallError: it raises; the sentence shows the inputs' shapes, and its own error is the cause.
        """
        try:
            self.call()
        except Exception as cause:
            shapes = ", ".join(
                f"{path} {tuple(tensor.shape)} {tensor.dtype}" for path, tensor in self.input_tensors.items()
            )
            raise LayerCallError(
                f"{type(self.layer).__name__} does not run on the inputs given ({shapes or 'no tensors'}): "
                f"{type(cause).__name__}: {cause} ({source_of(cause)}); give inputs that fit, or mend the layer"
            ) from cause


@contextmanager
def undisturbed(layer: nn.Module | None = None) -> Iterator[Captured]:
    """Put back every global setting and random state on the way out, and all that ``layer`` holds."""
    settings = Captured.now()
    snapshot = None if layer is None else Snapshot(layer)
    try:
        yield settings
    finally:
        settings.restore()
        if snapshot is not None:
            snapshot.restore()


def source_of(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame outside torch that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "inside torch"


def _is_library(filename: str) -> bool:
    return filename.startswith((torch.__path__[0], __file__.rpartition("checks")[0], "<frozen"))
