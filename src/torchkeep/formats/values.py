"""Plain Python values and containers as JSON, and back: what others use pickle for, without running anything.

Every value comes back with its exact type and bits. JSON's own forms are used where they say it all; the rest is
an object with one key, the tag:

    None, bool, str, finite float, int of 64 bits    as in JSON
    list                                             an array
    dict, OrderedDict, Counter                       {"dict": {...}}, or {"dict": [[key, value], ...]}
    OrderedDict with module versions (a state_dict)  {"state_dict": [[[key, value], ...], versions]}
    tuple, set, frozenset                            {"tuple": [...]}; a set in the order of its items' JSON
    int beyond 64 bits, inf and nan                  {"int": "0x..."}, {"float": "<16 hex digits of its bits>"}
    complex, bytes                                   {"complex": [real, imaginary]}, {"bytes": "<base64>"}

Other tags belong to whoever encodes: tensors, for one, are given theirs by a hook.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from torchkeep.errors import FormatError, UnsavableError
from torchkeep.formats.advice import advice_for
from torchkeep.formats.paths import ROOT, Path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Reader: TypeAlias = "Callable[[Node], Any]"
"""Makes the value that a tag of the caller's own stands for."""

Node: TypeAlias = Any
"""What JSON can hold: None, bool, int, float, str, list, dict with str keys."""

Hook: TypeAlias = "Callable[[object, Path], tuple[str, Node] | None]"
"""Gives a tag and what goes with it for a value of the caller's own kind, None for any other. It may refuse the
value with an `UnsavableError` whose sentence goes on after "can't be saved: "."""

MAX_DEPTH: Final = 100
"""Containers within containers."""

MAX_REPEATED: Final = 1 << 20
"""Values, or 64 characters of text, that are written again because what holds them occurs in several places.

A few containers that hold each other twice can stand for more than any file can hold.
"""
_LONG: Final = 64

_SHOWN_PROBLEMS: Final = 50
_INT64: Final = range(-(2**63), 2**63)
_MAPPINGS: Final = {dict: "dict", OrderedDict: "OrderedDict", Counter: "Counter"}


def encode(value: object, *, hook: Hook | None = None) -> Node:
    """Turn a value into JSON's own types.

    Raises:
        UnsavableError: something in it can't be kept; all of it is named, each with its path.
    """
    encoder = Encoder(hook)
    node = encoder.encode(value)
    encoder.raise_problems()
    return node


class Encoder:
    """Encodes several values, remembering every problem instead of stopping at the first.

    Attributes:
        problems: path and sentence of each value that can't be kept.
    """

    def __init__(self, hook: Hook | None = None) -> None:
        self.problems: list[tuple[Path | str, str]] = []
        self._hook = hook
        self._open: set[int] = set()
        self._met: dict[int, object] = {}
        self._repeated = 0

    def encode(self, value: object, path: Path = ROOT) -> Node:
        """Encode one value that sits at ``path``; None where it can't be kept."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if self._repeated > MAX_REPEATED:  # that has been told
            return None
        try:
            if kind in _ATOMS:
                if kind in _TEXTS:
                    self._note_text(value)
                return _ATOMS[kind](value)
            return self._container(value, path) if kind in _CONTAINERS else self._tagged(value, path)
        except UnsavableError as refusal:
            self.problems.append((path, str(refusal)))
            return None

    def raise_problems(self) -> None:
        """Raise one error that tells all problems, if there are any."""
        if self.problems:
            raise unsavable(self.problems)

    def _tagged(self, value: object, path: Path) -> Node:
        tagged = self._hook(value, path) if self._hook else None
        if tagged is None:
            raise UnsavableError(advice_for(value))
        return {tagged[0]: tagged[1]}

    def _container(self, value: Any, path: Path) -> Node:
        if id(value) in self._open:
            raise UnsavableError("it contains itself; break the circle")
        if len(self._open) >= MAX_DEPTH:
            raise UnsavableError(f"containers are nested more than {MAX_DEPTH} deep; make it flatter")
        self._note(value, 1 + len(value))
        self._open.add(id(value))
        try:
            if type(value) in _MAPPINGS:
                return self._mapping(value, path)
            items = [self.encode(item, Path(path, index)) for index, item in enumerate(value)]
        finally:
            self._open.remove(id(value))
        if type(value) is list:
            return items
        if type(value) is not tuple:
            items.sort(key=msgspec.json.encode)
        return {type(value).__name__: items}

    def _note(self, value: object, size: int) -> None:
        """Count what is written again since it occurs in several places."""
        if id(value) not in self._met:
            self._met[id(value)] = value  # kept, so that nothing else gets its id
            return
        self._repeated += size
        if self._repeated > MAX_REPEATED:
            raise UnsavableError(
                "what occurs in several places of it would be written once for each, which would not end; share "
                "less, or save it as tensors"
            )

    def _note_text(self, value: Any) -> None:
        if len(value) > _LONG:
            self._note(value, len(value) // _LONG)

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> Node:
        tag = _MAPPINGS[type(value)]
        attributes = dict(getattr(value, "__dict__", {}))
        versions = attributes.pop("_metadata", None)
        if attributes:
            raise UnsavableError(f"it is a {tag} with attributes ({', '.join(attributes)}), which would be lost")
        if all(type(key) is str and is_text(key) for key in value):
            for key in value:
                self._note_text(key)
            encoded = {key: self.encode(item, Path(path, key)) for key, item in value.items()}
            return {tag: encoded} if versions is None else self._state_dict(list(encoded.items()), versions, path)
        pairs = [[self._key(key, path), self.encode(item, Path(path, key))] for key, item in value.items()]
        return {tag: pairs} if versions is None else self._state_dict(pairs, versions, path)

    def _state_dict(self, pairs: Iterable[Iterable[Node]], versions: object, path: Path) -> Node:
        return {"state_dict": [[list(pair) for pair in pairs], self.encode(versions, Path(path, "_metadata"))]}

    def _key(self, key: object, path: Path) -> Node:
        found = len(self.problems)
        node = self.encode(key, Path(path, key))
        if len(self.problems) > found:
            _, sentence = self.problems[found]
            self.problems[found:] = [(Path(path, key), f"the key itself can't be kept: {sentence}")]
        return node


def unsavable(problems: Iterable[tuple[Path | str, str]]) -> UnsavableError:
    """Return one error that names every value that can't be kept, with its path."""
    found = [(str(path), sentence) for path, sentence in problems]
    if len(found) == 1:
        error = UnsavableError(f"{found[0][0]} can't be saved: {found[0][1]}")
    else:
        lines = [f"  {path}: {sentence}" for path, sentence in found[:_SHOWN_PROBLEMS]]
        if len(found) > len(lines):
            lines.append(f"  ... and {len(found) - len(lines)} more")
        error = UnsavableError("\n".join([f"{len(found)} values can't be saved:", *lines]))
    error.path = found[0][0]
    return error


def is_text(value: str) -> bool:
    """Tell whether a str can be encoded at all: it holds no lone surrogate."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: str) -> Node:
    if not is_text(value):
        raise UnsavableError("it is a str with a lone surrogate, which no UTF-8 can hold; encode it to bytes")
    return value


def _int(value: int) -> Node:
    return value if value in _INT64 else {"int": hex(value)}


def _float(value: float) -> Node:
    return value if isfinite(value) else {"float": struct.pack(">d", value).hex()}


_ATOMS: Final[dict[type, Callable[[Any], Node]]] = {
    int: _int,
    float: _float,
    str: _text,
    complex: lambda value: {"complex": [_float(value.real), _float(value.imag)]},
    bytes: lambda value: {"bytes": b64encode(value).decode()},
}
_TEXTS: Final = {str, bytes}
_CONTAINERS: Final = {list, tuple, set, frozenset, *_MAPPINGS}


def decode(node: Node, *, readers: Mapping[str, Reader] | None = None) -> Any:
    """Turn what `encode` made back into the value.

    Args:
        node: JSON's own types; nothing in it is trusted.
        readers: for each tag of the caller's own, what makes its value; it may raise any `ValueError`.

    Raises:
        FormatError: it is nothing that `encode` makes.
    """
    return _Decoder(readers or {}).decode(node, 0)


class _Decoder:
    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = readers

    def decode(self, node: Node, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"its values are nested more than {MAX_DEPTH} deep")
        if type(node) is list:
            return [self.decode(item, depth + 1) for item in node]
        if type(node) is not dict:
            return node
        if len(node) != 1:
            raise FormatError(f"an object with one key was expected among its values, one with {len(node)} found")
        ((tag, payload),) = node.items()
        try:
            return self._tagged(tag, payload, depth)
        except FormatError:
            raise
        except (TypeError, ValueError, KeyError, struct.error) as cause:
            raise FormatError(f"what it holds as {tag!r} is not what it should be: {cause}") from cause

    def _tagged(self, tag: str, payload: Node, depth: int) -> Any:
        if tag in self._readers:
            return self._readers[tag](payload)
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](self.decode(item, depth + 1) for item in _list(payload))
        if tag in _DICTS:
            return _DICTS[tag](self._pairs(payload, depth))
        if tag == "state_dict":
            pairs, versions = _list(payload, 2)
            mapping = OrderedDict(self._pairs(_list(pairs), depth))
            mapping.__dict__["_metadata"] = self.decode(versions, depth + 1)
            return mapping
        if tag in _PLAIN:
            return _PLAIN[tag](payload)
        raise FormatError(f"it holds a value of a kind that is not known here, {tag!r}")

    def _pairs(self, payload: Node, depth: int) -> dict[Any, Any]:
        if type(payload) is dict:
            return {key: self.decode(item, depth + 1) for key, item in payload.items()}
        pairs = [_list(pair, 2) for pair in _list(payload)]
        return {self.decode(key, depth + 1): self.decode(item, depth + 1) for key, item in pairs}


def _list(node: Node, length: int | None = None) -> list[Node]:
    if type(node) is not list or length not in {None, len(node)}:
        raise FormatError(f"a list {'' if length is None else f'of {length} '}was expected among its values")
    return node


def _big_int(digits: str) -> int:
    return int(digits, 16)


def _special_float(bits: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(bits))[0])


def _number(node: Node) -> float:
    return _special_float(node["float"]) if type(node) is dict else float(node)


_SEQUENCES: Final[dict[str, Callable[[Iterable[Any]], Any]]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_DICTS: Final[dict[str, Callable[[dict[Any, Any]], Any]]] = {tag: kind for kind, tag in _MAPPINGS.items()}
_PLAIN: Final[dict[str, Reader]] = {
    "int": _big_int,
    "float": _special_float,
    "complex": lambda parts: complex(*map(_number, _list(parts, 2))),
    "bytes": lambda text: b64decode(text, validate=True),
}
