"""Hostile files: whatever a pickle asks for, nothing is imported or called, and the error says what it was.

Every opcode through which Python's own machine reaches code is tried with things that would be noticed.
"""

from __future__ import annotations

import pytest

from torch_files import FLOATS, OLD, legacy, named, number, proto, storage, tensor, text, tupled, watched, zipped
from torchkeep.errors import FormatError, UnsafeFileError
from torchkeep.formats.pickles import open_pickled

ORDERED = named("collections.OrderedDict") + b")R"
GLOBALS = [
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output", "builtins.eval",
    "builtins.exec", "builtins.getattr", "builtins.setattr", "builtins.__import__", "builtins.open",
    "builtins.print", "builtins.object", "builtins.type", "__builtin__.eval", "__builtin__.getattr",
    "sys.exit", "sys.modules", "importlib.import_module", "functools.partial", "operator.attrgetter",
    "operator.methodcaller", "types.CodeType", "types.FunctionType", "pickle.loads", "_pickle.loads",
    "marshal.loads", "code.interact", "runpy.run_path", "webbrowser.open", "shutil.rmtree", "socket.socket",
    "ctypes.CDLL", "collections.namedtuple", "collections.defaultdict", "copyreg._reconstructor",
    "copy_reg._reconstructor", "copyreg.__newobj__", "torch.load", "torch.hub.load", "torch.jit.load",
    "torch.serialization.load", "torch.ops.load_library", "torch._utils._import_dotted_name",
    "torch.nn.modules.linear.Linear", "torch.autograd.function.Function",
    "torch.storage._load_from_bytes.__globals__", "torch.FloatTensor", "numpy.load", "numpy.ndarray",
    "numpy.f2py.crackfortran.myeval", "argparse.Namespace", "pathlib.PosixPath", "models.yolo.Model",
    "__main__.Net", "torchkeep.errors.FormatError", "torchkeep.formats.pickles.objects.TensorRef",
    "collections.OrderedDict.__class__", "torch._utils", "torch.Size.__new__", "torch.", ".system", ".",
]  # fmt: skip


TWO = {"0": (4, FLOATS), "1": (0, b"")}


def describe(tmp_path, data):
    path = tmp_path / "hostile.pt"
    path.write_bytes(data)
    with watched() as seen:
        try:
            return open_pickled(path)
        finally:
            assert not seen


def refused(tmp_path, body, version=2, storages=None):
    """Return the error that a pickle gives; both formats must find it equally safe."""
    errors = []
    for data in (zipped(proto(body, version), storages), legacy(proto(body, version))):
        with pytest.raises(FormatError) as caught:
            describe(tmp_path, data)
        errors.append(caught.value)
    assert isinstance(errors[0], UnsafeFileError) == isinstance(errors[1], UnsafeFileError)
    return errors[0]


def rejected_global(tmp_path, body, wanted, version=2):
    data = zipped(proto(body, version))
    with pytest.raises(UnsafeFileError) as caught:
        describe(tmp_path, data)
    error = caught.value
    assert error.global_name == wanted
    assert repr(wanted) in str(error)
    assert f"byte {error.offset} of the file" in str(error)
    assert "nothing was imported or called" in str(error)
    return data[error.offset :]


@pytest.mark.parametrize("wanted", GLOBALS)
def test_a_global_is_refused_by_name_before_it_is_called(tmp_path, wanted):
    """GLOBAL: anything outside the table is an error that names it and where it stands."""
    rest = rejected_global(tmp_path, named(wanted), wanted)
    assert rest.startswith(named(wanted))
    assert rejected_global(tmp_path, named(wanted) + tupled(text("x")) + b"R", wanted)


@pytest.mark.parametrize("wanted", GLOBALS)
def test_a_global_from_the_stack_is_refused_by_name(tmp_path, wanted):
    """STACK_GLOBAL: the same."""
    module, _, name = wanted.rpartition(".")
    rest = rejected_global(tmp_path, text(module) + text(name) + b"\x93", wanted, version=4)
    assert rest.startswith(b"\x93")


def test_the_offset_is_the_one_in_the_old_format_too(tmp_path):
    """The offset is counted from the start of the file, whatever the format."""
    data = legacy(proto(named("os.system")))
    with pytest.raises(UnsafeFileError) as caught:
        describe(tmp_path, data)
    assert data[caught.value.offset :].startswith(named("os.system"))


@pytest.mark.parametrize(
    "body",
    [
        b"(" + text("echo") + b"ios\nsystem\n",
        b"(" + named("collections.OrderedDict") + text("x") + b"o",
        named("collections.OrderedDict") + b")}\x92",
        named("collections.OrderedDict") + b")\x81",
        named("torch.Size") + b")\x81",
        named("torch._utils._rebuild_tensor_v2") + b")\x81",
        b"\x82\x01",
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        b"Pos.system\n",
        b"\x97",
        b"B\x01\x00\x00\x00a\x98",
    ],
    ids=[
        "INST",
        "OBJ",
        "NEWOBJ_EX",
        "NEWOBJ",
        "NEWOBJ-Size",
        "NEWOBJ-tensor",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "NEXT_BUFFER",
        "READONLY_BUFFER",
    ],
)
def test_opcodes_that_reach_code_are_refused(tmp_path, body):
    """No opcode makes an object of a class, looks into a registry of extensions, or takes foreign memory."""
    assert type(refused(tmp_path, body)) is UnsafeFileError


@pytest.mark.parametrize(
    "called", [text("os.system"), b"N", b"]", b"}", number(5), ORDERED, named("torch.float32")]
)
def test_only_constructors_are_called(tmp_path, called):
    """REDUCE: what is called must come from the table, and be there to be called."""
    assert type(refused(tmp_path, called + b")R")) is UnsafeFileError


@pytest.mark.parametrize("kind", ["torch.FloatStorage", "torch.storage.UntypedStorage"])
def test_storage_classes_are_not_called(tmp_path, kind):
    """A storage's class may be named, never called."""
    assert type(refused(tmp_path, named(kind) + b"(" + number(1 << 40) + b"tR")) is UnsafeFileError


@pytest.mark.parametrize(
    "body",
    [
        ORDERED + b"}" + text("__class__") + named("collections.Counter") + b"sb",
        ORDERED + b"}" + text("_metadata") + b"N" + b"s" + text("x") + b"Nsb",
        ORDERED + b"(" + b"}}tb",
        ORDERED + b"Nb",
        b"}}b",
        b"]}b",
        text("a") + b"}b",
        named("collections.OrderedDict") + b"}b",
        named("torch.Size") + b"}" + text("make") + b"Nsb",
        named("collections.Counter") + b")R}" + text("x") + b"Nsb",
    ],
)
def test_attributes_are_not_set(tmp_path, body):
    """BUILD: only the _metadata of an OrderedDict is taken, and nothing else of anything."""
    assert type(refused(tmp_path, body)) is UnsafeFileError


def test_attributes_of_tensors_are_not_set(tmp_path):
    """BUILD on a tensor or a parameter can't reach an attribute."""
    state = b"}" + text("data") + b"Nsb"
    made = named("torch.nn.parameter.Parameter") + tensor() + b"\x85R"
    for body in (tensor() + state, made + state):
        with pytest.raises(UnsafeFileError, match="set attributes"):
            describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


@pytest.mark.parametrize(
    "body",
    [
        b"}" + number(1) + b"a",
        b"](" + number(1) + b"\x90",
        b"\x8f" + number(1) + b"a",
        ORDERED + number(1) + b"a",
        text("a") + number(1) + number(1) + b"s",
        b"]" + number(0) + number(1) + b"s",
        named("collections.Counter") + number(0) + number(1) + b"s",
        b"N(" + number(0) + number(1) + b"u",
        b"N(" + number(0) + b"e",
    ],
)
def test_containers_are_changed_only_as_what_they_are(tmp_path, body):
    """APPEND, ADDITEMS and SETITEMS never look up a method of what is on the stack."""
    assert type(refused(tmp_path, body, version=4)) is UnsafeFileError


@pytest.mark.parametrize(
    "wanted",
    [
        text("storage"),
        number(0),
        b")",
        tupled(text("module"), named("collections.OrderedDict")),
        tupled(b"N"),
        b"N",
    ],
)
def test_persistent_ids_name_storages_only(tmp_path, wanted):
    """BINPERSID: nothing but a storage can be asked for from outside the pickle."""
    assert type(refused(tmp_path, wanted + b"Q")) is UnsafeFileError


@pytest.mark.parametrize(
    "parts",
    [
        (text("torch.FloatStorage"), text("0"), text("cpu"), number(4)),
        (named("torch.float32"), text("0"), text("cpu"), number(4)),
        (named("torch.Size"), text("0"), text("cpu"), number(4)),
        (named("torch.FloatStorage"), number(0), text("cpu"), number(4)),
        (named("torch.FloatStorage"), text("0"), b"N", number(4)),
        (named("torch.FloatStorage"), text("0"), text("cpu"), number(-1)),
        (named("torch.FloatStorage"), text("0"), text("cpu"), number(5)),
        (named("torch.FloatStorage"), text("0"), text("cpu"), number(2**62)),
        (named("torch.FloatStorage"), text("0"), text("cpu"), b"\x88"),
        (named("torch.FloatStorage"), text("../../secret"), text("cpu"), number(4)),
        (named("torch.FloatStorage"), text("1"), text("cpu"), number(4)),
        (named("torch.FloatStorage"), text("0"), text("cpu")),
        (named("torch.FloatStorage"), text("0" * 1000), text("cpu"), number(4)),
        (named("torch.FloatStorage"), text("0"), text("c" * 1000), number(4)),
    ],
)
def test_a_storage_that_is_not_there_is_refused(tmp_path, parts):
    """A storage's class, key, device and size are checked against the file before anything is made of them."""
    with pytest.raises(FormatError, match="storage"):
        describe(tmp_path, zipped(proto(tensor(tupled(text("storage"), *parts) + b"Q")), {"0": FLOATS}))


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**62, 4), (0, 0)),
        (2**62, (1,), (1,)),
        (0, (4,), (1, 1)),
        (0, (2**62,), (2**62,)),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
        (0, (1,) * 65, (1,) * 65),
        (0, (2**64,), (0,)),
        (2**61, (0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, offset, shape, stride):
    """Offset, sizes and strides can't reach memory that the storage does not have."""
    with pytest.raises(FormatError, match="tensor"):
        describe(tmp_path, zipped(proto(tensor(offset=offset, shape=shape, stride=stride)), {"0": FLOATS}))


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ("torch._utils._rebuild_qtensor", "quantised tensor"),
        ("torch._utils._rebuild_sparse_tensor", "sparse tensor"),
        ("torch._utils._rebuild_nested_tensor", "nested tensor"),
        ("torch._utils._rebuild_wrapper_subclass", "class of its own"),
        ("torch.distributed.tensor.DTensor", "DTensor"),
        ("numpy.core.multiarray._reconstruct", "NumPy array"),
        ("torch.QInt8Storage", "quantised tensor"),
        ("torch.storage._load_from_bytes", "storage that is no tensor"),
    ],
)
def test_kinds_of_tensors_that_are_not_read_are_named(tmp_path, wanted, match):
    """What is harmless but not read says what it is and what to save instead."""
    error = refused(tmp_path, named(wanted))
    assert type(error) is FormatError
    assert match in str(error)
    assert "save" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        named("torch.FloatStorage"),
        b"]" + named("torch.Size") + b"a",
        b"}" + text("a") + named("collections.OrderedDict") + b"s",
        storage(),
    ],
)
def test_classes_and_storages_are_no_values(tmp_path, body):
    """What a file may name for other things to use does not come out by itself."""
    with pytest.raises(FormatError, match="where a tensor, a container or a plain value is expected"):
        describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"]" + named("torch.Tensor") + b"a", "holds a class or function where"),
        (b"]" + named("torch.FloatStorage") + b"a", "holds a class of storages where"),
        (storage(), "holds a storage where"),
        (tensor() + b"}b", "set attributes of a tensor"),
        (named("torch.float32") + b")R", "asks to call a torch.dtype"),
        (named("collections.OrderedDict") + b")R" + b"Na", "asks to change an OrderedDict as"),
        (named("collections.OrderedDict") + b"N\x85R", "makes an OrderedDict of something else"),
        (b"NN}s", "asks to set an item of None as"),
    ],
)
def test_refusals_speak_of_what_a_file_names(tmp_path, body, said):
    """A sentence names kinds of values as their user knows them, not by the classes that describe them here."""
    with pytest.raises(FormatError, match=said):
        describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_only_numbers_with_fractions_require_a_gradient(tmp_path, dtype):
    """A parameter of whole numbers that is trained can't be."""
    kind = {"int64": "Long", "bool": "Bool", "uint8": "Byte"}[dtype]
    made = tensor(storage(kind=f"torch.{kind}Storage", numel=2), shape=(2,))
    call = named("torch._utils._rebuild_parameter")
    hooks = named("collections.OrderedDict") + b")R"
    assert describe(
        tmp_path, zipped(proto(call + b"(" + made + b"\x89" + hooks + b"tR"), {"0": FLOATS})
    ).root.parameter
    with pytest.raises(FormatError, match=f"a tensor of {dtype} that requires a gradient"):
        describe(tmp_path, zipped(proto(call + b"(" + made + b"\x88" + hooks + b"tR"), {"0": FLOATS}))


def test_quantised_numbers_are_refused_as_a_dtype_too(tmp_path):
    """Untyped bytes with a quantised dtype are no way around the refusal."""
    bytes_ = storage(kind="torch.storage.UntypedStorage", numel=16)
    hooks = named("collections.OrderedDict") + b")R"
    inner = tupled(bytes_, number(0), tupled(number(4)), tupled(number(1)), b"\x89", hooks, named("torch.quint8"))
    with pytest.raises(FormatError, match="holds a quantised tensor"):
        describe(tmp_path, zipped(proto(named("torch._utils._rebuild_tensor_v3") + inner + b"R"), {"0": FLOATS}))


def test_tensors_among_the_versions_of_a_state_dict_are_refused(tmp_path):
    """_metadata holds plain values; a tensor there would have no name."""
    body = ORDERED + b"}" + text("_metadata") + b"}" + text("a") + tensor() + b"ssb"
    with pytest.raises(FormatError, match="tensors in the _metadata"):
        describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


def test_hooks_are_refused(tmp_path):
    """A tensor with hooks would have them called: refused, though their names could only be plain values."""
    hooks = b"]](" + number(1) + number(2) + b"ea\x85"
    call = named("torch._utils._rebuild_parameter") + b"(" + tensor() + b"\x88"
    body = call + named("collections.OrderedDict") + hooks + b"RtR"
    with pytest.raises(UnsafeFileError, match="hooks"):
        describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


@pytest.mark.parametrize("make", ["torch.Size", "torch._tensor._rebuild_from_type_v2", "builtins.set"])
def test_a_tensor_with_attributes_is_made_by_a_tensors_function_only(tmp_path, make):
    """_rebuild_from_type_v2 calls what it is given: only functions that rebuild tensors are taken, not itself."""
    inner = tupled(named(make), named("torch.Tensor"), b")", b"}")
    error = refused(tmp_path, named("torch._tensor._rebuild_from_type_v2") + inner + b"R")
    assert type(error) is UnsafeFileError


def test_a_tensor_of_a_class_of_its_own_is_refused(tmp_path):
    """The class that _rebuild_from_type_v2 is given must be torch's own."""
    inner = tupled(storage(), number(0), tupled(number(4)), tupled(number(1)))
    outer = tupled(named("torch._utils._rebuild_tensor"), named("torch.Size"), inner, b"}")
    body = named("torch._tensor._rebuild_from_type_v2") + outer + b"R"
    with pytest.raises(UnsafeFileError, match=r"class torch\.Size"):
        describe(tmp_path, zipped(proto(body), {"0": FLOATS}))


@pytest.mark.parametrize(
    "body",
    [
        b"]]", b"(", b"(N", b"NN", b"t", b"\x85", b"R", b"s", b"u", b"a", b"b", b"Q", b"h\x00", b"q\x00",
        b"(t(", b"h\x05N", b"]q\x00h\x01", b"Nq\xff0", b"0", b"2", b"1", b"Vabc\n", b"S'abc'\n", b"F1.5\n",
        b"L5L\n", b"d", b"l", b"g0\n", b"p0\n", b"Ix\n", b"I" + b"9" * 30 + b"\n", b"I-\n", b"I\n",
        b"N\x80\x02", b"cos", b"c\xff\n\xff\n", b"X\x02\x00\x00\x00\xff\xff", b"X\xff\xff\xff\xffabc",
        b"T\xff\xff\xff\x7fabc", b"\x8b\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\xff", b"\x8a\xffabc",
        b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x96" + b"\xff" * 8, b"\x95" + b"\xff" * 8 + b"N",
        b"Nr\xff\xff\xff\xff", b"c" + b"a" * 5000, b"}]Ns", b"}}Ns", b"}(]Nu", b"}(Nu", b"\x8f(]\x90",
        b"(]\x91", b"}\x8fNs",
    ],
)  # fmt: skip
def test_broken_programs_are_refused(tmp_path, body):
    """Missing values, wrong lengths, unknown instructions, keys that can't be hashed: this library's error."""
    assert isinstance(refused(tmp_path, body, version=4), FormatError)


@pytest.mark.parametrize("version", [0, 1, 6, 255])
def test_other_protocols_are_refused(tmp_path, version):
    """Only protocols 2 to 5 are read."""
    assert "2 to 5" in str(refused(tmp_path, b"N", version=version))


@pytest.mark.parametrize(
    "body",
    [
        named("collections.OrderedDict") + b"]N\x85aR",
        named("collections.OrderedDict") + b"](NNNtaN\x85R",
        named("collections.OrderedDict") + b"}\x85R",
        named("collections.OrderedDict") + b"](]Nta\x85R",
        named("collections.OrderedDict") + b"]R",
        named("collections.Counter") + b"]\x85R",
        named("builtins.set") + b"]]a\x85R",
        named("builtins.set") + b"N\x85R",
        named("__builtin__.bytearray") + b"N\x85R",
        named("builtins.bytes") + b"N\x85R",
        named("builtins.complex") + text("1") + b"N\x86R",
        named("_codecs.encode") + text("a") + text("utf-8") + b"\x86R",
        named("_codecs.encode") + text("ä\u0100") + text("latin1") + b"\x86R",
        named("_codecs.encode") + text("a") + text("rot13") + b"\x86R",
        named("torch.Size") + b"]Na\x85R",
        named("torch.Size") + tupled(number(2**63)) + b"\x85R",
        named("torch.device") + b")R",
        named("torch.device") + text("cuda; rm -rf") + b"\x85R",
        named("torch.device") + text("cuda") + number(-1) + b"\x86R",
        named("torch.serialization._get_layout") + text("torch.sparse_coo") + b"\x85R",
        named("numpy.dtype") + text("O") + b"\x85R",
        named("numpy.core.multiarray.scalar") + b"NN\x86R",
        named("numpy.core.multiarray.scalar") + named("numpy.dtype") + text("f8") + b"\x85RC\x01a\x86R",
        named("torch._utils._rebuild_tensor_v2") + b")R",
        named("torch._utils._rebuild_tensor_v3") + b")R",
        named("torch._utils._rebuild_tensor") + b")R",
        named("torch._utils._rebuild_parameter") + b"N\x85R",
        named("torch._utils._rebuild_parameter_with_state") + b")R",
        named("torch._utils._rebuild_meta_tensor_no_storage") + b")R",
        named("torch._utils._rebuild_device_tensor_from_cpu_tensor") + b")R",
        named("torch.nn.parameter.Parameter") + b")R",
        named("torch.nn.parameter.Parameter") + b")\x81",
    ],
)
def test_wrong_arguments_are_refused(tmp_path, body):
    """Each constructor checks what it is given."""
    assert isinstance(refused(tmp_path, body, version=4), FormatError)


def test_an_old_files_keys_and_sizes_are_checked(tmp_path):
    """The storages after the pickles must be those that the tensors name, of the sizes that they name."""
    program = proto(tensor(OLD))
    for storages in (
        {},
        {"1": (4, FLOATS)},
        {"0": (3, FLOATS)},
        {"0": (-1, FLOATS)},
        {"0": (4, FLOATS), "1": (0, b"")},
    ):
        with pytest.raises(FormatError):
            describe(tmp_path, legacy(program, storages))
    with pytest.raises(FormatError, match="two different things"):
        describe(tmp_path, legacy(proto(b"]" + tensor(OLD) + b"a" + tensor(storage(numel=5, view=b"N")) + b"a")))
    outside = tensor(storage(view=b"(" + text("v") + b"K\x03K\x02t"), shape=(1,))
    with pytest.raises(FormatError, match="reaches beyond"):
        describe(tmp_path, legacy(proto(outside), {"0": (4, FLOATS)}))


def test_other_pickles_are_refused(tmp_path):
    """A pickle that torch.save did not write is named as such, before anything in it is looked at."""
    data = b"\x80\x04\x8c\x02os\x8c\x06system\x93."
    with pytest.raises(UnsafeFileError):
        describe(tmp_path, data)
    with pytest.raises(FormatError, match=r"none that torch\.save writes"):
        describe(tmp_path, b"\x80\x04]q\x00.")
