"""Copy a state to memory of its own while the next forward and backward already run.

What only optimizers change, in their steps, is copied by a background thread, and every step waits for that and
helps. Everything else is copied before the save returns. Nothing is locked while a forward runs, so a write to a
parameter that is no step can't be kept from tearing the copy; it is found out, and the save fails.
"""

from __future__ import annotations

import ctypes
from threading import Event, Lock, get_ident
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

from torchkeep.archive import TensorBytes
from torchkeep.errors import StoreError
from torchkeep.storage.buffers import memory_at, move
from torchkeep.tensors.copying import copy_out
from torchkeep.tensors.pausing import without_collections
from torchkeep.training.state.naming import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from torchkeep.training.state.holding import Held

PIECE: Final = 4 * 1024 * 1024
"""Bytes that are copied at once: a step that waits takes its share in pieces of this size."""
_ALIGNED: Final = 64
_MANY: Final = 256
"""So many small tensors are copied at once."""
_POLL: Final = 0.05
_SAMPLE: Final = 4096
_EVERY: Final = 64 * 1024
"""Of so many bytes, the first `_SAMPLE` are compared with the copy."""
_GLIMPSE: Final = 64
_EVERY_GLIMPSE: Final = 16 * _EVERY
"""Of so many bytes, the first `_GLIMPSE` are looked at before the copy, too."""

_Move: TypeAlias = tuple[int, "int | Tensor", int]
"""Where to, where from (a tensor where its bytes do not lie in order), how many bytes."""


def settle(tensors: Iterable[Held]) -> None:
    """Wait until what was launched on accelerators, on any stream, is part of the tensors."""
    for device in {held.tensor.device for held in tensors if held.is_away}:
        torch.accelerator.synchronize(device)


def size_of(tensors: Iterable[Held]) -> int:
    """Return how much memory a snapshot of tensors takes."""
    return sum(-(-held.nbytes // _ALIGNED) * _ALIGNED for held in tensors)


class Snapshot:
    """A copy of tensors that is being made.

    Args:
        tensors: by name, settled.
        stepped: names of those that only steps change; the others are copied first.
        address: memory of `size_of` bytes.
        piece: bytes that are copied at once.

    Attributes:
        error: why there will be no snapshot.
    """

    def __init__(
        self, tensors: Mapping[str, Held], stepped: frozenset[str], address: int, piece: int = PIECE
    ) -> None:
        self.error: BaseException | None = None
        self._tensors, self._address = tensors, address
        self._places: dict[str, int] = {}
        for name, held in tensors.items():
            self._places[name] = address
            address += -(-held.nbytes // _ALIGNED) * _ALIGNED
        counts = {name: _count(held.tensor) for name, held in tensors.items() if name in stepped}
        self._counts = {name: count for name, count in counts.items() if count is not None}
        self._glimpses = {name: _glimpses(tensors[name]) for name in self._counts}
        first = list(self._cut([name for name in tensors if name not in self._counts], piece))
        self._items = [*first, *self._cut(list(self._counts), piece)]
        self._first = len(first)
        self._done = bytearray(len(self._items))
        self._now, self._later = iter(range(self._first)), iter(range(self._first, len(self._items)))
        self._first_copied, self._copied, self._moved = Event(), Event(), Event()
        self._helping: set[int] = set()
        self._saver = 0
        self._lock = Lock()
        self._sound = self._sealed = self._passed = False
        if not self._first:
            self._first_copied.set()

    def _cut(self, names: Sequence[str], piece: int) -> Iterator[list[_Move]]:
        batch: list[_Move] = []
        size = 0
        for name in names:
            place, (tensor, source, nbytes, _) = self._places[name], self._tensors[name]
            if source is None:
                yield [(place, tensor, nbytes)]
            elif nbytes > piece:
                for start in range(0, nbytes, piece):
                    yield [(place + start, source + start, min(piece, nbytes - start))]
            elif nbytes:
                batch.append((place, source, nbytes))
                size += nbytes
                if size >= piece or len(batch) == _MANY:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    # Copying

    def copy_first(self) -> None:
        """Copy what has to be copied before the save returns, together with the background thread.

        Raises:
            BaseException: what failed, in any thread.
        """
        self._copy(self._now)
        self._first_copied.wait()
        if self.error is not None and 0 in self._done[: self._first]:  # what fails later, others tell
            raise self.error

    def copy_all(self, before: Callable[[], None] | None = None) -> None:
        """Copy everything, in the background thread.

        Args:
            before: called before each piece that is copied while training goes on.

        Raises:
            BaseException: what failed, in any thread.
            StoreError: tensors were changed meanwhile, outside of a step.
        """
        self._saver = get_ident()
        self._copy(self._now)
        self._copy(self._later, before)
        while self._helping and self.error is None:
            self._moved.wait(_POLL)
            self._moved.clear()
        for index in range(len(self._items)):  # what a thread had begun that was interrupted
            if not self._done[index] and self.error is None:
                self._copy_item(index)
        if self.error is not None:
            raise self.error
        self._copied.set()
        self._check()
        self._compare_samples()

    def let_pass(self) -> None:
        """Return when a step may begin; help until then. After a failure it may begin at once."""
        if get_ident() == self._saver:
            return
        me = get_ident()
        try:
            self._helping.add(me)
            self._copy(self._now)
            self._copy(self._later)
        finally:
            self._helping.discard(me)
            self._moved.set()
        self._copied.wait()
        if self.error is None and not self._sound:
            try:
                self._check(stepping=True)
            except StoreError as error:
                self.fail(error)
        self._passed = True

    def _copy(self, indices: Iterator[int], before: Callable[[], None] | None = None) -> None:
        while self.error is None:
            index = next(indices, None)
            if index is None:
                return
            try:
                if before is not None:
                    before()
                self._copy_item(index)
            except Exception as error:  # noqa: BLE001 - raised where the save is asked for
                self.fail(error)

    def _copy_item(self, index: int) -> None:
        for place, source, nbytes in self._items[index]:
            if isinstance(source, int):
                move(place, source, nbytes)
            else:
                copy_out(source, 0, nbytes, place)
        self._done[index] = 1
        if index < self._first and not self._first_copied.is_set() and 0 not in self._done[: self._first]:
            self._first_copied.set()

    def fail(self, error: BaseException) -> None:
        """Give up, and let everyone go who waits."""
        if self.error is None:
            self.error = error
        self._first_copied.set()
        self._copied.set()

    # Finding out what can't be trusted

    def _changed(self) -> list[str]:
        return [name for name, count in self._counts.items() if _count(self._tensors[name].tensor) != count]

    def _check(self, *, stepping: bool = False, sealing: bool = False) -> None:
        """Raise where a tensor was changed that only a step may change.

        PyTorch counts a change when it is over. So a count that is right just after the copy says little: only in
        the thread that changes tensors, before its next step, does it say that nothing was changed while they were
        copied. Where no step comes before all is written, that it is right by then has to do: a change would have
        gone on from before the end of the copy until then.
        """
        with self._lock:
            if not self._sound and not self._sealed:
                changed = self._changed()
                if changed:
                    raise _torn(changed)
                self._sound = stepping
            self._sealed = self._sealed or sealing

    def _compare_samples(self) -> None:
        """Compare samples of copies and tensors: PyTorch does not count what is written through ``.data``.

        Raises:
            StoreError: one was changed before its copy was made, or after that and no step has begun.
        """
        for name, glimpses in self._glimpses.items():
            place, (_, source, nbytes, _) = self._places[name], self._tensors[name]
            for start in range(0, 0 if source is None else nbytes, _EVERY):
                size = min(_SAMPLE, nbytes - start)
                copy = ctypes.string_at(place + start, size)
                changed = copy != ctypes.string_at((source or 0) + start, size)
                before = start % _EVERY_GLIMPSE or glimpses[start // _EVERY_GLIMPSE] == copy[:_GLIMPSE]
                # Looked at last: what a step changes, it changes after it has passed.
                if not before or (changed and not self._passed):
                    raise _torn([name])

    def seal(self) -> None:
        """Look for the last time, just before the checkpoint can be seen.

        Raises:
            StoreError: tensors were changed while they were copied, outside of a step.
            BaseException: what else failed.
        """
        if self.error is not None:
            raise self.error
        self._check(sealing=True)

    @without_collections()  # they would take a multiple of the time, and training would wait for them
    def tensor_bytes(self) -> dict[str, TensorBytes]:
        """Return the copies as a commit takes them."""
        memory = memory_at(self._address, size_of(self._tensors.values()))
        found = {}
        for name, held in self._tensors.items():
            begin = self._places[name] - self._address
            copy = memory[begin : begin + held.nbytes]
            found[name] = TensorBytes.whole(held.live.dtype, held.live.shape, copy)
        return found


def _torn(changed: Sequence[str]) -> StoreError:
    return StoreError(
        f"{listed([repr(name) for name in changed])} changed outside of an optimizer's step while the save copied "
        f"{'them' if len(changed) > 1 else 'it'} in the background, so that copy is not trusted, and not kept; "
        "where other code writes to what optimizers train, give overlap=False: store.save(..., overlap=False), or "
        "Run(..., overlap=False)"
    )


def _glimpses(held: Held) -> list[bytes]:
    """Return samples of a tensor's bytes; none where they have no address."""
    _, source, nbytes, _ = held
    if source is None:
        return []
    starts = range(0, nbytes, _EVERY_GLIMPSE)
    return [ctypes.string_at(source + start, min(_GLIMPSE, nbytes - start)) for start in starts]


def _count(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed; None where PyTorch does not count."""
    return None if tensor.is_inference() else int(tensor._version)  # noqa: SLF001 - PyTorch documents it, under that name
