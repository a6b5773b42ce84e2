"""Run a copy of a module to see what goes into each of its modules and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from torchkeep.errors import StructureError
from torchkeep.tables.tracing.shadow import Shadow
from torchkeep.tables.tracing.shapes import Call, Described, arguments, describe
from torchkeep.tables.tracing.undisturbed import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from torchkeep.tables.survey import Survey
    from torchkeep.tables.tracing.doubles import Fakes, Reals

How: TypeAlias = Literal["not run", "fake", "real"]
Mode: TypeAlias = Literal["train", "eval"]

_REASON_LENGTH = 300


@dataclass
class Trace:
    """What running a copy of a module showed.

    Attributes:
        how: ``"fake"`` when shapes alone were traced, ``"real"`` when the copy was computed.
        mode: the mode that the copy's root was in.
        reason: why it was not traced the way that is tried first: the exception's type and sentence.
        calls: for each module that was called, by id, its calls; those that went alike are one.
        lazy: shapes that lazy parameters and buffers took on the copy, by module id and key.
        notes: sentences about what was not copied or not run.
    """

    how: How = "not run"
    mode: Mode = "eval"
    reason: str = ""
    calls: dict[int, list[Call]] = field(default_factory=dict)
    lazy: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def trace(survey: Survey, given: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
    """Run a copy of ``given`` and record every call.

    Tried in this order: shapes only, in the mode that the net is in; shapes only, in eval mode; computing for
    real, in eval mode and without gradients.

    Raises:
        StructureError: the copy could not be run in any of these ways.
    """
    modes: list[Mode] = ["train", "eval"] if any(module.training for module in given.modules()) else ["eval"]
    attempts = [_Attempt(survey, given, "fake", mode) for mode in modes]
    # Nothing can be computed on the meta device, so there the fakes have the last word.
    if all(tensor.device.type != "meta" for tensor in survey.tensors):
        attempts.append(_Attempt(survey, given, "real", "eval"))
    reason = ""
    for attempt in attempts:
        try:
            return attempt.run(args, kwargs, reason)
        except StructureError:
            raise
        except Exception as error:
            if attempt is attempts[-1]:
                raise attempt.failure(error, args, kwargs) from error
            reason = attempt.reason(error)
    raise AssertionError("the last attempt returns or raises")


class _Attempt:
    """One try at running a copy."""

    def __init__(self, survey: Survey, given: nn.Module, how: Literal["fake", "real"], mode: Mode) -> None:
        self.survey, self.given, self.how, self.mode = survey, given, how, mode
        self.calls: dict[int, dict[str, Call]] = {}
        self.path_of: dict[int, str] = {}
        for path, module in survey.modules.items():
            self.path_of.setdefault(id(module), path)
        # Modules of the net itself that were called, which code that holds on to them can do.
        self.run_themselves: dict[str, None] = {}
        # The exception that came out of a module, the innermost such module's path, and what it was given.
        self.failed: tuple[BaseException | None, str, str] = (None, "", "")

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any], reason: str) -> Trace:
        from torchkeep.tables.tracing.doubles import Fakes, Reals  # noqa: PLC0415 - the fake mode takes a second to import

        devices = self._devices(args, kwargs)
        stand_in = next((device for device in devices if device.type != "meta"), torch.device("cpu"))
        doubles = Fakes(stand_in) if self.how == "fake" else Reals()
        forked = [device for device in devices if device.type not in ("cpu", "meta")]
        grad = self.how == "fake" and torch.is_grad_enabled()
        with undisturbed(forked), torch.set_grad_enabled(grad):
            shadow = Shadow(self.given, self.path_of, doubles)
            try:
                return self._run(shadow, doubles, args, kwargs, reason)
            finally:
                shadow.release()

    def reason(self, error: BaseException) -> str:
        """Say why this attempt failed, in words that go into the structure's text."""
        failed, path, _ = self.failed
        return f"{_in_words(error)}{f' in {path!r}' if failed is error and path else ''}"

    def failure(self, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> StructureError:
        """Build the error to raise when nothing worked."""
        given = arguments(map(describe, args), {name: describe(value) for name, value in kwargs.items()})
        failed, path, got = self.failed
        if failed is not error:
            where = "copying the net"
        elif path:
            where = f"{path!r} ({type(self.survey.modules[path]).__name__}), which got ({got}),"
        else:
            where = f"the forward of {type(self.survey.net).__name__}"
        hint = "give the inputs that its forward takes"
        if self.how == "fake":
            hint += ", or materialise the net first if it needs values: it is on the meta device, which has none"
        raised = StructureError(
            f"{where} raised {_in_words(error)}; a copy of the net was called in eval mode with ({given}); {hint}"
        )
        raised.path = path
        return raised

    def _run(
        self,
        shadow: Shadow,
        doubles: Fakes | Reals,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        reason: str,
    ) -> Trace:
        for key, path in self.path_of.items():
            self._watch(key, path, shadow.of(self.survey.modules[path]), doubles)
        if self.mode == "eval":
            shadow.root.eval()
        own_args = [shadow.value(f"input {position}", value) for position, value in enumerate(args)]
        own_kwargs = {name: shadow.value(f"input {name}", value) for name, value in kwargs.items()}
        watching = register_module_forward_pre_hook(self._note_original)
        try:
            with doubles.guard():
                shadow.root(*own_args, **own_kwargs)
        finally:
            watching.remove()
        calls = {key: list(found.values()) for key, found in self.calls.items()}
        return Trace(self.how, self.mode, reason, calls, self._lazy(shadow), self._notes(shadow))

    def _note_original(self, module: nn.Module, args: object) -> None:
        del args
        if id(module) in self.path_of:
            self.run_themselves[self.path_of[id(module)] or "the whole"] = None

    def _devices(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.device]:
        """Return the devices of the inputs, then the net's, each once."""
        inputs = [leaf for leaf in tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, torch.Tensor)]
        return list(dict.fromkeys(tensor.device for tensor in (*inputs, *self.survey.tensors)))

    def _watch(self, key: int, path: str, twin: nn.Module, doubles: Fakes | Reals) -> None:
        """Record what goes through ``twin``, by standing in for its forward, which catches direct calls too."""
        lazy = self.how == "fake" and isinstance(twin, LazyModuleMixin)
        if lazy:
            _drop_lazy_hook(twin)
        before = partial(_materialise, self.survey.modules[path], twin, doubles) if lazy else None
        twin.__dict__["forward"] = _Watch(twin, before, partial(self._record, key), partial(self._fail, path))

    def _fail(self, path: str, error: BaseException, got: str) -> None:
        if self.failed[0] is not error:
            self.failed = (error, path, got)

    def _record(
        self, key: int, args: tuple[Described, ...], kwargs: dict[str, Described], output: Described
    ) -> None:
        alike = self.calls.setdefault(key, {})
        call = Call(args, kwargs, output)
        known = alike.get(repr(call))
        alike[repr(call)] = call if known is None else replace(known, times=known.times + 1)

    def _notes(self, shadow: Shadow) -> list[str]:
        """Say what was not copied, not run, or run on the net itself."""
        notes = []
        if shadow.skipped:
            notes.append(f"hooks that were not run on the copy: {', '.join(shadow.skipped)}")
        if shadow.shared:
            notes.append(f"could not be copied, so the copy used the net's own: {', '.join(shadow.shared)}")
        if self.run_themselves:
            notes.append(
                "called on the net itself, not on the copy, by something that holds on to it (a function that "
                f"remembers self, say), so their shapes were not seen: {', '.join(self.run_themselves)}"
            )
        return notes

    def _lazy(self, shadow: Shadow) -> dict[int, dict[str, tuple[int, ...]]]:
        """Return the shapes that lazy parameters and buffers have on the copy by now."""
        found: dict[int, dict[str, tuple[int, ...]]] = {}
        for places in self.survey.places:
            for place in places:
                if is_lazy(place.tensor):
                    twin = shadow.of(place.module)
                    tensor = (twin._buffers if place.kind == "buffer" else twin._parameters)[place.key]  # noqa: SLF001 - as in Place
                    if tensor is not None and not is_lazy(tensor):
                        found.setdefault(id(place.module), {})[place.key] = tuple(tensor.shape)
        return found


class _Watch:
    """Stands in for the forward of a module.

    No closure: one would refer to itself, and keep the copy alive until Python's collector comes.
    """

    def __init__(
        self,
        twin: nn.Module,
        before: Callable[..., None] | None,
        record: Callable[..., None],
        fail: Callable[[BaseException, str], None],
    ) -> None:
        self.twin, self.before, self.record, self.fail = twin, before, record, fail
        self.patched = twin.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            self.before(args, kwargs)
        run = self.patched
        if run is None:
            del self.twin.__dict__["forward"]
            run = self.twin.forward
            self.twin.__dict__["forward"] = self
        got = tuple(map(describe, args)), {name: describe(value) for name, value in kwargs.items()}
        try:
            output = run(*args, **kwargs)
        except BaseException as error:
            self.fail(error, arguments(*got))
            raise
        self.record(*got, describe(output))
        return output


def _drop_lazy_hook(twin: nn.Module) -> None:
    """Take away the hook that gives lazy parameters memory; `_materialise` gives them fake tensors instead."""
    hooks = twin._forward_pre_hooks  # noqa: SLF001 - torch offers no way to remove a hook without its handle
    for key, hook in list(hooks.items()):
        if getattr(hook, "__func__", None) is LazyModuleMixin._infer_parameters:  # noqa: SLF001 - the hook itself
            del hooks[key]


def _materialise(original: nn.Module, twin: Any, fakes: Any, args: Any, kwargs: Any) -> None:
    """Let a lazy module find its shapes on the meta device, then make what it made fake."""
    if not twin.has_uninitialized_params():
        return
    with _disable_current_modes():
        on_meta = tree_map_only(
            torch.Tensor,
            lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"),
            (args, kwargs),
        )
        twin._infer_parameters(twin, *on_meta)  # noqa: SLF001 - what the removed hook would have called
        for mine, theirs in ((twin._parameters, original._parameters), (twin._buffers, original._buffers)):  # noqa: SLF001
            for key, tensor in theirs.items():
                if tensor is not None and is_lazy(tensor):
                    mine[key] = fakes(mine[key], tensor.device)


_WORDS = {
    "DataDependentOutputException": "forward decides on the values of a tensor",
    "DynamicOutputShapeException": "a shape depends on the values of a tensor",
    "UnsupportedOperatorException": "an operator has no rule for shapes alone",
}


def _in_words(error: BaseException) -> str:
    name = type(error).__name__
    sentence = " ".join(str(error).split())
    if len(sentence) > _REASON_LENGTH:
        sentence = f"{sentence[:_REASON_LENGTH]}..."
    if name in _WORDS:
        return f"{name}: {_WORDS[name]} ({sentence})"
    return f"{name}: {sentence}" if sentence else name
