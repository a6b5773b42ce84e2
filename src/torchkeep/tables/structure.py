"""`tk.tree`: the structure of a module, and the shapes that go through it, without touching the module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.caching import cached_property
from torchkeep.errors import NoMatchError, SourceError
from torchkeep.names import join
from torchkeep.selectors.suggest import did_you_mean, nearest
from torchkeep.tables.extras import arguments_of
from torchkeep.tables.modules import parametrized, type_info
from torchkeep.tables.survey import places_of
from torchkeep.tables.survey import survey as survey_of
from torchkeep.tables.tracing import Trace, trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.rows import Kind, Row
    from torchkeep.tables.survey import Place, Survey
    from torchkeep.tables.tracing import How, Mode
    from torchkeep.tables.tracing.shapes import Call, Described


@dataclass(frozen=True)
class Held:
    """One parameter or buffer that a module registers itself.

    Attributes:
        key: its name within the module.
        kind: parameter or buffer.
        shape: None while lazy.
        dtype: torch's name, such as ``"float32"``.
        numel: number of elements; 0 when it is counted elsewhere.
        nbytes: bytes of those elements.
        trainable: whether it requires a gradient.
        same_as: for a tensor that is tied to one shown further up: that one's name; it is counted there.
        traced_shape: for a lazy one: the shape that it takes with the given inputs.
    """

    key: str
    kind: Kind
    shape: tuple[int, ...] | None
    dtype: str
    numel: int
    nbytes: int
    trainable: bool
    same_as: str | None = None
    traced_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One module of the structure.

    Elements and bytes are those of the module and everything in it. Each tensor is counted once in the whole
    structure, where it is shown first, so that the numbers add up.

    Attributes:
        path: canonical path; the root is ``""``.
        key: its name within its parent.
        type: name of its class.
        extra: what the class says of itself (``extra_repr``), without what is as its constructor has it anyway.
        held: the tensors that it registers itself.
        children: the modules in it.
        same_as: for a module that is shown further up already: the path there; such a node holds nothing.
        calls: how it was called, calls that went alike in one; empty without inputs.
        runnable: whether it has a forward that can be seen (a ModuleList has none).
        parametrized: names of its parametrized tensors.
        numel: elements in parameters.
        nbytes: bytes of parameters.
        frozen: elements in parameters that do not require a gradient.
        buffer_numel: elements in buffers.
        buffer_nbytes: bytes of buffers.
    """

    path: str
    key: str
    type: str
    extra: str
    held: tuple[Held, ...]
    children: tuple[Node, ...]
    same_as: str | None
    calls: tuple[Call, ...]
    runnable: bool
    parametrized: tuple[str, ...]
    numel: int
    nbytes: int
    frozen: int
    buffer_numel: int
    buffer_nbytes: int

    @property
    def times(self) -> int:
        """How many times it was called."""
        return sum(call.times for call in self.calls)

    @property
    def inputs(self) -> tuple[Described, ...] | None:
        """The positional arguments of its first call, described; None when it was not called."""
        return self.calls[0].args if self.calls else None

    @property
    def output(self) -> Described:
        """What its first call returned, described; None when it was not called."""
        return self.calls[0].output if self.calls else None


@dataclass(frozen=True, repr=False)
class Structure:
    """What `tk.tree` shows: ``str()`` of it is the text, `nodes` the same to compute with.

    Attributes:
        root: the whole.
        how: ``"not run"`` without inputs; ``"fake"`` when shapes alone were traced on a copy without memory;
            ``"real"`` when a copy was computed, in eval mode and without gradients.
        mode: ``"train"`` or ``"eval"``: the mode that the copy was in.
        reason: why it was not traced as the net is: the exception's type and sentence; empty when it was.
        notes: sentences about what was left out: hooks that belong to the caller, attributes that can't be copied.
    """

    root: Node
    how: How
    mode: Mode
    reason: str
    notes: tuple[str, ...]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every module, parents before what is in them; a shared module once in full, then as a mark."""
        return tuple(_preorder(self.root))

    @cached_property
    def _by_path(self) -> dict[str, Node]:
        return {node.path: node for node in self.nodes}

    def __getitem__(self, path: str) -> Node:
        """Return the node at ``path``.

        Raises:
            NoMatchError: no module has that path.
        """
        node = self._by_path.get(path)
        if node is None:
            hint = did_you_mean(path, self._by_path)
            error = NoMatchError(
                f"the structure has no module `{path}`;{hint or ' look at the paths of its nodes'}"
            )
            error.wanted, error.nearest = path, nearest(path, self._by_path)
            raise error
        return node

    def __str__(self) -> str:
        """Write the structure as text."""
        from torchkeep.tables.drawing import draw  # noqa: PLC0415 - only needed when something is shown

        return draw(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Show the text in a notebook."""
        from html import escape  # noqa: PLC0415

        return f"<pre style='line-height: 1.25; white-space: pre'>{escape(str(self))}</pre>"

    def __rich__(self) -> Any:
        """Show the text through rich, which must not take brackets for markup."""
        from rich.text import Text  # noqa: PLC0415 - rich takes long to import

        return Text(str(self), no_wrap=True)


def tree(net: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Structure:
    """Show how a module is built, and with inputs what shapes go through it.

    The net is never run, changed or moved. With inputs, a copy of it without any memory (fake tensors) is traced;
    where that can't be, because forward decides on the values of tensors, say, a copy is computed for real, in
    eval mode, without gradients; the text and `Structure.how` tell. Hooks that were registered from outside the
    net do not run; the text names them.

    What can't be guarded against: a forward that writes to something outside the net, such as a global list; and
    functions that remember the net, whose calls go to it rather than to the copy (a note names what they ran).

    Args:
        net: the module; wrappers such as DataParallel are looked through.
        inputs: what to call it with: tensors (on the meta device too) and anything else that its forward takes.
        kwargs: keyword arguments to call it with; ``{}`` calls a net that takes no input at all.

    Returns:
        The structure: ``str()`` of it is the text.

    Raises:
        SourceError: ``net`` is no module, or contains itself, or ``kwargs`` is no mapping.
        StructureError: forward could not be run on these inputs; says in which module, and what that was given.
    """
    if not isinstance(kwargs, Mapping | None):
        raise SourceError(
            f"kwargs must be a mapping from names to values, such as {{'mask': mask}}, not {kwargs!r}"
        )
    survey = survey_of(net)
    traced = trace(survey, net, inputs, kwargs or {}) if inputs or kwargs is not None else Trace()
    return Structure(_Builder(survey, traced).build(), traced.how, traced.mode, traced.reason, tuple(traced.notes))


class _Builder:
    """Makes the nodes: one pass down decides where everything is shown first, one pass up adds up."""

    def __init__(self, survey: Survey, traced: Trace) -> None:
        self._survey = survey
        self._traced = traced
        self._rows = {
            (id(place.module), place.kind, place.key): row
            for row, places in zip(survey.listing.rows, survey.places, strict=True)
            for place in places
        }
        self._children: dict[str, list[str]] = {"": []}
        self._around: dict[str, nn.Module] = {}
        self._held: dict[str, tuple[Held, ...]] = {}
        self._first_path: dict[int, str] = {}
        self._first_name: dict[str, str] = {}

    def build(self) -> Node:
        for path, module in self._survey.modules.items():
            if path in self._children and self._first_path.setdefault(id(module), path) == path:
                self._look_into(path, module)
        nodes: dict[str, Node] = {}
        for path in reversed([path for path in self._survey.modules if path in self._children]):
            nodes[path] = self._node(path, tuple(nodes.pop(child) for child in self._children[path]))
        return nodes[""]

    def _look_into(self, path: str, module: nn.Module) -> None:
        inside = module._modules.items()  # noqa: SLF001 - children() hides a shared module's second place
        self._children[path] = [join(path, key) for key, child in inside if child is not None]
        self._children.update((child, []) for child in self._children[path])
        self._around.update((child, module) for child in self._children[path])
        lazy = self._traced.lazy.get(id(module), {})
        self._held[path] = tuple(
            self._hold(place, self._rows[id(module), place.kind, place.key], lazy.get(place.key))
            for place in places_of(path, module)
        )

    def _hold(self, place: Place, row: Row, traced_shape: tuple[int, ...] | None) -> Held:
        first = self._first_name.setdefault(row.name, place.name)
        counted = first == place.name
        return Held(
            key=place.key,
            kind=place.kind,
            shape=row.shape,
            dtype=row.dtype,
            numel=row.numel if counted else 0,
            nbytes=row.nbytes if counted else 0,
            trainable=bool(row.trainable),
            same_as=None if counted else first,
            traced_shape=traced_shape,
        )

    def _node(self, path: str, children: tuple[Node, ...]) -> Node:
        module = self._survey.modules[path]
        first = self._first_path[id(module)]
        held = self._held.get(path, ())
        parameters = [tensor for tensor in held if tensor.kind == "parameter"]
        buffers = [tensor for tensor in held if tensor.kind == "buffer"]
        frozen = sum(tensor.numel for tensor in parameters if not tensor.trainable)
        return Node(
            path=path,
            key=path.rpartition(".")[2],
            type=type_info(type(module)).name,
            extra=arguments_of(module),
            held=held,
            children=children,
            same_as=None if first == path else first,
            calls=tuple(self._traced.calls.get(id(module), ())) if first == path else (),
            runnable=self._can_be_seen_running(path),
            parametrized=parametrized(module),
            numel=sum(tensor.numel for tensor in parameters) + sum(child.numel for child in children),
            nbytes=sum(tensor.nbytes for tensor in parameters) + sum(child.nbytes for child in children),
            frozen=frozen + sum(child.frozen for child in children),
            buffer_numel=sum(tensor.numel for tensor in buffers) + sum(child.buffer_numel for child in children),
            buffer_nbytes=sum(tensor.nbytes for tensor in buffers)
            + sum(child.buffer_nbytes for child in children),
        )

    def _can_be_seen_running(self, path: str) -> bool:
        if isinstance(self._around.get(path), torch.jit.ScriptModule):
            return False
        module = self._survey.modules[path]
        # A traced module's class has a forward only once it has an instance.
        of_class = getattr(type(module), "forward", None)
        return "forward" in module.__dict__ or of_class is not nn.Module.forward


def _preorder(root: Node) -> Iterator[Node]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(node.children))
