"""The same input gives the same output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.checks.comparing import differences
from torchkeep.checks.registry import proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.settings import SETTINGS, reseed
from torchkeep.checks.subject import SEED, set_mode
from torchkeep.checks.tracing import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Subject


@proves(needs=("uninitialised_memory", "hidden_module"))
def eval_determinism(subject: Subject) -> Iterator[Finding]:
    """Prove that in eval mode the same state and the same inputs give the same output.

    Always applies. Decided by calling twice from the same state and seed, which must agree even for a layer
    declared stochastic (otherwise it draws from a generator of its own that no seed reaches, or depends on the
    clock or on addresses), and once from another seed, which must agree unless it is declared so. Outputs may
    differ by rounding.
    """
    first = subject.call(training=False, grad=False)
    again = differences(first, subject.call(training=False, grad=False))
    if again:
        yield Finding(
            "two eval calls from the same state, inputs and seed differ",
            "draw from torch's generator, so that torch.manual_seed repeats it, and depend on no clock or address",
            tensor=", ".join(again),
        )
        return
    other = differences(first, subject.call(training=False, seed=SEED + 1, grad=False))
    if other and not subject.declare.stochastic:
        switched, where = _switched(subject)
        if switched:
            yield Finding(
                f"the output is random in eval mode, since forward puts {switched} into training mode",
                "leave modes to train() and eval(), or declare stochastic=True",
                tensor=", ".join(other),
                where=where,
            )
            return
        yield Finding(
            "the output is random in eval mode: it follows the seed",
            "draw only `if self.training` (F.dropout needs `training=self.training`), or declare stochastic=True",
            tensor=", ".join(other),
            where=_first_draw(subject),
        )


def _switched(subject: Subject) -> tuple[str, str]:
    """Return the names of modules that forward puts into training mode, and the line at which it does so first."""
    subject.snapshot.restore()
    set_mode(subject.layer, training=False)
    still = {name or "the layer": module for name, module in subject.layer.named_modules() if not module.training}

    def now() -> list[str]:
        return [name for name, module in still.items() if module.training]

    where = first_line(lambda: subject.call(grad=False, carry=True), lambda: bool(now()))
    return ", ".join(now()), where


def _first_draw(subject: Subject) -> str:
    """Return the line of source that draws first from any random generator."""
    generators = [setting for setting in SETTINGS.values() if setting.random]

    def states() -> str:
        return repr([_digest(setting.read()) for setting in generators])

    reseed(SEED)
    start = states()
    return first_line(lambda: subject.call(training=False, grad=False), lambda: states() != start)


def _digest(state: object) -> object:
    if isinstance(state, dict):
        return [_digest(value) for value in state.values()]
    if isinstance(state, tuple):
        return [_digest(value) for value in state]
    return (
        state.tobytes()
        if hasattr(state, "tobytes")
        else state.numpy().tobytes()
        if hasattr(state, "numpy")
        else state
    )
