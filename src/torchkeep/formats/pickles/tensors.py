"""Tensors as pickles rebuild them: each function stands for one of torch's, checks its arguments and describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchkeep.dtypes import DTYPES
from torchkeep.formats.pickles.objects import Dtype, Ordered, Size, StorageRef, TensorRef

if TYPE_CHECKING:
    from torchkeep.formats.pickles.machine import Machine

INT64: Final = range(-(2**63), 2**63)
_LARGEST: Final = 2**63 - 1
_MAX_NDIM: Final = 64
_SEQUENCES: Final = frozenset({tuple, list, Size})
_DIFFERENTIABLE: Final = ("float", "bfloat", "complex")


def tensor_v1(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_tensor(storage, offset, size, stride)``."""
    match arguments:
        case [StorageRef() as storage, offset, shape, stride]:
            return _tensor(m, storage, storage.dtype, (offset, shape, stride))
        case _:
            raise m.malformed("makes a tensor of something else than a storage, an offset, sizes and strides")


def tensor_v2(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)``."""
    match arguments:
        case [StorageRef() as storage, offset, shape, stride, gradient, hooks, *metadata]:
            described = _tensor(m, storage, storage.dtype, (offset, shape, stride))
            return _finished(m, described, gradient, hooks, metadata)
        case _:
            raise m.malformed("makes a tensor of something else than a storage, an offset, sizes and strides")


def tensor_v3(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None)``."""
    match arguments:
        case [StorageRef() as storage, offset, shape, stride, gradient, hooks, Dtype(dtype), *metadata]:
            described = _tensor(m, storage, _plain(m, dtype), (offset, shape, stride))
            return _finished(m, described, gradient, hooks, metadata)
        case _:
            raise m.malformed("makes a tensor of something else than a storage, sizes, strides and a dtype")


def meta_tensor(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)``."""
    match arguments:
        case [Dtype(dtype), shape, stride, gradient]:
            return _finished(m, _tensor(m, None, _plain(m, dtype), (0, shape, stride)), gradient, None, [])
        case _:
            raise m.malformed("makes a meta tensor of something else than a dtype, sizes and strides")


def moved_tensor(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad)``; the device is not obeyed."""
    match arguments:
        case [TensorRef() as data, Dtype(dtype), _, gradient]:
            if dtype != data.dtype:
                raise m.unreadable(
                    f"a tensor kept as {data.dtype} that was {dtype}", "save it from the CPU instead"
                )
            return _copy(m, data, gradient, parameter=data.parameter)
        case _:
            raise m.malformed("makes a device's tensor of something else than a tensor, a dtype and a device")


def parameter(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_parameter(data, requires_grad, hooks)``."""
    match arguments:
        case [TensorRef() as data, gradient, hooks]:
            _no_hooks(m, hooks)
            return _copy(m, data, gradient, parameter=True)
        case _:
            raise m.malformed("makes a parameter of something else than a tensor and whether it is trained")


def parameter_with_state(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``_rebuild_parameter_with_state(data, requires_grad, hooks, state)``; the attributes are left out."""
    _note_attributes(m, arguments[3:])
    return parameter(m, arguments[:3])


def plain_parameter(m: Machine, arguments: tuple[Any, ...]) -> TensorRef:
    """``Parameter(data, requires_grad=True)``, as PyTorch before 0.4 wrote them."""
    match arguments:
        case [data]:
            return parameter(m, (data, True, None))
        case _:
            return parameter(m, (*arguments, None))


def set_parameter_state(m: Machine, described: TensorRef, state: object) -> None:
    """Take ``(requires_grad, volatile, hooks)``, the state of a parameter of PyTorch before 0.4."""
    match state:
        case (gradient, _, hooks) if type(state) is tuple:
            described.requires_grad = _gradient(m, described.dtype, gradient)
            _no_hooks(m, hooks)
        case _:
            raise m.unsafe("", "asks to set attributes of a parameter")


def from_type(m: Machine, made: TensorRef, state: object, *, is_parameter: bool) -> TensorRef:
    """``_rebuild_from_type_v2``, once the tensor is described; its attributes are left out."""
    _note_attributes(m, (state,))
    return _copy(m, made, made.requires_grad, parameter=made.parameter or is_parameter)


def _tensor(m: Machine, storage: StorageRef | None, dtype: str, place: tuple[Any, Any, Any]) -> TensorRef:
    """Describe a tensor once it is sure that its elements, at (offset, sizes, strides), lie inside its storage."""
    offset, shape, stride = place
    if type(shape) not in _SEQUENCES or type(stride) not in _SEQUENCES:
        raise m.malformed("has a tensor whose sizes or strides are no sequences")
    if len(shape) != len(stride) or len(shape) > _MAX_NDIM:
        raise m.malformed(f"has a tensor of {len(shape)} sizes and {len(stride)} strides")
    shape, stride = tuple(shape), tuple(stride)
    itemsize = DTYPES[dtype].itemsize
    last, numel = 0, 1
    for size, step in zip(shape, stride, strict=True):
        if type(size) is not int or type(step) is not int or not (0 <= size <= _LARGEST and 0 <= step <= _LARGEST):
            raise m.malformed("has a tensor with sizes or strides that none can have")
        last += (size - 1) * step
        numel *= size or 1
    if type(offset) is not int or not 0 <= offset * itemsize <= _LARGEST // 2 or numel * itemsize > _LARGEST:
        raise m.malformed("has a tensor with more elements than any can have")
    if storage is not None and storage.start % itemsize:
        raise m.malformed("has a tensor whose elements are not where such elements can be")
    reached = (offset + last + 1) * itemsize
    if storage is not None and reached > storage.nbytes and 0 not in shape:
        raise m.malformed(
            f"has a tensor of shape {list(shape)} that reaches {reached} bytes into storage {storage.key!r} of "
            f"{storage.nbytes} bytes"
        )
    return TensorRef(storage, dtype, offset, shape, stride)


def _plain(m: Machine, dtype: str) -> str:
    if dtype.startswith(("qint", "quint")):
        raise m.unreadable("a quantised tensor", "save it dequantised (tensor.dequantize())")
    return dtype


def _finished(m: Machine, described: TensorRef, gradient: object, hooks: object, metadata: list[Any]) -> TensorRef:
    described.requires_grad = _gradient(m, described.dtype, gradient)
    _no_hooks(m, hooks)
    if metadata and metadata != [None]:
        _set_bits(m, described, metadata)
    return described


def _copy(m: Machine, data: TensorRef, gradient: object, *, parameter: bool) -> TensorRef:
    wanted = _gradient(m, data.dtype, gradient)
    place = data.storage, data.dtype, data.offset, data.shape, data.stride
    return TensorRef(*place, wanted, parameter, data.conj, data.neg)


def _gradient(m: Machine, dtype: str, wanted: object) -> bool:
    if type(wanted) is not bool or (wanted and not dtype.startswith(_DIFFERENTIABLE)):
        raise m.malformed(f"has a tensor of {dtype} that requires a gradient, or does not say whether")
    return wanted


def _no_hooks(m: Machine, hooks: object) -> None:
    if hooks is not None and (type(hooks) not in {Ordered, dict} or hooks):
        raise m.unsafe("", "asks to hang hooks on a tensor")


def _set_bits(m: Machine, described: TensorRef, metadata: list[Any]) -> None:
    bits = metadata[0]
    if len(metadata) > 1 or type(bits) is not dict or not bits.keys() <= {"conj", "neg"}:
        raise m.malformed("has a tensor with metadata other than conj and neg")
    described.conj, described.neg = bool(bits.get("conj")), bool(bits.get("neg"))
    if described.conj and not described.dtype.startswith("complex"):
        raise m.malformed(f"has a tensor of {described.dtype} that is kept conjugated")


def _note_attributes(m: Machine, states: tuple[Any, ...]) -> None:
    """Keep the names of attributes that are left out, to be told; a state may be a pair with slots."""
    for state in states:
        for part in state if type(state) is tuple else (state,):
            if part is None:
                continue
            if type(part) is not dict or set(map(type, part)) - {str}:
                raise m.malformed("has a tensor whose attributes have no names")
            m.spend(len(part))
            m.notes.update(part)
