"""The layer under check, with its inputs: what every check runs, compares and restores."""

from __future__ import annotations

import itertools
import sys
import sysconfig
import traceback
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.caching import cached_property
from torchkeep.checks.nested import mapped, tensors
from torchkeep.checks.settings import Captured, reseed
from torchkeep.checks.snapshot import Snapshot
from torchkeep.errors import CheckError, LayerCallError
from torchkeep.selectors import as_selector
from torchkeep.tables.survey import Survey, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

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
        snapshot: all that the layer held when it was given.
        make: the factory, or None where an instance was given.
        memo: what checks worked out and others can use, by a name of their own.

    Raises:
        CheckError: ``given`` is neither, the factory makes no module, or the instance is still lazy.
        LayerCallError: a lazy layer does not run on the inputs.
    """

    def __init__(
        self,
        given: nn.Module | Callable[[], nn.Module],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declare: Declare,
    ) -> None:
        if not callable(given):
            found = type(given).__name__
            raise CheckError(
                f"expected a layer or a function that makes one, found {found}; give `lambda: Layer()`"
            )
        self.args, self.kwargs, self.declare = args, dict(kwargs), declare
        self.memo: dict[str, Any] = {}
        self.make = None if isinstance(given, nn.Module) else given
        self.layer = given if isinstance(given, nn.Module) else self.fresh()
        if self.make is None and _lazy_names(self.layer):
            raise CheckError(
                f"{type(given).__name__} is still lazy ({', '.join(_lazy_names(self.layer))} have no shape yet), "
                "so checking it would change it; run it once first, or give a function that makes it"
            )
        self.snapshot = Snapshot(self.layer)

    def fresh(self, seed: int = SEED) -> nn.Module:
        """Make another instance, from one random state; a lazy one is run once, so that it has its shapes.

        Args:
            seed: of every random generator, set first.

        Raises:
            CheckError: the factory raises, or makes no module, or no new one.
            LayerCallError: a lazy layer does not run on the inputs.
        """
        assert self.make is not None
        with undisturbed():
            reseed(seed)
            try:
                layer = self.make()
            except Exception as cause:
                sentence = f"the factory raised {in_a_line(cause)}; it must make the layer"
                raise CheckError(sentence) from cause
            if not isinstance(layer, nn.Module):
                raise CheckError(f"expected a layer or a function that makes one; it made {type(layer).__name__}")
            if layer is getattr(self, "layer", None):
                raise CheckError(
                    "the factory returned the same instance again; it must make a new one each time, or give the "
                    "instance itself"
                )
            if _lazy_names(layer):
                with self.explained(layer):
                    self.call(layer=layer)
        return layer

    @cached_property
    def other(self) -> nn.Module:
        """A second instance, made from another random state; checks leave it as it is."""
        return self.fresh(SEED + 1)

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
        carry: bool = False,
        mode: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """Run the layer once and return its output.

        Args:
            inputs: what `inputs` made; None: a fresh copy of the caller's.
            layer: another instance; None: the one under check.
            training: the mode to set first; None: as the layer is.
            seed: of every random generator, set first; None: left as they are.
            grad: whether autograd records.
            carry: whether to start from what the last call left, instead of from the layer as given.
            mode: entered around the layer's own code only, such as a ``TorchFunctionMode``.
        """
        if layer is None:
            layer = self.layer
            if not carry:
                self.snapshot.restore()
        if training is not None:
            set_mode(layer, training=training)
        args, kwargs = self.inputs() if inputs is None else inputs
        if seed is not None:
            reseed(seed)
        settings = Captured.now(random=False)
        try:
            with torch.set_grad_enabled(grad), nullcontext() if mode is None else mode:
                return layer(*args, **kwargs)
        finally:
            # A layer that leaves settings changed is found out by one check, and must not disturb the others.
            settings.mend()

    def first_call(self) -> None:
        """Run the layer as given.

        Raises:
            LayerCallError: it raises; the sentence shows the inputs' shapes, and its own error is the cause.
        """
        with self.explained(self.layer):
            self.call()

    @contextmanager
    def explained(self, layer: nn.Module) -> Iterator[None]:
        """Raise `LayerCallError` from whatever ``layer`` raises on the inputs as given."""
        try:
            yield
        except Exception as cause:
            shapes = ", ".join(
                f"{path} {tuple(tensor.shape)} {tensor.dtype}" for path, tensor in self.input_tensors.items()
            )
            raise LayerCallError(
                f"{type(layer).__name__} does not run on the inputs given ({shapes or 'no tensors'}): "
                f"{in_a_line(cause)} ({source_of(cause) or 'inside torch'}); "
                "give inputs that fit, or mend the layer"
            ) from cause


def set_mode(layer: nn.Module, *, training: bool) -> None:
    """Set a layer's mode; one that has only the mode it is in, as what ``torch.export`` gives, keeps it."""
    with suppress(NotImplementedError):
        layer.train(training)


@contextmanager
def undisturbed(snapshot: Snapshot | None = None) -> Iterator[Captured]:
    """Put back every global setting and random state on the way out, and what a layer held; show no warnings."""
    settings = Captured.now()
    try:
        with warnings.catch_warnings():
            # A check runs the layer in ways its author may never see; what it warns of there is no news.
            warnings.simplefilter("ignore")
            yield settings
    finally:
        settings.restore()
        if snapshot is not None:
            snapshot.restore()


def _lazy_names(layer: nn.Module) -> list[str]:
    tensors = itertools.chain(layer.named_parameters(), layer.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]


def source_of(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame outside torch that an error came through; empty: none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def in_a_line(error: BaseException) -> str:
    """Return what an error says in one line, such as ``RuntimeError: shape ...``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if "TorchScript interpreter" in lines[0]:
        return lines[-1]  # after a traceback of its own; the type is part of it
    return f"{type(error).__name__}: {' '.join(lines) if lines[0].endswith(':') else lines[0]}"


def user_line() -> str:
    """Return ``file:line`` of the layer's code that runs now and is not torch's; empty where there is none."""
    # traceback.extract_stack would read source files at each operation.
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and frame.f_code is not Subject.call.__code__:
        if not is_library(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


_LIBRARIES = (*torch.__path__, str(Path(__file__).parents[1]), "<frozen")
_PYTHON = sysconfig.get_paths()["stdlib"]


def is_library(filename: str) -> bool:
    """Tell whether a source file is part of torch, of torchkeep or of Python's own library."""
    return filename.startswith(_LIBRARIES) or (filename.startswith(_PYTHON) and "-packages" not in filename)
