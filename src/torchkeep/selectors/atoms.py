"""Reads the operands of a selector that are no names: regular expressions, classes, states and fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast, get_args

from torchkeep.dtypes import SPELLINGS, canonical_dtype
from torchkeep.selectors.scanner import QUOTES, read_quoted
from torchkeep.selectors.suggest import did_you_mean
from torchkeep.selectors.syntax import Comparison, Field, FieldName, FieldValue, Regex, State, StateName, Type

if TYPE_CHECKING:
    from torchkeep.selectors.scanner import Scanner

_STATES: tuple[StateName, ...] = get_args(StateName)
_FIELDS: tuple[FieldName, ...] = get_args(FieldName)
_FIELD = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)?\s*([^\]]*)")
_NUMBER = re.compile(r"(\d+(?:_\d+)*)(?:\.(\d+))?(?:[eE]([+-]?\d{1,2}))?", re.ASCII)
_LONGEST_NUMBER = 100
"""Far more than any count needs; Python itself reads no more than 4,300 digits."""
_SHAPE = re.compile(r"\(\)|\d{1,18}(x\d{1,18})*", re.ASCII)


def read_regex(scan: Scanner) -> Regex:
    """Read ``re:'...'``; what stands in the quotes goes to `re` as it is, like Python's raw strings."""
    scan.pos += len("re:")
    start, quote = scan.pos, scan.peek()
    if not quote or quote not in QUOTES:
        scan.fail(start, "a regular expression stands in quotes right after `re:`, as in re:'h\\.\\d+'")
    scan.pos += 1
    while (char := scan.peek()) != quote:
        if not char:
            scan.fail(start, f"this quote is never closed; add {quote}")
        scan.pos += 2 if char == "\\" else 1
    pattern = scan.text[start + 1 : scan.pos]
    scan.pos += 1
    try:
        re.compile(pattern)
    except re.error as error:
        scan.fail(start + 1 + (error.pos or 0), f"this is no regular expression: {error.msg}")
    except (OverflowError, RecursionError, Warning) as error:  # a Warning where users made those errors
        scan.fail(start + 1, f"this is no regular expression that Python can take: {error}")
    scan.expect_end()
    return Regex(pattern)


def read_type(scan: Scanner) -> Type:
    """Read ``@Linear``, ``@=Linear``, ``@my.pkg.Layer`` or ``@'odd.<locals>.Name'``."""
    scan.pos += 1
    exact = scan.peek() == "="
    scan.pos += exact
    start = scan.pos
    if scan.peek() and scan.peek() in QUOTES:
        name = read_quoted(scan, dots=True)
    else:
        while scan.peek().isalnum() or scan.peek() in ("_", "."):
            scan.pos += 1
        name = scan.text[start : scan.pos]
        if scan.peek() in ("*", "{"):
            scan.fail(
                scan.pos, "a class is named in full, without wildcards; write `@Conv1d | @Conv2d` for several"
            )
    if not all(name.split(".")):
        scan.fail(start, "a class name is expected after `@`, such as `@Linear` or `@torch.nn.Linear`")
    scan.expect_end()
    return Type(name, exact)


def read_state(scan: Scanner) -> State:
    """Read ``:param`` and the like."""
    scan.pos += 1
    start = scan.pos
    while scan.peek().isalnum() or scan.peek() == "_":
        scan.pos += 1
    name = scan.text[start : scan.pos]
    if name not in _STATES:
        known = ", ".join(f"`:{state}`" for state in _STATES)
        scan.fail(start, f"unknown state{_named(name)};{did_you_mean(name, _STATES, ':')} known are {known}")
    scan.expect_end()
    return State(name)


def starts_field(scan: Scanner) -> bool:
    """Tell whether the bracket here opens a field rather than a slice."""
    match = _FIELD.match(scan.text, scan.pos + 1)
    return match is not None and not match[1][0].isdecimal()


def read_field(scan: Scanner) -> Field:
    """Read ``[ndim>=2]`` and the like."""
    start = scan.pos
    match = _FIELD.match(scan.text, start + 1)
    assert match is not None  # `starts_field` said so
    name, comparison, value = match[1], match[2], match[3].rstrip()
    if name not in _FIELDS:
        known = ", ".join(_FIELDS)
        scan.fail(match.start(1), f"unknown field `{name}`;{did_you_mean(name, _FIELDS)} known are {known}")
    if comparison is None:
        scan.fail(match.end(1), f"a comparison is expected after `{name}`: one of = != < <= > >=")
    if comparison == "==":
        scan.fail(match.start(2), "write `=` for equal")
    if scan.text[match.end() : match.end() + 1] != "]":
        scan.fail(start, "this `[` is never closed; add `]`")
    if name in ("dtype", "device", "shape") and comparison not in ("=", "!="):
        scan.fail(match.start(2), f"{name} has no order; only = and != are possible")
    scan.pos = match.start(3)
    parsed = _read_value(scan, name, value)
    scan.pos = match.end() + 1
    scan.expect_end()
    return Field(name, cast(Comparison, comparison), parsed)


def _read_value(scan: Scanner, name: FieldName, value: str) -> FieldValue:
    if name == "dtype":
        dtype = canonical_dtype(value)
        if dtype is None:
            hint = did_you_mean(value.lower(), SPELLINGS) or " write one such as float32, bfloat16 or f16;"
            scan.fail(scan.pos, f"unknown dtype{_named(value)};{hint}".rstrip(";"))
        return dtype
    if name == "device":
        if not value:
            scan.fail(scan.pos, "a device is expected, such as cpu, meta, cuda or cuda:0")
        return value
    if name == "shape":
        if not _SHAPE.fullmatch(value):
            scan.fail(scan.pos, "a shape is written 64x3x7x7, and () for a scalar")
        return () if value == "()" else tuple(map(int, value.split("x")))
    match = _NUMBER.fullmatch(value)
    if match is None or len(value) > _LONGEST_NUMBER:
        long = f" of at most {_LONGEST_NUMBER} characters" if match else ""
        scan.fail(scan.pos, f"{name} is compared with a number{long}, such as 2, 1_000 or 1e6")
    return _number(*match.groups(default=""))


def _number(whole: str, fraction: str, exponent: str) -> int | float:
    """Put a number together exactly; it is an int where it has no fraction left."""
    digits, power = int(whole + fraction), int(exponent or 0) - len(fraction)
    if power >= 0:
        return digits * int(10**power)
    scale = int(10**-power)
    quotient, rest = divmod(digits, scale)
    return digits / scale if rest else quotient


def _named(name: str) -> str:
    return f" `{name}`" if name else ""
