"""Where gradients flow: every parameter that matters gets one, and every parameter matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from torchkeep.checks.comparing import differences, kept
from torchkeep.checks.nested import tensors
from torchkeep.checks.probing import (
    differentiable,
    effective,
    is_real,
    perturbed,
    probes,
    pull_back,
    with_leaves,
)
from torchkeep.checks.reaching import code_mentions
from torchkeep.checks.registry import NotApplicable, proves
from torchkeep.checks.reporting import Finding
from torchkeep.checks.watching import CutWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.checks.subject import Inputs, Subject


@dataclass
class Flow:
    """Where gradients came, over all probes.

    Attributes:
        parameters: the trainable floating-point parameters, by name.
        connected: names of parameters, and paths of inputs, to which a graph led in some probe.
        reached: those whose gradient was not zero throughout.
        differentiable: whether some output was floating point.
        custom: whether a graph held somebody's own ``torch.autograd.Function``.
        inputs: paths of the floating-point inputs.
    """

    parameters: dict[str, torch.Tensor]
    connected: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    differentiable: bool = False
    custom: bool = False
    inputs: tuple[str, ...] = ()

    def add(self, gradients: dict[str, torch.Tensor | None]) -> None:
        """Take the gradients of one probe into account."""
        there = {name: grad for name, grad in gradients.items() if grad is not None}
        self.connected |= there.keys()
        self.reached |= {name for name, grad in there.items() if _any(grad)}


def flow_of(subject: Subject) -> Flow:
    """Run forward and backward in both modes on several inputs; worked out once for each subject."""
    if "flow" not in subject.memo:
        found = subject.survey
        rows = zip(found.listing.rows, found.tensors, strict=True)
        flow = Flow({row.name: tensor for row, tensor in rows if row.trainable and is_real(tensor)})
        for training, given in probes(subject):
            inputs, leaves = with_leaves(subject, given)
            output = subject.call(inputs, training=training)
            flow.inputs = tuple(leaves)
            flow.differentiable |= any(is_real(tensor) for _, tensor in tensors(output))
            flow.custom |= bool(custom_functions(output))
            wanted = {**flow.parameters, **leaves}
            flow.add(dict(zip(wanted, _gradients(subject, output, wanted), strict=True)))
            if flow.reached >= wanted.keys():
                break
        subject.memo["flow"] = flow
    return subject.memo["flow"]  # type: ignore[no-any-return]  # it was put there above


def _gradients(subject: Subject, output: Any, wanted: dict[str, torch.Tensor]) -> list[torch.Tensor | None]:
    try:
        return pull_back(output, wanted.values())
    except RuntimeError as error:
        unregistered: dict[str, torch.Tensor] = subject.memo.get("unregistered", {})
        graphs = ", ".join(path for path, tensor in unregistered.items() if tensor.grad_fn is not None)
        if not graphs:
            raise
        raise NotApplicable(
            f"the graph of {graphs} serves a single backward pass, and unregistered_tensor tells of it"
        ) from error


def custom_functions(output: Any) -> dict[str, Any]:
    """Return the ``torch.autograd.Function`` classes in an output's graph that are not torch's own, by name."""
    pending: list[Any] = [start.grad_fn for start in differentiable(output)]
    seen = set()
    found = {}
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            written: Any = getattr(type(node), "_forward_cls", type(node))
            if not written.__module__.startswith("torch."):
                found[written.__name__] = written
        pending.extend(following for following, _ in node.next_functions)
    return found


@proves(needs=("eval_determinism", "settings_unchanged"))
def severed_gradient(subject: Subject) -> Iterator[Finding]:
    """Prove that every trainable parameter which changes the output gets a gradient.

    Does not apply without trainable parameters and floating-point inputs, or where no output is floating point.
    Decided by running forward in both modes on several inputs, with random cotangents: a parameter to which no
    graph leads in any of them, although changing it changes the output, is severed. The line of source is where
    forward called ``.detach()``, ``.data``, ``.item()`` or the like on what comes from it, or had grad mode off. A
    warning, since it may be meant: a gradient that is there but exactly zero, and an input that is cut off.
    Parameters selected by ``Declare(stop_gradient=...)`` are left out, and must not get one.
    """
    flow = flow_of(subject)
    if not flow.parameters and not flow.inputs:
        raise NotApplicable("nothing that the layer holds or is given is floating point and trainable")
    if not flow.differentiable:
        raise NotApplicable("no output is floating point, so there is nothing to differentiate")
    stopped = subject.selected(subject.declare.stop_gradient)
    for name in sorted(stopped & flow.reached):
        yield Finding(
            "a gradient reaches it, although it is declared in stop_gradient",
            "take it out of stop_gradient, or detach it in forward",
            tensor=name,
        )
    asked = {name: tensor for name, tensor in flow.parameters.items() if name not in stopped}
    missing = {name: tensor for name, tensor in asked.items() if name not in flow.connected}
    severed = effective(subject, missing)
    if severed:
        yield from _severed(severed, _watched(subject, {name: missing[name] for name in severed}))
        return
    flat = flow.connected - flow.reached - _of_embeddings(subject)
    zero = {name: tensor for name, tensor in asked.items() if name in flat}
    # A custom backward that gives zeros is told of by custom_backward. The change is large enough for steps, as
    # rounding has them, and too small to wake most dead units.
    zero = {} if flow.custom or not zero else _flat_nearby(subject, zero)
    for name in effective(subject, zero, size=0.1, exact=False):
        yield Finding(
            "its gradient is exactly zero in every run, although changing it a little changes the output",
            "see that nothing multiplies its gradient by zero; if it is meant, declare stop_gradient",
            tensor=name,
            severe=False,
        )
    yield from _severed_inputs(subject, flow)


def _flat_nearby(subject: Subject, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parameters whose gradient is zero around the layer's values too: these may be a minimum."""
    left = dict(parameters)
    for training in (False, True):
        subject.snapshot.restore()
        for seed, tensor in enumerate(flow_of(subject).parameters.values()):
            tensor.data.copy_(perturbed(tensor, seed, 0.1))
        output = subject.call(training=training, carry=True)
        gradients = dict(zip(left, pull_back(output, left.values()), strict=True))
        left = {name: tensor for name, tensor in left.items() if not _any(gradients[name])}
    return left


def _any(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool(gradient.to_dense().any())


def _of_embeddings(subject: Subject) -> set[str]:
    """Return the names of the weights of embeddings, which get a zero gradient where all indices are padding."""
    found = subject.survey
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    rows = zip(found.listing.rows, found.places, strict=True)
    return {row.name for row, places in rows if any(isinstance(place.module, kinds) for place in places)}


def _severed(names: list[str], watch: CutWatch) -> Iterator[Finding]:
    for name in names:
        how, where = watch.cuts.get(name, ("", ""))
        yield Finding(
            "the output depends on it, but no gradient reaches it" + (f": {how} cuts it off" if how else ""),
            "use the parameter itself, with grad mode on; if no gradient is meant, declare stop_gradient",
            tensor=name,
            where=where,
        )


def _severed_inputs(subject: Subject, flow: Flow) -> Iterator[Finding]:
    """Tell of inputs that something in forward cuts off; comparing them, say, cuts nothing that was there."""
    missing = [path for path in flow.inputs if path not in flow.connected]
    if not missing:
        return
    inputs, _ = with_leaves(subject, subject.inputs())
    given = {path: tensor for path, tensor in _by_path(inputs).items() if path in missing}
    watch = _watched(subject, given, inputs)
    for path in missing:
        if path in watch.cuts and _input_matters(subject, path):
            how, where = watch.cuts[path]
            yield Finding(
                f"the output depends on this input, but {how} cuts its gradient off, for all that comes before",
                "use the input itself; if it is meant, list severed_gradient in `expected` with the reason",
                tensor=path,
                where=where,
                severe=False,
            )


def _by_path(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {**dict(tensors(inputs[0], "args")), **dict(tensors(inputs[1], "kwargs"))}


def _watched(subject: Subject, followed: dict[str, torch.Tensor], inputs: Inputs | None = None) -> CutWatch:
    """Run forward while following tensors, in both modes unless ``inputs`` are given."""
    watch = CutWatch(followed)
    for training, given in probes(subject) if inputs is None else [(False, inputs)]:
        subject.call(given, training=training, mode=watch)
        if watch.cuts.keys() >= followed.keys():
            break
    return watch


def _input_matters(subject: Subject, wanted: str) -> bool:
    def convert(path: str, tensor: torch.Tensor) -> torch.Tensor:
        return perturbed(tensor, 2) if path == wanted else tensor.detach().clone()

    before = kept(subject.call(training=False, grad=False))
    return bool(differences(before, subject.call(subject.inputs(convert), training=False, grad=False)))


@proves(needs=("eval_determinism", "settings_unchanged"))
def unused_parameter(subject: Subject) -> Iterator[Finding]:
    """Prove that every trainable parameter can change the output.

    Does not apply without trainable parameters. Decided as for ``severed_gradient``: a parameter to which no graph
    leads in any run, and whose change changes nothing, is unused. One whose gradient is merely zero (a dead unit,
    attention over a single key) is none. It is only a warning where forward's code names the parameter, or the
    module that holds it, and no run came there: other inputs may.
    """
    flow = flow_of(subject)
    if not flow.parameters:
        raise NotApplicable("the layer has no trainable parameters")
    if not list(tensors(subject.call(training=False, grad=False))):
        raise NotApplicable("forward returns no tensors that can be seen")
    alone = {name: tensor for name, tensor in flow.parameters.items() if name not in flow.connected}
    if not alone:
        return
    active = set(effective(subject, alone))
    watch = _watched(subject, alone)
    # What is cut off together with one that matters is told of there: half of a low-rank update, say.
    told = {watch.cuts[name] for name in active if name in watch.cuts}
    for name in (name for name in alone if name not in active and watch.cuts.get(name) not in told):
        untaken = name not in watch.touched and code_mentions(subject.survey, name)
        yield Finding(
            "forward's code uses it, but not on these inputs" if untaken else "no output depends on it",
            "check with inputs on which forward uses it, too"
            if untaken
            else "use it or remove it; if only other methods use it, list unused_parameter in `expected`",
            tensor=name,
            severe=not untaken,
        )
