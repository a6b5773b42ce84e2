"""What each opcode does to a `Machine`: the ones that files of torch.save need, and a refusal for all others."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from torchkeep.formats.pickles.constructors import Constructor, build, lookup, new_object
from torchkeep.formats.pickles.keys import checked_keys, mapping, target
from torchkeep.formats.pickles.machine import MAX_MARKS, SET_ITEMS
from torchkeep.formats.pickles.objects import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchkeep.formats.pickles.machine import Handler, Machine

_MAX_LONG: Final = 4096
"""Bytes of the largest whole number."""
_MAX_LINE: Final = 1024
"""Bytes of the longest name of a module or class."""
_MEMO_ROOM: Final = 1024
_UNSET: Final = object()
_INT32: Final = Struct("<i")
_UINT16: Final = Struct("<H")
_UINT32: Final = Struct("<I")
_UINT64: Final = Struct("<Q")
_FLOAT64: Final = Struct(">d")


# Arguments of instructions


def _byte(m: Machine) -> int:
    value = m.data[m.at]
    m.at += 1
    return value


def _uint32(m: Machine) -> int:
    value: int = _UINT32.unpack_from(m.data, m.at)[0]
    m.at += 4
    return value


def _uint64(m: Machine) -> int:
    value: int = _UINT64.unpack_from(m.data, m.at)[0]
    m.at += 8
    return value


def _line(m: Machine) -> bytes:
    stop = m.data.find(b"\n", m.at, m.at + _MAX_LINE)
    if stop < 0:
        m.take(_MAX_LINE)
        raise m.malformed(f"has a line of more than {_MAX_LINE} bytes")
    line = m.data[m.at : stop]
    m.at = stop + 1
    return line


# The program itself


def _protocol(m: Machine) -> None:
    version = _byte(m)
    if m.begun != m.first:
        raise m.malformed("says twice which protocol it is in")
    if not 2 <= version <= 5:  # noqa: PLR2004 - torch.save has written 2 from the start, and 5 is the last
        raise m.malformed(f"is in protocol {version}, and 2 to 5 are read")


def _frame(m: Machine) -> None:
    length = _uint64(m)
    if length > len(m.data) - m.at:
        m.take(length)


def _mark(m: Machine) -> None:
    if len(m.marks) >= MAX_MARKS:
        raise m.malformed(f"nests more than {MAX_MARKS} deep")
    m.marks.append(m.stack)
    m.stack = []


# Plain values


def _none(m: Machine) -> None:
    m.stack.append(None)


def _true(m: Machine) -> None:
    m.stack.append(True)


def _false(m: Machine) -> None:
    m.stack.append(False)


def _binint(m: Machine) -> None:
    m.stack.append(_INT32.unpack_from(m.data, m.at)[0])
    m.at += 4


def _binint1(m: Machine) -> None:
    m.stack.append(m.data[m.at])
    m.at += 1


def _binint2(m: Machine) -> None:
    m.stack.append(_UINT16.unpack_from(m.data, m.at)[0])
    m.at += 2


def _long1(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_byte(m)), "little", signed=True))


def _long4(m: Machine) -> None:
    length = _uint32(m)
    if length > _MAX_LONG:
        raise m.malformed(f"has a whole number of {length} bytes, and at most {_MAX_LONG} are read")
    m.stack.append(int.from_bytes(m.take(length), "little", signed=True))


def _int_line(m: Machine) -> None:
    """A number in digits: Python 2 wrote those beyond 32 bits so."""
    text = _line(m)
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > len(str(2**63)):
        raise m.malformed("has a whole number that is none")
    m.stack.append(int(text))


def _binfloat(m: Machine) -> None:
    m.stack.append(_FLOAT64.unpack_from(m.data, m.at)[0])
    m.at += 8


def _text(length: Callable[[Machine], int]) -> Handler:
    def handler(m: Machine) -> None:
        raw = m.take(length(m))
        try:
            m.stack.append(raw.decode())
        except UnicodeDecodeError as cause:
            raise m.malformed("has text that is not UTF-8") from cause

    return handler


def _bytes(length: Callable[[Machine], int], kind: type[bytes | bytearray]) -> Handler:
    def handler(m: Machine) -> None:
        m.stack.append(kind(m.take(length(m))))

    return handler


# Containers


def _empty_tuple(m: Machine) -> None:
    m.stack.append(())


def _empty_list(m: Machine) -> None:
    m.stack.append([])


def _empty_dict(m: Machine) -> None:
    m.stack.append({})


def _empty_set(m: Machine) -> None:
    m.spend(SET_ITEMS)
    m.stack.append(set())


def _tuple(m: Machine) -> None:
    items = m.pop_mark()
    m.stack.append(tuple(items))


def _tuple1(m: Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


def _tuple2(m: Machine) -> None:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)


def _tuple3(m: Machine) -> None:
    last = m.stack.pop()
    middle = m.stack.pop()
    m.stack[-1] = (m.stack[-1], middle, last)


def _frozenset(m: Machine) -> None:
    items = m.pop_mark()
    m.spend(SET_ITEMS)
    m.stack.append(frozenset(checked_keys(m, items)))


def _append(m: Machine) -> None:
    item = m.stack.pop()
    target(m, list).append(item)


def _appends(m: Machine) -> None:
    items = m.pop_mark()
    target(m, list).extend(items)


def _add_items(m: Machine) -> None:
    items = m.pop_mark()
    target(m, set).update(checked_keys(m, items))


def _set_item(m: Machine) -> None:
    value = m.stack.pop()
    (key,) = checked_keys(m, [m.stack.pop()])
    mapping(m)[key] = value


def _set_items(m: Machine) -> None:
    items = m.pop_mark()
    if len(items) % 2:
        raise m.malformed("has a key without a value")
    # Counter has an update of its own, which adds up.
    dict.update(mapping(m), zip(checked_keys(m, items[::2]), items[1::2], strict=True))


# Memo


def _keep(m: Machine, index: int) -> None:
    memo = m.memo
    if index == len(memo):
        memo.append(m.stack[-1])
        return
    # Whoever writes a pickle counts up; a number far beyond that would only cost memory.
    if index > m.at + _MEMO_ROOM:
        raise m.malformed(f"keeps a value under the number {index}")
    memo.extend([_UNSET] * (index + 1 - len(memo)))
    memo[index] = m.stack[-1]


def _kept(m: Machine, index: int) -> None:
    if index >= len(m.memo) or m.memo[index] is _UNSET:
        raise m.malformed(f"takes the value {index}, which it has not kept")
    m.stack.append(m.memo[index])


def _binput(m: Machine) -> None:
    _keep(m, _byte(m))


def _long_binput(m: Machine) -> None:
    _keep(m, _uint32(m))


def _memoize(m: Machine) -> None:
    m.memo.append(m.stack[-1])


def _binget(m: Machine) -> None:
    _kept(m, _byte(m))


def _long_binget(m: Machine) -> None:
    _kept(m, _uint32(m))


# What reaches code in Python's own machine


def _global(m: Machine) -> None:
    module, name = _line(m), _line(m)
    try:
        m.stack.append(lookup(m, module.decode(), name.decode()))
    except UnicodeDecodeError as cause:
        wanted = (module + b"." + name).decode(errors="backslashreplace")
        raise m.unsafe(wanted, f"asks for {wanted!r}") from cause


def _stack_global(m: Machine) -> None:
    name = m.stack.pop()
    module = m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise m.unsafe("", "asks for a global whose name is no text")
    m.stack.append(lookup(m, module, name))


def _reduce(m: Machine) -> None:
    arguments = m.stack.pop()
    called = m.stack[-1]
    if type(called) is not Constructor:
        raise m.unsafe("", f"asks to call {kind_of(called)}")
    if type(arguments) is not tuple:
        raise m.malformed(f"gives {called.name} no tuple of arguments")
    m.stack[-1] = called.make(m, arguments)


def _new_object(m: Machine) -> None:
    arguments = m.stack.pop()
    m.stack[-1] = new_object(m, m.stack[-1], arguments)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    build(m, m.stack[-1], state)


def _persistent(m: Machine) -> None:
    wanted = m.stack.pop()
    if type(wanted) is not tuple or wanted[:1] != ("storage",) or m.resolve is None:
        raise m.unsafe("", "asks for something outside the pickle that is no storage")
    m.stack.append(m.resolve(m, wanted[1:]))


def _unsafe(name: str) -> Handler:
    def handler(m: Machine) -> None:
        raise m.unsafe("", f"holds the instruction {name}, which can run code and which no file of tensors needs")

    return handler


def _unknown(m: Machine) -> None:
    raise m.malformed(f"holds the instruction {m.data[m.begun]:#04x}, which no file of torch.save needs")


_KNOWN: Final[dict[int, Handler]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): _mark,
    ord("N"): _none,
    0x88: _true,
    0x89: _false,
    ord("J"): _binint,
    ord("K"): _binint1,
    ord("M"): _binint2,
    0x8A: _long1,
    0x8B: _long4,
    ord("I"): _int_line,
    ord("G"): _binfloat,
    ord("X"): _text(_uint32),
    0x8C: _text(_byte),
    0x8D: _text(_uint64),
    # Python 2's text; torch.load takes it for UTF-8, too.
    ord("U"): _text(_byte),
    ord("T"): _text(_uint32),
    ord("C"): _bytes(_byte, bytes),
    ord("B"): _bytes(_uint32, bytes),
    0x8E: _bytes(_uint64, bytes),
    0x96: _bytes(_uint64, bytearray),
    ord(")"): _empty_tuple,
    ord("]"): _empty_list,
    ord("}"): _empty_dict,
    0x8F: _empty_set,
    ord("t"): _tuple,
    0x85: _tuple1,
    0x86: _tuple2,
    0x87: _tuple3,
    0x91: _frozenset,
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _add_items,
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("q"): _binput,
    ord("r"): _long_binput,
    0x94: _memoize,
    ord("h"): _binget,
    ord("j"): _long_binget,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("i"): _unsafe("INST"),
    ord("o"): _unsafe("OBJ"),
    0x92: _unsafe("NEWOBJ_EX"),
    0x82: _unsafe("EXT1"),
    0x83: _unsafe("EXT2"),
    0x84: _unsafe("EXT4"),
    ord("P"): _unsafe("PERSID"),
    0x97: _unsafe("NEXT_BUFFER"),
    0x98: _unsafe("READONLY_BUFFER"),
}
HANDLERS: Final = tuple(_KNOWN.get(code, _unknown) for code in range(256))
"""What to do for each byte that an instruction can be."""
