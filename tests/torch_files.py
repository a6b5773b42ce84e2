"""Files as torch.save writes them, made by hand: any pickle, with any storages, in either format."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from contextlib import contextmanager

_seen = None
_FOREIGN = (
    "import",
    "exec",
    "compile",
    "pickle",
    "marshal",
    "os.",
    "subprocess",
    "socket",
    "ctypes",
    "code",
    "sys.",
)


def _look(event, arguments):
    if _seen is not None and event.startswith(_FOREIGN):
        _seen.append((event, arguments))


sys.addaudithook(_look)


@contextmanager
def watched():
    """Collect what Python's audit events say of imports, code and programs that are run meanwhile."""
    global _seen  # noqa: PLW0603 - an audit hook can't be taken away
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


MAGIC = 0x1950A86A20F9469CFC6C


def zipped(program, storages=None, *, folder="archive", records=None):
    """Return the bytes of a file in the format since PyTorch 1.6."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", data)
        for name, data in {"version": b"3\n", **(records or {})}.items():
            archive.writestr(f"{folder}/{name}", data)
    return made.getvalue()


def legacy(program, storages=None):
    """Return the bytes of a file in the format from before 1.6; each storage is (number of elements, bytes)."""
    storages = storages or {}
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, facts))
    tail = b"".join(struct.pack("<q", numel) + data for numel, data in storages.values())
    return head + program + pickle.dumps(list(storages), 2) + tail


def proto(body, version=2):
    """Return a whole pickle: a protocol, instructions, the end."""
    return b"\x80" + bytes([version]) + body + b"."


def text(value):
    """Return the instruction that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    """Return the instruction that pushes a whole number."""
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(full):
    """Return the instruction that pushes a global."""
    module, _, name = full.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def tupled(*items):
    """Return the instructions that push a tuple."""
    return b"(" + b"".join(items) + b"t"


def storage(key="0", kind="torch.FloatStorage", numel=4, location="cpu", view=None):
    """Return the instructions that push a storage; the old format says of each whether it is a view (b"N": no)."""
    parts = [text("storage"), named(kind), text(key), text(location), number(numel)]
    return tupled(*parts, *(() if view is None else (view,))) + b"Q"


def tensor(of=None, offset=0, shape=(4,), stride=(1,)):
    """Return the instructions that push a tensor."""
    sizes, steps = (tupled(*map(number, values)) for values in (shape, stride))
    hooks = named("collections.OrderedDict") + b")R"
    arguments = tupled(of or storage(), number(offset), sizes, steps, b"\x89", hooks)
    return named("torch._utils._rebuild_tensor_v2") + arguments + b"R"


OLD = storage(view=b"N")
FLOATS = struct.pack("<4f", 1, 2, 3, 4)
