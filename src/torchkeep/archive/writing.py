"""Write a store: commit so that a power cut leaves a checkpoint whole or not at all; prune in reverse order."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from torchkeep.archive.composing import Content, Filled, check_names, compose_body, is_same
from torchkeep.archive.consistency import check_body
from torchkeep.archive.manifest import (
    FORMAT,
    STEPS,
    VERSION,
    Body,
    Manifest,
    Name,
    Summary,
    encode_manifest,
    encode_metrics,
    file_name,
)
from torchkeep.archive.marker import LOCK
from torchkeep.archive.packs import Layouts, write_pack
from torchkeep.archive.preparing import make_root, prepare
from torchkeep.archive.pruning import doomed, untouchable
from torchkeep.archive.publishing import Publisher
from torchkeep.archive.reading import Archive, Restored
from torchkeep.archive.retaining import PruneReport
from torchkeep.archive.reusing import unchanged, worth_keeping
from torchkeep.archive.tensors import pieces_of
from torchkeep.errors import DamageError, StoreError
from torchkeep.formats.digests import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torchkeep.archive.retaining import Best, Retention
    from torchkeep.archive.tensors import TensorBytes, Wanted
    from torchkeep.storage.folders import FolderStorage
    from torchkeep.storage.folders import Lock as StoreLock

LOCK_WAIT: Final = 10.0
"""How long a second writer waits, in seconds."""


class Writer(Archive):
    """A store of checkpoints, for reading and writing. It holds the store's lock until it is closed.

    Args:
        storage: the file system.
        root: the store's folder; it is made with its parents if need be.
        wait: how long to wait for another writer, in seconds.
        retention: the rules of the run; its rule for the best is noted with each checkpoint, so that `best` finds
            it. Nothing is pruned by itself.
        chunk: bytes of a piece at most; a multiple of 16.
        ids: makes names that no other writer makes.
        clock: tells the time, in seconds since 1970.

    Attributes:
        base: the checkpoint that the next one builds on: the last one committed or restored here, at first the
            latest. None where there is none, or the latest can't be read.

    Raises:
        StoreLockedError: another process writes to it.
        StoreError: the folder is no store and holds something else.
        NewerFormatError: a later version made it.
        StorageError: the operating system refused.
    """

    _publisher: ClassVar[type[Publisher]] = Publisher

    def __init__(
        self,
        storage: FolderStorage,
        root: str,
        *,
        wait: float = LOCK_WAIT,
        retention: Retention | None = None,
        chunk: int = CHUNK,
        ids: Callable[[], str] = lambda: secrets.token_hex(8),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._chunk, self._ids, self._clock = min(chunk, CHUNK), ids, clock
        self._best = retention.best if retention else None
        self._busy, self._layouts = Lock(), Layouts()
        self._good: set[int] = set()
        self._uses: dict[str, frozenset[str]] = {}
        root = storage.resolve(root)
        make_root(storage, root)
        self._lock: StoreLock = storage.lock(f"{root}/{LOCK}", wait)
        try:
            self._files = self._publisher(storage, root, prepare(storage, root, ids), self._lock)
            super().__init__(storage, root)
            self._files.settle()
            names = self.names()
            self._last = names[-1] if names else None
            self.base = self._readable(self._last)
        except BaseException:
            self._lock.release()
            raise
        self._latest = self._last.sequence if self._last else 0
        self._next = self._latest + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if not self._lock.held:  # also in a forked child, where nobody would ever end what was in flight
            self._lock.release()
            return
        with self._busy:
            self._files.close()
            self._lock.release()

    def _readable(self, name: Name | None) -> Manifest | None:
        with suppress(DamageError):
            return None if name is None else self.manifest(name)
        return None

    # Committing

    def restore(self, load: Callable[[Manifest], None], step: int | None = None) -> Restored | None:
        """Load a checkpoint as `Archive.restore` does; the next commit builds on it."""
        if self._files.unsettled:
            self._files.settle()
        restored = super().restore(load, step)
        if restored is not None:
            self.build_on(restored.manifest)
        return restored

    def _rule(self, metric: str | None, mode: Literal["min", "max"] | None, recorded: Best | None) -> Best:
        return super()._rule(metric, mode, self._best or recorded)

    def build_on(self, manifest: Manifest) -> None:
        """Let the next commit follow a checkpoint, whatever came after it: a new line of history."""
        self.base, self._last = manifest, Name(manifest.sequence, manifest.step, "")

    def go_on_from(self, manifest: Manifest, reader: Archive) -> None:
        """Build on a checkpoint that ``reader`` restored before this was opened; what it verified counts here too.

        Raises:
            StoreError: another process has pruned it since.
        """
        if manifest.path.rpartition("/")[2] not in {name.file for name in self.names()}:
            raise StoreError(
                f"{manifest.path!r}, which was restored here, was pruned by another process that wrote to this "
                "store meanwhile; restore another checkpoint first"
            )
        for pack, marks in reader._marks.items():  # noqa: SLF001 - of the same class
            self._marks.setdefault(pack, {}).update(marks)
        self.build_on(manifest)

    def commit(
        self,
        step: int,
        tensors: Mapping[str, TensorBytes],
        *,
        aliases: Mapping[str, str] | None = None,
        tree: Any = None,
        recipe: Any = None,
        metrics: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        before_publishing: Callable[[], None] | None = None,
    ) -> Manifest:
        """Commit a checkpoint: when this returns it is durable.

        A state that the latest checkpoint holds already at that step is not committed again; new metrics are.

        Args:
            step: the state's step; not below that of the checkpoint it builds on.
            tensors: by name, owners only.
            aliases: owner's name by alias.
            tree: JSON's own types; how values and tensors are nested.
            recipe: JSON's own types.
            metrics: plain values by name.
            versions: of the programs that take part.
            before_publishing: called when all bytes were read and written, before anything of it can be seen;
                what it raises fails the commit.

        Returns:
            Its manifest.

        Raises:
            StoreError: the step goes backwards, or this process does not hold the lock.
            UnsavableError: something can't be kept.
            StorageError: the operating system refused; the store holds what it held before.
        """
        self._lock.confirm()  # before waiting: in a forked child nobody would ever end what was in flight
        with self._busy:
            self._lock.confirm()
            self.check_step(step)
            check_names(tensors, aliases or ())
            content = Content.of(aliases, tree, recipe, versions)
            encoded = encode_metrics(metrics)
            wanted = list(pieces_of(tensors, self._chunk))
            base = self.base
            found = unchanged(wanted, base, self._marks) if base else {}
            if base and base.sequence == self._latest and len(found) == len(wanted):
                same = is_same(base, step, tensors, content)
                if same and (metrics is None or encoded == base.summary.metrics):
                    return base
            kept = worth_keeping(found, base) if base else {}
            # What did not change goes apart: together with what changes, it would be written each time.
            changed = [position for position in range(len(wanted)) if position not in found]
            settled = [position for position in found if position not in kept]
            try:
                filled = self._write_packs(wanted, [group for group in (changed, settled) if group])
                body = compose_body(tensors, content, wanted, filled, kept=kept, base=base)
                if before_publishing is not None:
                    before_publishing()
                manifest = self._publish(step, encoded, body, filled)
            except BaseException:
                self._files.discard()
                raise
            self._follow(manifest, filled)
            return manifest

    def _write_packs(self, wanted: Sequence[Wanted], groups: Sequence[Sequence[int]]) -> list[Filled]:
        """Write a pack for each group of positions, in staging, synced."""
        filled = []
        for group in groups:
            name, pieces = self._ids(), [wanted[position] for position in group]
            ready, packed = self._files.write(
                self.pack_path(name),
                lambda file: write_pack(file, name, pieces, self._layouts),  # noqa: B023 - called at once
            )
            filled.append(Filled(ready, group, packed))
        return filled

    def _publish(self, step: int, metrics: dict[str, Any], body: Body, filled: Sequence[Filled]) -> Manifest:
        """Compose the manifest, and publish it with its packs; its rename is the commit."""
        nbytes = sum(tensor.nbytes for tensor in body.tensors.values())
        written = sum(one.packed.pack.size for one in filled)
        now, count = self._clock(), len(body.tensors)
        summary = Summary(FORMAT, VERSION, self._next, step, now, metrics, count, nbytes, written, self._best)
        # Also when this fails: a number is never used twice, and what is there already may not be the latest.
        self._next, self._latest = self._next + 1, self._next
        encoded, path = encode_manifest(summary, body), self.manifest_path(file_name(summary.sequence, step))
        check_body(body)
        self._files.commit([one.ready for one in filled], path, encoded)
        return Manifest(path, summary, body)

    def _follow(self, manifest: Manifest, filled: Sequence[Filled]) -> None:
        """Build on a checkpoint that was just committed: what it holds need not be written again."""
        for one in filled:
            self._marks[one.packed.pack.id] = dict(zip(one.packed.starts, one.packed.marks, strict=True))
        used = self._uses[manifest.path.rpartition("/")[2]] = frozenset(pack.id for pack in manifest.body.packs)
        self._marks = {pack: marks for pack, marks in self._marks.copy().items() if pack in used}
        self._good.add(manifest.sequence)
        self.build_on(manifest)

    def check_step(self, step: int) -> None:
        """Raise StoreError where a step can't be the next one: it goes backwards, or is no whole number."""
        if type(step) is not int or not 0 <= step < STEPS:
            raise StoreError(f"a step is a whole number of the type int, from 0 on, not {step!r}")
        if self._last and step < self._last.step:
            raise StoreError(
                f"step {step} goes backwards: the last checkpoint in {self.root!r} is of step {self._last.step}; "
                f"restore one of step {step} or before first, or use another store"
            )

    # Pruning

    def prune(self, retention: Retention) -> PruneReport:
        """Remove the checkpoints that ``retention`` does not keep, and the packs that none needs any more.

        Never removed are the latest checkpoint, the one that the next commit builds on, and the newest that is
        intact: where this process has not written or verified it, it is read first.

        Raises:
            DamageError: a manifest can't be read, so what it needs is not known; nothing was removed.
            StoreError: this process does not hold the lock.
            StorageError: the operating system refused.
        """
        self._lock.confirm()  # before waiting: in a forked child nobody would ever end what was in flight
        with self._busy:
            self._lock.confirm()
            found = doomed(self, retention, self._precious(), self._packs_of)
            self._files.remove(
                [self.manifest_path(name.file) for name in found.names],
                [f"{self.root}/packs/{file}" for file in found.packs],
            )
            for name in found.names:
                self._uses.pop(name.file, None)
            return PruneReport(found.removed, len(found.packs))

    def _precious(self) -> set[int]:
        """Return the sequences that no rule may remove."""
        return untouchable(self, self._good) | (set() if self.base is None else {self.base.sequence})

    def _packs_of(self, name: Name) -> frozenset[str]:
        if name.file not in self._uses:
            self._uses[name.file] = frozenset(pack.id for pack in self.manifest(name).body.packs)
        return self._uses[name.file]
