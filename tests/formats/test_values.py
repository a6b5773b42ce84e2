"""Plain values through JSON and back: every value exactly, and nothing else."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
from collections import Counter, OrderedDict, defaultdict, namedtuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.errors import FormatError, UnsavableError
from torchkeep.formats.values import MAX_DEPTH, decode, encode


def through_json(value):
    return decode(msgspec.json.decode(msgspec.json.encode(encode(value))))


def shape_of(value):
    """Describe a value so that equal descriptions mean equal types and bits."""
    if isinstance(value, dict):
        return type(value), [(shape_of(key), shape_of(item)) for key, item in value.items()], vars_of(value)
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, map(shape_of, value)))
    if isinstance(value, list | tuple):
        return type(value), [shape_of(item) for item in value]
    if isinstance(value, float):
        return float, np.float64(value).tobytes()
    if isinstance(value, complex):
        return complex, np.complex128(value).tobytes()
    return type(value), value


def vars_of(value):
    return repr(getattr(value, "__dict__", None))


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
KEYS = st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.tuples(st.integers(), st.booleans())
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(KEYS, inner).map(OrderedDict)
        | st.dictionaries(KEYS, st.integers()).map(Counter)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
    ),
)


@given(VALUES)
def test_every_value_comes_back_with_its_type_and_bits(value):
    """Random nested values come back exactly, floats compared by their bits, dicts with their order."""
    assert shape_of(through_json(value)) == shape_of(value)


@given(VALUES)
def test_the_same_value_gives_the_same_text(value):
    """Encoding what was decoded gives the same JSON, so that saving twice gives the same file."""
    text = msgspec.json.encode(encode(value))
    assert msgspec.json.encode(encode(decode(msgspec.json.decode(text)))) == text


def test_a_state_dict_keeps_its_versions():
    """An OrderedDict with ``_metadata``, as ``state_dict`` gives, comes back with it."""
    state = OrderedDict(weight=1)
    state._metadata = OrderedDict({"": {"version": 2}})
    back = through_json(state)
    assert type(back) is OrderedDict
    assert back == state
    assert back._metadata == state._metadata
    assert type(back._metadata) is OrderedDict


def test_a_set_has_one_order_whatever_the_hashes():
    """A set's items stand in the order of their JSON, not in that of their hashes."""
    names = [f"name{index}" for index in range(20)]
    assert encode(set(names)) == {"set": sorted(names)}


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int = 1


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the untyped kind is what is tested
REFUSED = {
    "function": (len, "code is never saved"),
    "class": (int, "save its name"),
    "array": (np.zeros(3), "torch.from_numpy"),
    "scalar": (np.float64(1), r"\.item"),
    "namedtuple": (Pair(1, 2), "_asdict"),
    "path": (pathlib.PurePosixPath("x"), "save str"),
    "dataclass": (Point(), "asdict"),
    "enum": (Colour.RED, "save its value"),
    "defaultdict": (defaultdict(list), "save dict"),
    "bytearray": (bytearray(b"x"), "save bytes"),
    "surrogate": ("\ud800", "surrogate"),
    "object": (object(), "kept are tensors"),
    "range": (range(3), "kept are tensors"),
}


@pytest.mark.parametrize(("value", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_kept_is_refused_with_its_path_and_advice(value, advice):
    """Each kind of value that JSON can't hold is refused, told where it sits and what to save in its place."""
    with pytest.raises(UnsavableError, match=advice) as caught:
        encode({"optimizer": [{"hook": value}]})
    assert caught.value.path == "optimizer[0]['hook']"
    assert "optimizer[0]['hook']" in str(caught.value)


def test_all_problems_are_told_at_once():
    """Two values that can't be kept give one error that names both."""
    with pytest.raises(UnsavableError, match=r"2 values(.|\n)*a\[1\](.|\n)*b\['c'\]"):
        encode({"a": [1, len], "b": {"c": object()}})


def test_a_key_that_can_not_be_kept_is_refused():
    """Keys are held to the same rules as values."""
    with pytest.raises(UnsavableError, match="key itself"):
        encode({"a": {int: 1}})


def test_attributes_of_an_ordered_dict_are_not_lost_in_silence():
    """Only a state_dict's versions are known; another attribute is refused."""
    mapping = OrderedDict()
    mapping.note = "x"
    with pytest.raises(UnsavableError, match="note"):
        encode(mapping)


def test_a_circle_is_refused():
    """A list that contains itself is named, not followed for ever."""
    inner = []
    inner.append({"again": inner})
    with pytest.raises(UnsavableError, match="contains itself"):
        encode([inner])


def test_the_same_container_twice_is_no_circle():
    """One list in two places is simply two equal lists when it comes back."""
    shared = [1]
    assert through_json([shared, shared]) == [[1], [1]]


def doubled(value):
    """Return containers that stand for 2**60 values."""
    for _ in range(60):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [doubled(0), [["x" * 100_000] * 1000] * 10, [{"k" * 1000: 0} for _ in [0]] * 100_000, [b"x" * 1000] * 100_000],
    ids=["containers", "text", "keys", "bytes"],
)
def test_what_is_shared_without_end_is_refused(value):
    """A file made to do harm holds a few containers that stand for billions: refused, once, and soon."""
    with pytest.raises(UnsavableError, match="would not end") as caught:
        encode({"harmless": 1, "bomb": value})
    assert str(caught.value).startswith("bomb")
    assert "values can't be saved" not in str(caught.value)


def test_what_is_shared_now_and_then_is_kept():
    """A tuple of options in every group of an optimizer is no bomb."""
    betas = (0.9, 0.999)
    assert decode(encode([betas] * 200_000)) == [betas] * 200_000


def test_depth_is_bounded_both_ways():
    """The deepest nesting allowed round-trips; one more is refused, on writing and in a hostile file."""
    value, node = 0, 0
    for _ in range(MAX_DEPTH):
        value, node = {1: value}, [node]
    assert through_json(value) == value
    with pytest.raises(UnsavableError, match="nested"):
        encode([value])
    with pytest.raises(FormatError, match="nested"):
        decode([node])


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"dict": {}, "tuple": []},
        {"unheard of": 1},
        {"tuple": {"a": 1}},
        {"tuple": "ab"},
        {"int": "zz"},
        {"int": 5},
        {"float": "00"},
        {"float": None},
        {"complex": [1.0]},
        {"complex": [{"x": 1}, 2]},
        {"bytes": "%"},
        {"bytes": 3},
        {"dict": [[1]]},
        {"dict": [1]},
        {"dict": [[[], 1]]},
        {"dict": 5},
        {"set": [[]]},
        {"state_dict": []},
        {"state_dict": [1, 2]},
        {"Counter": {"a": {"unheard of": 1}}},
    ],
    ids=str,
)
def test_hostile_trees_are_refused(node):
    """Whatever `encode` does not make is a FormatError and no other exception."""
    with pytest.raises(FormatError):
        decode([node])


def test_a_hook_gives_values_tags_of_their_own():
    """A caller's own kind goes through its hook on the way out, and through its reader on the way back."""
    node = encode({"at": [range(3)]}, hook=lambda value, path: ("range", [value.stop, path.name]))
    assert node == {"dict": {"at": [{"range": [3, "at.0"]}]}}
    assert decode(node, readers={"range": lambda payload: range(payload[0])}) == {"at": [range(3)]}
