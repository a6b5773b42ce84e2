"""The state of one pickle program while it is read, and the loop that reads it.

A pickle is a program for a small stack machine. Python's own machine imports what the program names and calls it.
This one knows no import, no call of anything found in a file, and no attribute: a global is looked up in a fixed
table of descriptions, and a call can only mean one of the constructors of that table, each of which checks its
arguments and makes one of `torchkeep.formats.pickles.objects`.

The opcodes are those of https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from torchkeep.errors import FormatError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchkeep.formats.pickles.objects import StorageRef

STOP: Final = 0x2E
_SHOWN: Final = 200
MAX_MARKS: Final = 1_000
"""How many lists or tuples may be begun inside each other."""
SET_ITEMS: Final = 4
"""Items of 64 bytes that an empty set takes."""
MAX_ODD_KEYS: Final = 1 << 17
"""Keys, in all mappings and sets of a file together, that are neither text nor the number after the key before.

Numbers can be chosen so that many have one hash; text can't, and neither can counting up.
"""
MAX_ALIKE: Final = 64
"""Different such keys of one hash, in a file. A mapping compares each with all before it, in quadratic time."""
ADVICE: Final = (
    "nothing was imported or called; if you trust where the file came from, load it there with "
    "torch.load(path, weights_only=False) and save a state_dict of tensors and plain values instead"
)

Handler: TypeAlias = "Callable[[Machine], None]"


def shown(text: str) -> str:
    """Return text of a file for a sentence: quoted, and not all of it when it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


class TruncatedError(Exception):
    """The bytes end before the program does."""


class Machine:
    """One program being read.

    Args:
        data: bytes that hold the program.
        at: where in ``data`` it begins.
        path: the file, for sentences.
        base: position of ``data`` in the file.
        budget: how many instructions it may have.
        resolve: describes the storage of a persistent id; None where no storage may be named.

    Attributes:
        at: the next byte to read; after `run`, the first after the program.
        begun: the first byte of the instruction being read.
        stack: values since the last mark.
        marks: the stacks below each mark.
        memo: values kept under numbers.
        resolve: as given.
        notes: names of attributes that are left out.
    """

    def __init__(
        self,
        data: bytes,
        *,
        at: int = 0,
        path: str,
        base: int,
        budget: int,
        resolve: Callable[[Machine, tuple[Any, ...]], StorageRef] | None = None,
    ) -> None:
        self.data = data
        self.at = self.begun = self.first = at
        self.path = path
        self.base = base
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.resolve = resolve
        self.notes: set[str] = set()
        self._budget = budget
        self._spent = self._odd_keys = 0
        self._alike: dict[int, list[Any]] = {}

    def run(self, handlers: Sequence[Handler]) -> Any:
        """Read the program and return the value it describes, not yet looked at as a whole.

        Raises:
            TruncatedError: the bytes end before the program does.
            UnsafeFileError: it asks for something to be imported, called or changed.
            FormatError: it is no program that torch.save writes.
        """
        data = self.data
        try:
            for _ in range(self._budget):
                self.begun = at = self.at
                code = data[at]
                self.at = at + 1
                if code == STOP:
                    return self._result()
                handlers[code](self)
        except (IndexError, struct.error) as cause:
            if self.at >= len(data) or isinstance(cause, struct.error):
                raise TruncatedError from cause
            raise self.malformed("takes a value that is not there") from cause
        raise self.malformed(f"is still going on after {self._budget} instructions, too many for its size")

    def _result(self) -> Any:
        if self.marks or len(self.stack) != 1:
            raise self.malformed("does not end with one value")
        return self.stack[0]

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        at = self.at
        if length > len(self.data) - at:
            raise TruncatedError
        self.at = at + length
        return self.data[at : at + length]

    def pop_mark(self) -> list[Any]:
        """Return the values since the last mark, and forget the mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def spend(self, items: int) -> None:
        """Note that ``items`` times 64 bytes are made beyond what asks for them: a copy, a set."""
        self._spent += items
        if self._spent > self._budget:
            raise self.malformed("copies so much that it can't mean it")

    def count_odd_key(self, key: Any) -> None:
        """Note a key, known to be hashable, that is neither text nor the number after the key before."""
        self._odd_keys += 1
        if self._odd_keys > MAX_ODD_KEYS:
            raise self.malformed(f"has more than {MAX_ODD_KEYS} keys that are neither text nor counted up")
        alike = self._alike.setdefault(hash(key), [])
        if key not in alike:
            alike.append(key)
        if len(alike) > MAX_ALIKE:
            raise self.malformed(f"has more than {MAX_ALIKE} keys of one hash, chosen to make it slow")

    @property
    def offset(self) -> int:
        """Where in the file the instruction being read begins."""
        return self.base + self.begun

    def malformed(self, problem: str) -> FormatError:
        """Return the error for a program that is not what torch.save writes."""
        return FormatError(
            f"the pickle in {self.path!r} {problem} (byte {self.offset} of the file); it is damaged, or not "
            "written by torch.save"
        )

    def unreadable(self, what: str, advice: str) -> FormatError:
        """Return the error for something harmless that is not read."""
        return FormatError(
            f"{self.path!r} holds {what} (byte {self.offset} of the file), which is not read; {advice}"
        )

    def unsafe(self, wanted: str, asked: str) -> UnsafeFileError:
        """Return the error for a program that asks for code.

        Args:
            wanted: the global it asks for; empty when it names none.
            asked: what it asks, such as ``"asks for 'os.system'"``.
        """
        error = UnsafeFileError(f"{self.path!r} {asked} (byte {self.offset} of the file); {ADVICE}")
        error.global_name, error.offset = wanted, self.offset
        return error
