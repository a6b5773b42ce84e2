"""Tools: what else people do with a layer works on it: copying, pickling, torch.func, torch.compile."""

from __future__ import annotations

import copy
import pickle as pickling
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from torchkeep.checks.attempting import require_python
from torchkeep.checks.comparing import differences, kept
from torchkeep.checks.nested import mapped, tensors
from torchkeep.checks.probing import noise, perturbed
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.settings import reseed
from torchkeep.checks.subject import SEED, in_a_line, is_library, set_mode, source_of
from torchkeep.tensors.identity import storage_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torchkeep.checks.subject import Subject


@proves(needs=("eval_determinism", "hidden_module", "stale_alias"))
def functional_call(subject: Subject) -> Iterator[Finding]:
    """Prove that ``torch.func.functional_call`` computes with the tensors that it is given.

    Does not apply without floating-point parameters, to TorchScript and to DataParallel. Decided by calling
    the layer, in eval mode, with other values in other tensors: the output must be that of the layer holding these
    values.
    """
    require_python(subject)
    if isinstance(subject.layer, nn.DataParallel):
        raise NotApplicable("torch.func.functional_call does not take DataParallel")
    subject.snapshot.restore()
    weights = {name: weight for name, weight in subject.layer.named_parameters() if weight.is_floating_point()}
    if not weights:
        raise NotApplicable("the layer has no parameters to replace")
    others = {name: perturbed(weight, 3, 0.1) for name, weight in weights.items()}
    # Either comes after an earlier call, so that what forward keeps from it is there.
    subject.call(training=False, grad=False)
    for weight, other in zip(weights.values(), others.values(), strict=True):
        weight.data.copy_(other)
    held = kept(subject.call(training=False, grad=False, carry=True))
    subject.call(training=False, grad=False)
    set_mode(subject.layer, training=False)
    args, kwargs = subject.inputs()
    reseed(SEED)
    try:
        with torch.no_grad():
            replaced = torch.func.functional_call(subject.layer, others, args, kwargs)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the finding
        yield Finding(
            f"under torch.func.functional_call the layer raises {in_a_line(error)}",
            "take a parameter for any tensor in forward: functional_call puts plain tensors in its place",
            where=source_of(error),
        )
        return
    if differences(held, replaced):
        yield Finding(
            "under torch.func.functional_call the layer does not compute with the parameters it is given",
            "read parameters from self in forward, each time, instead of keeping references or values",
            tensor=", ".join(others) if len(others) == 1 else "",
        )


@proves(needs=("eval_determinism",))
def deepcopy(subject: Subject) -> Iterator[Finding]:
    """Prove that ``copy.deepcopy`` gives a layer that computes the same and shares nothing with the original.

    Decided by comparing the outputs in eval mode, and the memory of parameters and buffers.
    """
    expected = kept(subject.call(training=False, grad=False))
    subject.snapshot.restore()
    try:
        twin = copy.deepcopy(subject.layer)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the finding
        yield _refused("copy.deepcopy", error, subject)
        return
    memory = {storage_key(tensor): name for name, tensor in _held(subject.layer)}
    shared = [
        memory[key] for _, tensor in _held(twin) if tensor.numel() and (key := storage_key(tensor)) in memory
    ]
    if shared:
        yield Finding(
            "the copy shares its memory with the original: training one changes the other",
            "let __deepcopy__ copy every parameter and buffer",
            tensor=", ".join(shared),
        )
    elif differences(expected, subject.call(layer=twin, training=False, grad=False)):
        yield Finding(
            "the copy computes otherwise than the original",
            "let __deepcopy__, or __getstate__ and __setstate__, carry all that forward uses",
        )


@proves(needs=("deepcopy", "hidden_module"))
def pickle(subject: Subject) -> Iterator[Finding]:
    """Prove that the layer comes back from ``pickle``, as data loaders' workers and ``torch.save`` need it.

    Does not apply to a class that is local to a function, which pickle can't find, nor to parametrized modules and
    TorchScript, which torch does not let be pickled. Decided by comparing the outputs in eval mode.
    """
    for path, module in subject.layer.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicable(f"{path or 'the layer'} is TorchScript, which torch.jit.save keeps, not pickle")
        if parametrize.is_parametrized(module):
            raise NotApplicable(
                f"{path or 'the layer'} is parametrized, and torch lets no parametrized module be pickled"
            )
        if "<locals>" in type(module).__qualname__:
            raise NotApplicable(f"{type(module).__name__} is local to a function, where pickle can't find it")
    expected = kept(subject.call(training=False, grad=False))
    subject.snapshot.restore()
    try:
        twin = pickling.loads(pickling.dumps(subject.layer))  # noqa: S301 - the bytes were made just now
    except Exception as error:  # noqa: BLE001 - whatever stops it is the finding
        yield _refused("pickle", error, subject)
        return
    if differences(expected, subject.call(layer=twin, training=False, grad=False)):
        yield Finding(
            "what comes back from pickle computes otherwise than the original",
            "let __getstate__ and __setstate__ carry all that forward uses",
        )


def _held(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*layer.named_parameters(), *layer.named_buffers()]


def _refused(tool: str, error: Exception, subject: Subject) -> Finding:
    """Say which attribute a tool stumbles over, where trying them one by one shows it."""
    culprits = [path for path, value in _attributes(subject.layer) if _stumbles(tool, value)]
    told = {path.partition("[")[0] for path in subject.memo.get("unregistered", ())}
    if culprits and told.issuperset(culprits):
        raise NotApplicable(f"{tool} raises over {', '.join(culprits)}, and unregistered_tensor tells of it")
    return Finding(
        f"{tool} raises {in_a_line(error)}",
        "hold functions of a module instead of lambdas, and nothing that is computed, open or locked",
        tensor=", ".join(culprits),
        where=source_of(error),
    )


def _attributes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in layer.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_buffers", "_modules")):
                yield (f"{path}.{key}" if path else key), value


def _stumbles(tool: str, value: Any) -> bool:
    try:
        copy.deepcopy(value) if tool == "copy.deepcopy" else pickling.dumps(value)
    except Exception:  # noqa: BLE001 - that it raises is all that is asked
        return True
    return False


@proves(needs=("eval_determinism",), opt_in=True)
def graph_breaks(subject: Subject) -> Iterator[Finding]:
    """Prove that ``torch.compile`` takes forward as one graph.

    Runs only when named in ``only``, since tracing is slow. Decided by ``torch._dynamo.explain`` in eval mode.
    """
    import torch._dynamo as dynamo  # noqa: PLC0415 - it takes a second to import

    subject.snapshot.restore()
    set_mode(subject.layer, training=False)
    args, kwargs = subject.inputs()
    with torch.no_grad():
        explained = dynamo.explain(subject.layer)(*args, **kwargs)
    for reason in explained.break_reasons:
        frames = [frame for frame in reason.user_stack if not is_library(frame.filename)]
        yield Finding(
            f"torch.compile breaks the graph: {str(reason.reason).strip().splitlines()[0]}",
            "keep forward to tensor operations, without .item(), printing, or branches on values",
            where=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "",
        )


@proves(needs=("eval_determinism",), opt_in=True)
def vmap(subject: Subject) -> Iterator[Finding]:
    """Prove that ``torch.func.vmap`` over several inputs gives what one call for each gives.

    Runs only when named in ``only``. Does not apply without input tensors. Decided in eval mode, over three
    versions of the inputs: as given, negated, and with noise.
    """
    if not subject.input_tensors:
        raise NotApplicable("the layer takes no tensors")
    versions = [subject.inputs(_version(number)) for number in range(3)]
    singles = [kept(subject.call(version, training=False, grad=False)) for version in versions]
    stacked = [torch.stack(group) for group in zip(*map(_flat, versions), strict=True)]
    subject.snapshot.restore()
    set_mode(subject.layer, training=False)

    def run(*flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = iter(flat)
        args, kwargs = mapped(versions[0], lambda *_: next(values))
        return tuple(tensor for _, tensor in tensors(subject.layer(*args, **kwargs)))

    reseed(SEED)
    with torch.no_grad():
        found = torch.func.vmap(run, randomness="same")(*stacked)
    for number, single in enumerate(singles):
        if differences([tensor for _, tensor in tensors(single)], [tensor[number] for tensor in found]):
            yield Finding(
                "under vmap the layer computes otherwise than in single calls",
                "use operations that torch.func knows, and no shapes or values outside the tensors given",
            )
            return


def _flat(value: Any) -> list[torch.Tensor]:
    return [tensor for _, tensor in tensors(value)]


def _version(number: int) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def convert(_: str, tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach().clone()
        if not own.is_floating_point():
            return own
        return (own, -own, own + noise(own, 1))[number]

    return convert
