"""Constructor arguments as JSON and back: plain values, and what torch's constructors take besides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
import torch
from torch import nn
from torch.nn import functional, init

from torchkeep.errors import FormatError, RecipeError, UnsavableError
from torchkeep.formats.paths import Path
from torchkeep.formats.values import Encoder, decode
from torchkeep.tensors.dtypes import dtype_name, torch_dtype
from torchkeep.tying.allocating import unset

if TYPE_CHECKING:
    from torchkeep.formats.values import Node, Reader


class Shape(NamedTuple):
    """Stands for an argument that was this tensor, whose values are no part of a recipe."""

    tensor: torch.Tensor


class Template(NamedTuple):
    """Stands for an argument that was a module like this one, of which the constructor made copies."""

    module: nn.Module


ModuleHook: TypeAlias = Callable[[nn.Module | Template, Path], "Node"]

_ACTIVATIONS: Final = (
    *("celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("log_softmax", "logsigmoid", "mish", "normalize", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu"),
    *("softmax", "softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink"),
    *("pairwise_distance", "cosine_similarity"),
)
_ELEMENTWISE: Final = ("abs", "cos", "erf", "exp", "relu", "sigmoid", "sin", "square", "tanh")


@cache
def functions() -> dict[str, Any]:
    """Return the functions that a recipe may name: torch's activations, initialisers and a few more."""
    named = {f"torch.nn.functional.{name}": getattr(functional, name) for name in _ACTIVATIONS}
    named |= {f"torch.{name}": getattr(torch, name) for name in _ELEMENTWISE}
    named |= {f"torch.nn.init.{name}": value for name, value in vars(init).items() if name.endswith("_")}
    return {name: value for name, value in named.items() if callable(value) and "__" not in name}


@cache
def _function_names() -> dict[int, str]:
    # By id, because builtin functions compare equal in surprising ways; the table keeps them alive.
    return {id(value): name for name, value in reversed(functions().items())}


class ArgumentEncoder(Encoder):
    """Encodes arguments, and remembers what it could not.

    Args:
        module: says what stands for a module.
    """

    def __init__(self, module: ModuleHook) -> None:
        super().__init__(self._torch)
        self._module = module

    def _torch(self, value: object, path: Path) -> tuple[str, Node] | None:
        """Give a tag to what only torch's constructors take."""
        if isinstance(value, nn.Module | Template):
            return "module", self._module(value, path)
        found = _leaf(value) or self._compound(value, path)
        if found is None and callable(value):
            raise UnsavableError(
                "it is code, and a recipe holds none; pass an nn.Module, a registered class, a function of "
                "torch.nn.functional, or a name that the constructor looks up"
            )
        return found

    def _compound(self, value: object, path: Path) -> tuple[str, Node] | None:
        if isinstance(value, Enum):
            return "member", [_id_of(type(value)), value.name]
        if is_dataclass(value) and not isinstance(value, type):
            shown = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
            encoded = {key: self.encode(item, Path(path, key)) for key, item in shown.items()}
            return "dataclass", [_id_of(type(value)), encoded]
        if type(value) is functools.partial:
            return "partial", [self.encode(part, path) for part in (value.func, value.args, value.keywords)]
        return None


def _leaf(value: object) -> tuple[str, Node] | None:
    for kind, tag, node in _LEAVES:
        if type(value) is kind:
            return tag, node(value)
    if isinstance(value, type):
        return "class", _id_of(value)
    if id(value) in _function_names():
        return "function", _function_names()[id(value)]
    if isinstance(value, torch.Tensor):
        raise UnsavableError(
            f"it is a tensor of shape {tuple(value.shape)}, and values belong in files; pass the shape, register "
            "a parameter or buffer of it, and load that"
        )
    return None


def _id_of(cls: type) -> str:
    from torchkeep.recipes.registry import id_of  # noqa: PLC0415 - registering remembers, which encodes

    found = id_of(cls)
    if found is None:
        raise UnsavableError(
            f"the class {cls.__qualname__} is not registered; decorate it with @tk.block, or pass plain values"
        )
    return found


def _shape_node(shape: Shape) -> Node:
    tensor = shape.tensor
    node: dict[str, Any] = {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype)}
    if isinstance(tensor, nn.Parameter):
        node["requires_grad"] = tensor.requires_grad
    return node


_LEAVES: Final[tuple[tuple[type, str, Callable[[Any], Node]], ...]] = (
    (torch.dtype, "dtype", dtype_name),
    (torch.device, "device", str),
    (torch.Size, "size", list),
    (Shape, "tensor", _shape_node),
    (torch.memory_format, "memory_format", lambda value: str(value).removeprefix("torch.")),
)


class ArgumentDecoder:
    """Turns nodes back into arguments; nothing in a node is trusted.

    Args:
        module: makes what stands for a module.
        look_up: returns the class of an id, or raises UnknownBlockError.
        dry: only see whether a node is one: construct nothing.
    """

    def __init__(self, module: Callable[[Node], Any], look_up: Callable[[Node], type], *, dry: bool) -> None:
        self._look_up, self._dry = look_up, dry
        self._readers: dict[str, Reader] = {
            "module": module,
            "class": look_up,
            "member": self._member,
            "dataclass": self._dataclass,
            "partial": self._partial,
            "function": _function,
            "dtype": _dtype,
            "device": torch.device,
            "size": torch.Size,
            "memory_format": _memory_format,
            "tensor": self._tensor,
        }

    def decode(self, node: Node) -> Any:
        """Return the argument.

        Raises:
            RecipeError: the node is none that an `ArgumentEncoder` makes.
        """
        try:
            return decode(node, readers=self._readers)
        except FormatError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, RecipeError):
                cause = cause.__cause__
            raise (cause or RecipeError(str(error))) from None

    def _member(self, part: Node) -> Any:
        name, key = part
        cls = self._look_up(name)
        if not issubclass(cls, Enum) or key not in cls.__members__:
            raise RecipeError(f"{name!r} has no member {key!r}")
        return cls[key]

    def _dataclass(self, part: Node) -> Any:
        name, values = part
        cls = self._look_up(name)
        if not is_dataclass(cls) or issubclass(cls, nn.Module):
            raise RecipeError(f"{name!r} is no dataclass, but the recipe gives fields for one")
        given = {key: self.decode(value) for key, value in values.items()}
        unknown = given.keys() - {one.name for one in fields(cls) if one.init}
        if unknown:
            raise RecipeError(f"{name!r} has no field {', '.join(map(repr, sorted(unknown)))}")
        return None if self._dry else cls(**given)

    def _partial(self, part: Node) -> Any:
        function, args, keywords = map(self.decode, part)
        return None if self._dry else functools.partial(function, *args, **keywords)

    def _tensor(self, part: Node) -> Any:
        """Make a tensor that says that nobody has given it values (see `unset`)."""
        known = msgspec.convert(part, _Unset)
        dtype = _dtype(known.dtype)
        if self._dry:
            return None
        tensor = torch.empty(known.shape, dtype=dtype)
        unset(tensor)
        return tensor if known.requires_grad is None else nn.Parameter(tensor, known.requires_grad)


class _Unset(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor of which a recipe says everything but the values; without ``requires_grad`` it is no Parameter."""

    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    dtype: str
    requires_grad: bool | None = None


def _function(name: Node) -> Any:
    if name not in functions():
        raise RecipeError(
            f"the function {name!r} is none of those that a recipe may name, torch's activations and such"
        )
    return functions()[name]


def _dtype(name: Node) -> torch.dtype:
    found = torch_dtype(name)
    if found is None:
        raise RecipeError(f"{name!r} is no dtype that this torch has")
    return found


def _memory_format(name: Node) -> torch.memory_format:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.memory_format):
        raise RecipeError(f"{name!r} is no memory format")
    return found
