"""`Run`: a training loop that keeps itself, goes on by itself, and ends with the bits of one never interrupted."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from warnings import warn

import torch
from blake3 import blake3

from torchkeep.errors import RunError, TorchkeepWarning
from torchkeep.training.run.feeds import Feed, OrderedFeed, check_source, feed_for
from torchkeep.training.run.gradients import Accumulation
from torchkeep.training.run.loaders import closed_at_exit
from torchkeep.training.run.places import Place, Places
from torchkeep.training.run.progress import progress_line
from torchkeep.training.run.resuming import resumed
from torchkeep.training.run.saves import Saves
from torchkeep.training.run.signals import Preempted, Watch
from torchkeep.training.state.contents import has_state
from torchkeep.training.state.randomness import rng_state, set_rng_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

    from torchkeep.files.planning import Policy
    from torchkeep.training.state.states import TrainingState
    from torchkeep.training.store.looking import Which
    from torchkeep.training.store.stores import CheckpointStore

Batch = TypeVar("Batch")

_SCHEME: Final = "torchkeep run, scheme 1"


@dataclass
class _Loop:
    """A loop that runs: over what, from where, to which step."""

    feed: Feed
    place: Place
    steps: int
    exact: bool
    watch: Watch = field(default_factory=Watch)


class Run:
    """A training run: it gives out batches, saves on time, and goes on where the last checkpoint was.

    Killed at any moment and started again, a script ends with the same bits as if it had not been killed, if two
    undisturbed runs of it do. For that, the run defines the batches: an epoch's order depends on the seed and the
    epoch, and what is drawn while a batch is loaded on the seed, the epoch and the batch, however many workers
    load. Loading draws nothing from the global generators of the main process.

    Args:
        store: where checkpoints go.
        state: what is in them. `TrainingState.epoch`, ``batch`` and ``sampler`` are the run's.
        every: when to save: a number of steps, a `datetime.timedelta`, or a duration as text: ``"10min"``,
            ``"1h 30min"``, ``"90s"``. The last step of a loop is saved in any case; step 0 never is, since it is
            what the script makes anyway.
        seed: what order and augmentation depend on. None: at the first start it is derived from the state of
            torch's generator (so after ``torch.manual_seed`` it is the same every time), and kept in checkpoints.
        on_failure: what a save that failed in the background does: ``"raise"`` its error at the end of the step,
            or ``"warn"`` and let training go on until the next save. What is saved at a loop's end, or because
            of a signal, raises in any case.
        overlap: as `CheckpointStore.save` takes it. Give False where other code than optimizers' steps writes to
            what they train: each save then copies everything before the next batch is given out.
        progress: whether to show a progress line. None: on terminals.
        clock: tells seconds for a duration, from any origin, never going back.

    Attributes:
        step: the steps that are done, over all loops; 0 before the first loop or `resume`.
        resumed_from: the step of the checkpoint that the run went on from; None where there was none.

    Raises:
        RunError: an argument that can't be.

    Example:
        >>> run = tk.Run(store, tk.TrainingState(model=net, optimizer=optimizer), every=100)
        >>> for images, labels in run.batches(loader, steps=2000):
        ...     loss = F.cross_entropy(net(images), labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: TrainingState,
        *,
        every: int | timedelta | str,
        seed: int | None = None,
        on_failure: Literal["raise", "warn"] = "raise",
        overlap: bool = True,
        progress: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._saves = Saves(store, every, on_failure, clock, overlap=overlap)
        if seed is not None and type(seed) is not int:
            raise RunError(f"Run(seed=...) takes a whole number or None, not {seed!r}")
        if not all(hasattr(state, name) for name in ("epoch", "batch", "sampler")):
            raise RunError(
                f"Run(...) takes a TrainingState, not a {type(state).__name__}: tk.TrainingState(model=net)"
            )
        if not hasattr(store, "restored"):
            raise RunError(f"Run(...) takes a CheckpointStore, not {store!r}: tk.CheckpointStore(folder)")
        self.store, self.state = store, state
        self.step = 0
        self.resumed_from: int | None = None
        self._given_seed, self._seed = seed, seed
        self._progress = progress
        self._places = Places()
        self._accumulation = Accumulation(state)
        self._looping = self._stepped = self._restored = self._settled = False
        self._random: dict[str, Any] | None = None
        self._wanted: Which | None = None
        self._policies: dict[str, Policy] = {}

    @property
    def durable(self) -> int | None:
        """The last step that is known to be durable; None before the first."""
        return self._saves.durable

    @property
    def epoch(self) -> int:
        """The epoch of the batch in hand, or of the next one, counted from 0."""
        return self._places.here.epoch

    @property
    def batch(self) -> int:
        """How many batches of the epoch are done."""
        return self._places.here.batch

    def resume(
        self, step: Which | None = None, *, missing: Policy = "error", unexpected: Policy = "error"
    ) -> int | None:
        """Restore a checkpoint now, not when the first loop begins, which restores the newest by itself.

        What is changed in the state after this stays changed.

        Args:
            step: which; what is saved from then on follows it. None: the newest that is intact.
            missing: as `CheckpointStore.restore` takes it: ``"ignore"`` for a model or state that was extended.
            unexpected: as `CheckpointStore.restore` takes it: ``"ignore"`` for a model that lost layers.

        Returns:
            Its step; None where there is none, and only without a step.

        Raises:
            RunError: a step was done already.
            TorchkeepError: what `CheckpointStore.restore` raises.
        """
        if self._stepped:
            raise RunError(f"the run is at step {self.step} and can't be resumed; make a new Run")
        self._wanted = step
        self._policies = {"missing": missing, "unexpected": unexpected}
        self._restore()
        # What is drawn from now on to the first loop must not shift what the loop draws.
        self._random = rng_state()
        return self.resumed_from

    def record(self, **metrics: float | torch.Tensor) -> None:
        """Give metrics to be kept with the next checkpoint, for `Retention` and for who reads the store later.

        Args:
            metrics: numbers, or tensors of one number; the last value of each name counts.

        Raises:
            UnsavableError: a value that is no number.
        """
        self._saves.record(metrics)

    def request_save(self) -> None:
        """Ask for a checkpoint at the end of this step, whatever ``every`` says: after a validation, say."""
        self._saves.ask()

    def batches(
        self, loader: Iterable[Batch] | Callable[[], Iterable[Batch]], *, steps: int, exact: bool = True
    ) -> Iterator[Batch]:
        """Give out batches, epoch after epoch, until a global step; restore first, and save in between.

        A step is done when the loop asks for the next batch; a step that an exception or ``break`` ends is not.
        After SIGTERM or Ctrl-C the step is finished and saved, and `Preempted` (an exit, with code 143 or 130)
        is raised. Several loops after each other may take the run further, over the same loader or others.

        Args:
            loader: a DataLoader; a list, or any other iterable that gives the batches of an epoch each time;
                or a function that returns one.
            steps: the global step to go to.
            exact: whether it is an error when an interrupted epoch can't be gone on with as it was; otherwise
                a warning is given, and the loader's batches are taken as they come.

        Returns:
            An iterator over batches; it ends when the last step is durable.

        Raises:
            RunError: ``steps`` is no number of steps, a loop of this run is running, the loader gives nothing,
                or (while iterating) not the batches of before.
            SourceError: batches can't be taken from this.
            StoreLockedError: another process writes to the store (while iterating, before anything is restored).
        """
        check_source(loader)
        if type(steps) is not int or steps < 0:
            raise RunError(f"run.batches(steps=...) takes the number of the step to go to, not {steps!r}")
        return self._batches(loader, steps, exact=exact)

    def _batches(self, loader: Any, steps: int, *, exact: bool) -> Iterator[Any]:
        if self._looping:
            raise RunError(
                "a loop of this run is running; for another within it, such as over validation data, use its "
                "DataLoader itself"
            )
        self._looping = True
        try:
            self._start(steps)
            self._places.turn_to(loader)
            if self.step < steps:
                feed = feed_for(loader, (_SCHEME, self._seed or 0, "loader", self._places.current))
                if (
                    isinstance(feed, OrderedFeed)
                    and has_state(loader)
                    and getattr(self.state, "loader", None) is loader
                ):
                    raise RunError(
                        "the loader is a part of the state, and would keep a place of its own beside the run's; "
                        "leave it out: TrainingState(...) without loader="
                    )
                loop = _Loop(feed, self._places.here, steps, exact)
                line = progress_line(self._progress, self.step, steps)
                with loop.watch, closed_at_exit(feed), self._accumulation, line as show:
                    yield from self._steps(loop, show)
        finally:
            self._looping = False

    def _steps(self, loop: _Loop, show: Callable[[int, int | None], None]) -> Iterator[Any]:
        place = loop.place
        self._saves.start_clock()
        self._judge(loop, loop.feed.begin(place.epoch, place.batch, place.kept))
        try:
            while self.step < loop.steps:
                self._leave_if_told(loop)
                batch = self._following(loop)
                if loop.feed.rewinds(place.batch):
                    self._leave_if_told(loop)  # without a step more: loading may have taken long
                self._accumulation.begin_batch()
                yield batch
                self.step += 1
                place.batch += 1
                self._stepped = True
                self._saves.settle()
                if self.step < loop.steps and self._saves.due(self.step):
                    self._saves.send(self.step, self._fill(loop), wait=False)
                show(self.step, self.durable)
        except GeneratorExit:
            if not loop.feed.rewinds(place.batch):
                place.batch += 1  # the loader has given it, and can't again
            place.kept = loop.feed.kept(place.batch)
            raise
        self._make_durable(loop)
        show(self.step, self.durable)
        self._leave_if_told(loop)

    def _following(self, loop: _Loop) -> Any:
        """Load the next batch, of the next epoch where this one is over."""
        place = loop.place
        while True:
            try:
                return loop.feed.following()
            except StopIteration:
                if not place.batch:
                    raise RunError(
                        f"the loader gave no batch in epoch {place.epoch}; is its dataset empty?"
                    ) from None
            place.epoch, place.batch, place.kept = place.epoch + 1, 0, None
            loop.feed.begin(place.epoch, 0, None)

    def _judge(self, loop: _Loop, problem: str | None) -> None:
        if problem is None:
            return
        sentence = f"step {self.step} can't be gone on from exactly: the loader is not that of before, {problem}"
        if loop.exact:
            raise RunError(
                f"{sentence}; give the one of before, or take what this one gives: run.batches(..., exact=False)"
            )
        warn(sentence, TorchkeepWarning, stacklevel=2)

    # Going on

    def _start(self, steps: int) -> None:
        """Restore when the first loop begins, and again when the first one begins that ends no earlier.

        What code did after loops that ended before the checkpoint is in it, and is not to be done twice.
        A checkpoint of a loop's very end is from before the code that follows: that is done, then, and stays.
        """
        if self._stepped or self._settled:
            return
        self._saves.open()  # before what is in the store is looked at, so that nobody else adds to it after that
        if self._random is not None:
            set_rng_state(self._random)
            self._random = None
        elif not self._restored or self.step <= steps:
            self._restore()
        self._restored = True
        self._settled = self.step <= steps
        if self._seed is None:
            self._seed = int.from_bytes(
                blake3(torch.get_rng_state().numpy(force=True).tobytes()).digest(length=16)
            )

    def _restore(self) -> None:
        step, kept = resumed(self.store, self.state, self._wanted, self._policies, seed=self._given_seed)
        self.resumed_from = self._saves.durable = step
        self.step = step or 0
        if kept is not None:
            self._seed = kept["seed"]
            self._places.put_back(kept["current"], kept["places"])
            self._accumulation.put_back(kept["gradients"])
        elif step is not None:
            self._places.begin_at(self.state.epoch)

    # Saving

    def _fill(self, loop: _Loop) -> TrainingState:
        """Write into the state where the run is."""
        place, state = loop.place, self.state
        place.kept = loop.feed.kept(place.batch)
        state.epoch, state.batch = place.epoch, place.batch
        state.sampler = {
            "seed": self._seed,
            "current": self._places.current,
            "places": self._places.kept(),
            "gradients": self._accumulation.kept(),
        }
        return state

    def _make_durable(self, loop: _Loop) -> None:
        """Make the step that was reached durable, and return when it is."""
        self._saves.settle(self.step)
        if self.step and self.durable != self.step:
            self._saves.send(self.step, self._fill(loop), wait=True)

    def _leave_if_told(self, loop: _Loop) -> None:
        number = loop.watch.noted
        if not number:
            return
        self._make_durable(loop)
        loop.watch.acted()
        left = Preempted(self.step, number)
        what = f"step {self.step} is saved" if self.step else "no step was done, so nothing is saved"
        how = "start the same script again to go on"
        print(  # noqa: T201 - who sent the signal is to see what came of it
            f"torchkeep: {left.signal.name}: {what}; {how} (exit code {left.code})", file=sys.stderr, flush=True
        )
        raise left
