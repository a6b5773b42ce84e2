"""What torch.nn's own modules were constructed with, read back from what they hold."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from torchkeep.errors import UnsavableError
from torchkeep.recipes.arguments import Shape, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module)
"""Exactly these are made empty, and then filled with children."""

MAX_LAYERS: Final = 10_000
"""Of a recurrent layer or transformer: more is no model but an attack on whoever builds it."""


def signature_of(cls: type[nn.Module]) -> inspect.Signature:
    """Return the constructor's signature, also of the recurrent layers, which hide theirs behind ``*args``."""
    key: Any = cls
    return _signature(key)


@lru_cache(maxsize=1024)
def _signature(cls: Any) -> inspect.Signature:
    signature = inspect.signature(cls)
    if cls in {nn.RNN, nn.LSTM, nn.GRU}:
        known = dict(inspect.signature(nn.RNNBase).parameters)
        del known["mode"]
        parameters = list(known.values())
        if cls is nn.RNN:
            parameters.append(inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh"))
        signature = inspect.Signature(parameters)
    return signature


def arguments_of(module: nn.Module) -> dict[str, Any]:
    """Return the arguments by name, those that are the defaults left out.

    Children among them are the live modules. Each is found as the attribute of its own name, except where the
    table below knows better; the device is left out.

    Args:
        module: of a class in torch.nn, not of a subclass.

    Raises:
        UnsavableError: the module does not tell; the sentence goes on after the module's path.
    """
    exception = _EXCEPTIONS.get(type(module))
    known = exception(module) if exception else {}
    arguments: dict[str, Any] = {}
    for name, parameter in signature_of(type(module)).parameters.items():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD} or name in {
            "device",
            "process_group",
        }:
            continue
        value = known[name] if name in known else _attribute(module, name, parameter.default)
        if value is parameter.empty:
            raise UnsavableError(f"it does not tell what {name!r} it was constructed with")
        if not _is(value, parameter.default):
            arguments[name] = value
    return arguments


def _attribute(module: nn.Module, name: str, default: Any) -> Any:
    if name == "dtype":
        return _dtype_of(module)
    if name == "bias":
        return _has_bias(module)
    value = getattr(module, name, default)
    return Shape(value) if isinstance(value, torch.Tensor) else value


def _is(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _has_bias(module: nn.Module) -> bool:
    bias = getattr(module, "bias", None)
    if isinstance(bias, bool):
        return bias
    affine = getattr(module, "affine", getattr(module, "elementwise_affine", True))
    # Without weights there is no bias either, whatever was asked for.
    return bias is not None or not affine


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    dtypes = (tensor.dtype for tensor in (*module.parameters(), *module.buffers()))
    found = next((dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex), None)
    return None if found is torch.float32 else found


def _attention(module: Any) -> dict[str, Any]:
    return {
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "kdim": None if module.kdim == module.embed_dim else module.kdim,
        "vdim": None if module.vdim == module.embed_dim else module.vdim,
    }


def _transformer_layer(module: Any) -> dict[str, Any]:
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "bias": module.linear1.bias is not None,
    }


def _transformer_stack(name: str) -> Callable[[Any], dict[str, Any]]:
    def arguments(module: Any) -> dict[str, Any]:
        if not len(module.layers):
            raise UnsavableError("it has no layer that would tell what they were made like")
        return {name: Template(module.layers[0])}

    return arguments


def _transformer(module: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"custom_encoder": None, "custom_decoder": None}
    layers: list[Any] = []
    for part, kind in (("encoder", nn.TransformerEncoder), ("decoder", nn.TransformerDecoder)):
        stack = getattr(module, part)
        if type(stack) is not kind:
            known[f"custom_{part}"] = stack
            continue
        known[f"num_{part}_layers"] = len(stack.layers)
        layers += stack.layers
    if not layers:
        raise UnsavableError("it has no layer that would tell what they were made like")
    shared = _transformer_layer(layers[0])
    return known | shared | {"activation": layers[0].activation, "norm_first": layers[0].norm_first}


def _parameter_list(module: Any) -> dict[str, Any]:
    return {"values": [_content(item) for item in module]}


def _parameter_dict(module: Any) -> dict[str, Any]:
    return {"parameters": OrderedDict((key, _content(item)) for key, item in module.items())}


def _content(item: Any) -> Any:
    return Shape(item) if isinstance(item, torch.Tensor) else item


_EXCEPTIONS: Final[Mapping[type, Callable[[Any], dict[str, Any]]]] = {
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.TransformerDecoderLayer: _transformer_layer,
    nn.TransformerEncoder: _transformer_stack("encoder_layer"),
    nn.TransformerDecoder: _transformer_stack("decoder_layer"),
    nn.Transformer: _transformer,
    # The constructor appends the number of classes.
    nn.AdaptiveLogSoftmaxWithLoss: lambda module: {"cutoffs": list(module.cutoffs[:-1])},
    nn.ParameterList: _parameter_list,
    nn.ParameterDict: _parameter_dict,
    # Not in every torch that is supported.
    getattr(nn, "LinearCrossEntropyLoss", object): lambda module: {
        "in_features": module.linear.in_features,
        "bias": module.linear.bias is not None,
    },
    **dict.fromkeys(CONTAINERS, lambda _: {"modules": None}),
}
