"""What a run goes on from: a checkpoint of its store, and whether that is of the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import warn

from torchkeep.errors import RunError, TorchkeepWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torchkeep.files.planning import Policy
    from torchkeep.training.state.states import TrainingState
    from torchkeep.training.store.looking import Which
    from torchkeep.training.store.stores import CheckpointStore


class Resumed(NamedTuple):
    """What was restored.

    Attributes:
        step: of the checkpoint; None where there was none.
        kept: what the run had kept in it; None where it was not saved by a run.
    """

    step: int | None
    kept: dict[str, Any] | None


def resumed(
    store: CheckpointStore,
    state: TrainingState,
    wanted: Which | None,
    policies: Mapping[str, Policy],
    *,
    seed: int | None,
) -> Resumed:
    """Restore a checkpoint into a run's state.

    Args:
        store: where it is.
        state: the state.
        wanted: which; None: the newest that is intact.
        policies: what `CheckpointStore.restore` is given besides.
        seed: the one that the run was given, which must be that of before; None where it was given none.

    Raises:
        RunError: the checkpoint is of a run with another seed.
        TorchkeepError: what `CheckpointStore.restore` raises.
    """
    before = store.restored
    step = store.restore(state, wanted, **policies)
    if wanted is None and before not in {None, step or 0}:
        warn(
            f"step {before} was restored before the run, which goes on from the newest, {step or 0}; "
            f"to go on from the other: run.resume({before})",
            TorchkeepWarning,
            stacklevel=2,
        )
    if step is None:
        return Resumed(None, None)
    kept = state.sampler
    if "seed" not in kept:
        warn(
            f"the checkpoint of step {step} was not saved by a Run, and holds no place in an epoch; "
            f"batches begin with epoch {state.epoch}",
            TorchkeepWarning,
            stacklevel=2,
        )
        return Resumed(step, None)
    if seed is not None and kept["seed"] != seed:
        raise RunError(
            f"the run in the store was begun with seed {kept['seed']}, and Run(seed={seed}) would give other "
            "batches; leave the seed out, or begin in a new store"
        )
    return Resumed(step, kept)
