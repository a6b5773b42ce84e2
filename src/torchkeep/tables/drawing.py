"""The text of a structure: a tree of modules with columns beside it, repeated blocks folded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torchkeep.names import quote_name, quote_segment
from torchkeep.rows.text import size_text, table
from torchkeep.tables.tracing.shapes import arguments, text, usual_dtype

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from torchkeep.tables.structure import Held, Node, Structure
    from torchkeep.tables.tracing.shapes import Call

_HEADERS = ("module", "in", "out", "parameters", "bytes", "notes")
_CELL = 72
_MAX_CALLS = 4


class _Line(NamedTuple):
    label: str
    given: str = ""
    returned: str = ""
    numel: str = ""
    size: str = ""
    notes: str = ""


def draw(structure: Structure) -> str:
    """Write a structure as text: two lines about the whole, the tree with its columns, then notes."""
    ran = structure.how != "not run"
    calls = [call for node in structure.nodes for call in node.calls]
    usual = usual_dtype(item for call in calls for item in (*call.args, *call.kwargs.values(), call.output))
    drawn = table(_HEADERS, _Drawing(structure, usual).lines(), "<<<>>")
    head = [_totals(structure.root)]
    if ran:
        head.append(f"{_how(structure)}. A shape without a dtype is {usual}.")
    return "\n".join([*head, "", drawn, *(["", *structure.notes] if structure.notes else [])])


def _totals(root: Node) -> str:
    sentence = f"{root.type}: {root.numel:,} parameters, {size_text(root.nbytes)}"
    if root.frozen:
        sentence += f", {root.frozen:,} of them frozen"
    if root.buffer_numel:
        elements = "element" if root.buffer_numel == 1 else "elements"
        sentence += f"; {root.buffer_numel:,} {elements} in buffers, {size_text(root.buffer_nbytes)}"
    return sentence


def _how(structure: Structure) -> str:
    if structure.how == "real":
        return (
            "Shapes from running a copy for real, in eval mode, without gradients, because tracing shapes alone "
            f"raised {structure.reason}"
        )
    sentence = f"Shapes traced on a fake copy in {structure.mode} mode"
    return f"{sentence}, because in train mode it raised {structure.reason}" if structure.reason else sentence


class _Spot(NamedTuple):
    """Where a node is drawn.

    Attributes:
        node: the (first) node.
        label: its name, or the pattern of the blocks that it stands for.
        blocks: how many it stands for.
        lead: the lines of the tree in front of its name.
        below: the same for the lines below it.
        around: how often the module around it was called.
    """

    node: Node
    label: str = ""
    blocks: int = 1
    lead: str = ""
    below: str = ""
    around: int = 1


class _Drawing:
    """The lines of the tree."""

    def __init__(self, structure: Structure, usual: str) -> None:
        self._structure = structure
        self._usual = usual
        self._ran = structure.how != "not run"
        self._signatures = _signatures(structure.nodes)

    def lines(self) -> Iterator[_Line]:
        pending = [_Spot(self._structure.root)]
        while pending:
            spot = pending.pop()
            node = spot.node
            inside = list(self._folded(node))
            tensors = node.held if node.children else ()
            yield from self._node_lines(spot, spot.below + ("│  " if inside else "   "))
            # The modules stand below, so no tensor is the last line.
            yield from (self._tensor_line(f"{spot.below}├─ ", tensor) for tensor in tensors)
            around = node.times if node.runnable else spot.around
            for left, (label, blocks, child) in enumerate(reversed(inside)):
                branch, bar = ("├─ ", "│  ") if left else ("└─ ", "   ")
                pending.append(_Spot(child, label, blocks, spot.below + branch, spot.below + bar, around))

    def _folded(self, node: Node) -> Iterator[tuple[str, int, Node]]:
        """Yield label, number of blocks and first block of each run of neighbours that are alike."""
        run: list[Node] = []
        for child in (*node.children, None):
            if run and (child is None or not self._continues(run[-1], child)):
                label = quote_segment(run[0].key)
                if len(run) > 1:
                    level = quote_segment(node.key) if node.key else ""
                    label = f"{level}[{run[0].key}:{int(run[-1].key) + 1}]"
                yield label, len(run), run[0]
                run = []
            if child is not None:
                run.append(child)

    def _continues(self, before: Node, after: Node) -> bool:
        return (
            before.key.isdecimal()
            and after.key == str(int(before.key) + 1)
            and self._signatures[before.path] == self._signatures[after.path]
        )

    def _node_lines(self, spot: _Spot, below: str) -> Iterator[_Line]:
        node = spot.node
        extra = node.extra or ("" if node.children else ", ".join(map(_tensor_text, node.held)))
        title = f"{spot.lead}{f'{spot.label}: ' if spot.label else ''}{node.type}{f'({extra})' if extra else ''}"
        blocks = f"{spot.blocks} x " if spot.blocks > 1 else ""
        numbers = (f"{blocks}{node.numel:,}", f"{blocks}{size_text(node.nbytes)}") if node.numel else ("", "")
        notes = list(_notes(node))
        if self._ran and node.runnable and spot.around and not node.calls and node.same_as is None:
            notes.insert(0, "not called")
        if len(node.calls) > 1 or (node.calls and node.times != spot.around):
            notes.insert(0, _times(node.calls[0].times))
        first, others = next(iter(node.calls), None), node.calls[1:]
        yield _Line(title, *self._shapes(first), *numbers, ", ".join(notes))
        for call in others[: _MAX_CALLS - 1]:
            yield _Line(below, *self._shapes(call), notes=_times(call.times))
        if others[_MAX_CALLS - 1 :]:
            rest = sum(call.times for call in others[_MAX_CALLS - 1 :])
            yield _Line(below, "...", "...", notes=f"{_times(rest)} with other shapes")

    def _shapes(self, call: Call | None) -> tuple[str, str]:
        if call is None:
            return "", ""
        return _cut(arguments(call.args, call.kwargs, self._usual)), _cut(text(call.output, self._usual))

    def _tensor_line(self, lead: str, tensor: Held) -> _Line:
        notes = list(_tensor_notes(tensor))
        if tensor.kind == "parameter" and not tensor.trainable:
            notes.insert(0, "frozen")
        counted = tensor.kind == "parameter" and tensor.numel
        return _Line(
            f"{lead}{quote_segment(tensor.key)}: {tensor.kind} {_shape_text(tensor)}",
            numel=f"{tensor.numel:,}" if counted else "",
            size=size_text(tensor.nbytes) if counted else "",
            notes=", ".join(notes),
        )


def _notes(node: Node) -> Iterator[str]:
    if node.same_as is not None:
        yield f"the same module as {quote_name(node.same_as) or 'the whole'}"
        return
    own = [tensor for tensor in node.held if tensor.kind == "parameter"]
    frozen = sum(tensor.numel for tensor in own if not tensor.trainable)
    if node.numel and node.frozen == node.numel:
        yield "frozen"
    elif frozen and not node.children:
        yield f"{frozen:,} of them frozen"
    for name in node.parametrized:
        yield f"{name} parametrised"
    if node.children:
        return
    for tensor in node.held:
        if tensor.same_as is not None:
            yield f"{tensor.key} is {quote_name(tensor.same_as)}, counted there"
    lazy = [tensor for tensor in node.held if tensor.shape is None]
    known = [f"{tensor.key} {list(tensor.traced_shape)}" for tensor in lazy if tensor.traced_shape is not None]
    if lazy:
        yield f"lazy, with these inputs {', '.join(known)}" if known else "lazy"
    buffered = sum(tensor.nbytes for tensor in node.held if tensor.kind == "buffer")
    if buffered:
        yield f"{size_text(buffered)} in buffers"


def _tensor_notes(tensor: Held) -> Iterator[str]:
    if tensor.same_as is not None:
        yield f"is {quote_name(tensor.same_as)}, counted there"
    if tensor.shape is None:
        yield "lazy" if tensor.traced_shape is None else f"lazy, {list(tensor.traced_shape)} with these inputs"


def _tensor_text(tensor: Held) -> str:
    return f"{tensor.key} {_shape_text(tensor)}"


def _shape_text(tensor: Held) -> str:
    if tensor.shape is None:
        return "lazy"
    return f"{'' if tensor.dtype == 'float32' else tensor.dtype}{list(tensor.shape)}"


def _times(times: int) -> str:
    """Say how often, for one kind of call."""
    return "called once" if times == 1 else f"called {times} times"


def _cut(cell: str) -> str:
    return cell if len(cell) <= _CELL else f"{cell[: _CELL - 3]}..."


def _signatures(nodes: Sequence[Node]) -> dict[str, int]:
    """Number the nodes so that two with the same number look the same in every line but for their own name."""
    numbers: dict[Hashable, int] = {}
    found: dict[str, int] = {}
    for node in reversed(nodes):
        looks: Hashable = (
            node.type,
            node.extra,
            node.runnable,
            node.parametrized,
            _from(node.path, node.same_as),
            tuple((replace(tensor, same_as=None), _from(node.path, tensor.same_as)) for tensor in node.held),
            tuple(map(repr, node.calls)),
            tuple((child.key, found[child.path]) for child in node.children),
        )
        found[node.path] = numbers.setdefault(looks, len(numbers))
    return found


def _from(path: str, target: str | None) -> tuple[int, tuple[str, ...]] | None:
    """Return how to get from ``path`` to ``target``: levels up, then names down."""
    if target is None:
        return None
    here, there = path.split("."), target.split(".")
    common = 0
    for mine, theirs in zip(here, there, strict=False):
        if mine != theirs:
            break
        common += 1
    return len(here) - common, tuple(there[common:])
