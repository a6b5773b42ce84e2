"""Forward leaves random generators, modes and global settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.registry import proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.settings import Captured, reseed
from torchkeep.checks.subject import SEED, set_mode
from torchkeep.checks.tracing import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject


@proves(needs=("eval_determinism",))
def random_state_unchanged(subject: Subject) -> Iterator[Finding]:
    """Prove that forward reseeds no random generator, and draws from none in eval mode.

    Always applies; a layer that is declared stochastic may draw in eval mode. Reseeding is decided by starting
    from two seeds: a generator that ends in one state after both was reseeded. Drawing is decided by comparing the
    generators of torch, numpy and Python before and after an eval call.
    """
    for training in (False, True):
        drawn, reseeded = _draws(subject, training=training)
        if reseeded:
            yield Finding(
                f"forward reseeds {', '.join(reseeded)} in {'training' if training else 'eval'} mode",
                "draw from a torch.Generator of your own instead of seeding the global one",
                where=_reseeding_line(subject, reseeded, training=training),
            )
            return
        if drawn and not training and not subject.declare.stochastic:
            yield Finding(
                f"forward draws from {', '.join(drawn)} in eval mode, although its output does not depend on it",
                "draw only `if self.training`, so that evaluating between steps does not change training",
                where=_drawing_line(subject, drawn),
            )
            return


def _draws(subject: Subject, *, training: bool) -> tuple[list[str], list[str]]:
    """Return the generators that a call draws from, and those that it reseeds."""
    reseed(SEED)
    start = Captured.now()
    subject.call(training=training, seed=SEED, grad=False)
    drawn = start.changed(random=True)
    end = Captured.now()
    subject.call(training=training, seed=SEED + 1, grad=False)
    apart = end.changed(random=True)
    # A generator that seeding does not reach (numpy's, imported by nobody yet) is the same at both ends.
    return drawn, [name for name in drawn if name not in apart]


def _drawing_line(subject: Subject, names: list[str]) -> str:
    reseed(SEED)
    start = Captured.now()
    return first_line(
        lambda: subject.call(training=False, grad=False),
        lambda: not {*names}.isdisjoint(start.changed(random=True)),
    )


def _reseeding_line(subject: Subject, names: list[str], *, training: bool) -> str:
    """Return the first line after which runs from two seeds are in one random state."""
    seen: list[Captured] = []

    def noted() -> bool:
        # States that a generator was in before stand there already.
        if not seen or set(seen[-1].changed(random=True)) & {*names}:
            seen.append(Captured.now())
        return False

    def met() -> bool:
        return any(not {*names} & {*state.changed(random=True)} for state in seen)

    first_line(lambda: subject.call(training=training, grad=False), noted)
    return first_line(lambda: subject.call(training=training, seed=SEED + 1, grad=False), met)


@proves(needs=("eval_determinism",))
def settings_unchanged(subject: Subject) -> Iterator[Finding]:
    """Prove that forward leaves modes, trainability and global settings as it finds them.

    Always applies. Decided by comparing, before and after a call in each mode: the training mode of every module,
    requires_grad of every parameter, and torch's grad mode, autocast, default dtype and device, thread count,
    matmul precision, determinism and anomaly settings, and hooks on all modules.
    """
    found: set[str] = set()
    for training in (False, True):
        before = _prepare(subject, training=training)
        _run(subject)
        changes = _changes(subject, before)
        before[0].restore()
        for name in changes:
            if name not in found:
                found.add(name)
                yield Finding(
                    f"forward changes {name} in {'training' if training else 'eval'} mode and leaves it changed",
                    "leave it alone, or set it in a `with` block that puts it back",
                    where=_settings_line(subject, name, training=training),
                )


_Before = tuple[Captured, dict[str, Any]]


def _prepare(subject: Subject, *, training: bool) -> _Before:
    """Put the layer and the settings where they were given, in one mode, and remember them."""
    subject.snapshot.restore()
    set_mode(subject.layer, training=training)
    torch.set_grad_enabled(True)
    reseed(SEED)
    return Captured.now(), _flags(subject)


def _run(subject: Subject) -> None:
    # Not through Subject.call, which puts grad mode back.
    args, kwargs = subject.inputs()
    subject.layer(*args, **kwargs)


def _changes(subject: Subject, before: _Before) -> list[str]:
    """Return what is no longer as it was."""
    settings, flags = before
    now = _flags(subject)
    return [*settings.changed(random=False), *(name for name in flags if name in now and now[name] != flags[name])]


def _flags(subject: Subject) -> dict[str, Any]:
    layer = subject.layer
    return {
        **{
            f"the training mode of {name or 'the layer'}": module.training
            for name, module in layer.named_modules()
        },
        **{f"requires_grad of {name}": parameter.requires_grad for name, parameter in layer.named_parameters()},
    }


def _settings_line(subject: Subject, name: str, *, training: bool) -> str:
    before = _prepare(subject, training=training)
    try:
        return first_line(lambda: _run(subject), lambda: name in _changes(subject, before))
    finally:
        before[0].restore()
