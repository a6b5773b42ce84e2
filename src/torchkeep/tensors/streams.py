"""Keyed generators: streams of random bits that depend on a key of any length, and on nothing else.

``torch.Generator.manual_seed`` keeps 32 bits of a seed. Here the whole state of torch's CPU generator (MT19937,
Matsumoto and Nishimura 1998: 624 words of 32 bits) is the output of BLAKE3 in extendable-output mode, keyed by
everything that the values may depend on. Two different keys give unrelated streams; no global generator is used.
"""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from functools import cache
from struct import pack_into
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterator

KeyPart: TypeAlias = str | bytes | int | tuple[int, ...]

_CONTEXT: Final = "torchkeep keyed generator, scheme 1"
_WORDS: Final = 624
_HEADER: Final = 24
"""Bytes before the words: seed (u64), words left before a renewal (i32), seeded or not (i32), next word (u64)."""
_STATE_BYTES: Final = 5056
DIRECT: Final = _WORDS - 1
"""This many words come straight from the key; from then on MT19937 recurs."""


def key_bytes(*parts: KeyPart) -> bytes:
    """Spell a key so that no two different keys have the same bytes: each part has its type and length before it.

    Args:
        parts: text, bytes, integers of any size (negative too) or tuples of integers.
    """
    return b"".join(map(_part_bytes, parts))


def secret(*parts: KeyPart) -> bytes:
    """Reduce a key to 32 bytes, the size that `Stream.restart` takes."""
    return blake3(key_bytes(*parts), derive_key_context=_CONTEXT).digest()


def keyed_generator(*parts: KeyPart) -> torch.Generator:
    """Make a CPU generator whose state depends on the whole key.

    Args:
        parts: what the values may depend on, such as a seed and a name; see `key_bytes`.

    Returns:
        A new generator. Equal keys give equal streams.

    Raises:
        RuntimeError: this torch lays the state of a generator out in another way.
    """
    return Stream().restart(secret(*parts), b"")


class Stream:
    """One generator, started again under one key after another at little cost. For one thread at a time.

    Attributes:
        generator: the generator; the same object after each restart.
    """

    __slots__ = ("_direct", "_last", "_state", "generator")

    def __init__(self) -> None:
        check_layout()
        self.generator = torch.Generator()
        memory = bytearray(_STATE_BYTES)
        # As if one word had been drawn: the next is word 1, and word 0 serves only the recurrence. (torch refuses
        # a state in which all 624 words are still to come.)
        pack_into("=QiiQ", memory, 0, 0, _WORDS, 1, 1)
        # torch keeps each word in 64 bits, of which the upper half is zero.
        words = memoryview(memory)[_HEADER : _HEADER + 8 * _WORDS].cast("I")[::2]
        self._state = torch.frombuffer(memory, dtype=torch.uint8)
        self._direct, self._last = words[1:], words[:1]

    def restart(self, key: bytes, message: bytes, words: int = _WORDS) -> torch.Generator:
        """Start the generator under a key.

        Args:
            key: 32 bytes, from `secret`.
            message: the rest of the key.
            words: how many words of 32 bits will be drawn at most. When these come straight from the key (up to
                `DIRECT`), only they are derived; the values are the same whatever is given here.

        Returns:
            The generator, ready.
        """
        digest = blake3(message, key=key)
        if words <= DIRECT:
            self._direct[:words] = memoryview(digest.digest(length=4 * words)).cast("I")
        else:
            derived = memoryview(digest.digest(length=4 * _WORDS)).cast("I")
            self._direct[:] = derived[:DIRECT]
            self._last[:] = derived[DIRECT:]
        return self.generator.set_state(self._state)


@contextmanager
def forked_randomness(*parts: KeyPart) -> Iterator[None]:
    """Key the global CPU generators of torch, of `random` and, when it is loaded, of NumPy; restore them after.

    For code that draws from global generators, such as a module's ``reset_parameters``. Code of other threads that
    draws from them meanwhile would see the keyed ones too.

    Args:
        parts: the key; see `key_bytes`.
    """
    numpy = sys.modules.get("numpy")
    before, python_before = torch.get_rng_state(), random.getstate()
    numpy_before = numpy.random.get_state() if numpy else None
    torch.set_rng_state(keyed_generator(*parts).get_state())
    number = int.from_bytes(secret(*parts, "random"), "little")
    random.seed(number)
    if numpy:
        numpy.random.seed([number >> shift & 0xFFFFFFFF for shift in range(0, 256, 32)])
    try:
        yield
    finally:
        torch.set_rng_state(before)
        random.setstate(python_before)
        if numpy:
            numpy.random.set_state(numpy_before)


@cache
def check_layout() -> None:
    """Prove once that torch reads the state the way it is written here, against Python's own MT19937.

    Raises:
        RuntimeError: it does not; values would not be those that the scheme promises.
    """
    generator = torch.Generator()
    found = generator.get_state().numel()
    words = [(2654435761 * (number + 1) ^ number << 7) & 0xFFFFFFFF for number in range(_WORDS)]
    state = bytearray(_STATE_BYTES)
    pack_into(f"=QiiQ{_WORDS}Q", state, 0, 0, _WORDS, 1, 1, *words)
    reference = random.Random()  # noqa: S311 - the same algorithm, which is the point
    reference.setstate((3, (*words, 1), None))
    expected = [reference.getrandbits(32) & 0x7FFFFFFF for _ in range(2 * _WORDS)]
    if found == _STATE_BYTES and sys.byteorder == "little":
        generator.set_state(torch.frombuffer(state, dtype=torch.uint8))
        drawn = torch.empty(2 * _WORDS, dtype=torch.int32).random_(generator=generator)
        if drawn.tolist() == expected:
            return
    raise RuntimeError(
        f"torch {torch.__version__} keeps the state of its CPU generator in another way than torchkeep knows "
        f"({found} bytes, {_STATE_BYTES} expected), so values can't be keyed; use a torch that torchkeep supports"
    )


def _part_bytes(part: KeyPart) -> bytes:
    if isinstance(part, str):
        tag, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, bytes):
        tag, data = b"b", part
    elif isinstance(part, int):
        tag, data = b"i", part.to_bytes(part.bit_length() // 8 + 1, "little", signed=True)
    else:
        tag, data = b"t", key_bytes(*part)
    return tag + len(data).to_bytes(8, "little") + data
