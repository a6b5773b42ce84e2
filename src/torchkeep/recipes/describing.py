"""Describe a module: how each part of it was made, as far as it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from torch.nn.parameter import is_lazy

from torchkeep.errors import UnsavableError
from torchkeep.formats.paths import ROOT, Path
from torchkeep.names import join
from torchkeep.recipes.arguments import ArgumentEncoder, Template
from torchkeep.recipes.builtin import CONTAINERS, arguments_of
from torchkeep.recipes.document import Entry
from torchkeep.recipes.registry import id_of, is_current
from torchkeep.recipes.remembering import ARGUMENTS_ATTRIBUTE
from torchkeep.tables.modules import unwrap

if TYPE_CHECKING:
    from torch import nn

    from torchkeep.formats.values import Node

MAX_DEPTH = 64
"""Modules within modules."""


class Describer:
    """Describes modules, remembering every problem instead of stopping at the first.

    Attributes:
        problems: one sentence for each part that can't be described.
        shares: whether one module was met in two places.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.shares = False
        # What was described, or comes with what was: the entry that it is part of, and where. The modules stay
        # alive, so that no id is used twice.
        self._met: dict[int, tuple[Entry, str, str]] = {}
        self._alive: list[nn.Module] = []
        self._depth = 0

    def describe(self, wrapped: nn.Module, path: str) -> Node:
        """Return the entry of a module, as JSON's own types; entries are made in the order of building.

        Args:
            wrapped: the module, maybe in a wrapper, which is no part of a recipe.
            path: where it is.
        """
        return _plain(self._entry(wrapped, path))

    def _entry(self, wrapped: nn.Module, path: str) -> Entry:
        module = unwrap(wrapped)
        met = self._met.get(id(module))
        if met is not None:
            self.shares = True
            entry, at, label = met
            entry.label = label
            return Entry(same=entry.label, at=at)
        self._depth += 1
        try:
            return self._new_entry(module, path)
        finally:
            self._depth -= 1

    def _new_entry(self, module: nn.Module, path: str) -> Entry:
        entry = Entry()
        where = path or "the model"
        problem = f"modules are nested more than {MAX_DEPTH} deep" if self._depth > MAX_DEPTH else _unfit(module)
        if problem:
            self.problems.append(f"{where}: {problem}")
        else:
            entry.block = id_of(type(module)) or ""
            if entry.block.startswith("torch.nn."):
                self._torch_arguments(entry, module, path)
            else:
                self._remembered_arguments(entry, module, path)
            if type(module) in CONTAINERS:
                for name, child in module._modules.items():  # noqa: SLF001 - children() skips shared and empty places
                    entry.children[name] = None if child is None else self._entry(child, join(path, name))
        for at, part in module.named_modules(remove_duplicate=False):
            self._met.setdefault(id(unwrap(part)), (entry, at, path or "the model"))
        self._alive.append(module)
        return entry

    def _torch_arguments(self, entry: Entry, module: nn.Module, path: str) -> None:
        encoder = ArgumentEncoder(lambda part, at: self._module(part, join(path, at.name)))
        try:
            arguments = arguments_of(module)
        except UnsavableError as reason:
            self.problems.append(f"{path or 'the model'}: {entry.block}: {reason}")
            return
        for name, value in arguments.items():
            entry.args[name] = encoder.encode(value, Path(ROOT, name))
        self._note_arguments(entry, path, [(str(at), sentence) for at, sentence in encoder.problems])

    def _module(self, part: nn.Module | Template, path: str) -> Any:
        if isinstance(part, Template):
            return self._template(part.module, path)
        return self._entry(part, path)

    def _template(self, module: nn.Module, path: str) -> Node:
        """Describe a module that only serves as a pattern: what is met in it is met nowhere else."""
        inner = Describer()
        entry = inner.describe(module, path)
        self.problems += inner.problems
        if inner.shares:
            self.problems.append(f"{path}: a module that is copied holds one module in two places")
        return entry

    def _remembered_arguments(self, entry: Entry, module: nn.Module, path: str) -> None:
        record = vars(module).get(ARGUMENTS_ATTRIBUTE)
        if record is None:
            self.problems.append(
                f"{path or 'the model'}: this instance of {entry.block} does not know its arguments: it was made "
                "before @tk.block, or without its constructor; make it anew"
            )
            return
        self._note_arguments(entry, path, record["problems"])
        for name, node in record["args"].items():
            entry.args[name] = self._resolved(node, module, path)

    def _note_arguments(self, entry: Entry, path: str, problems: list[Any]) -> None:
        self.problems += [f"{path or 'the model'}: argument {at} of {entry.block}: {why}" for at, why in problems]

    def _resolved(self, node: Any, owner: nn.Module, path: str) -> Any:
        """Copy a remembered node, and put an entry where it means a child by its path or a template."""
        if isinstance(node, list):
            return [self._resolved(item, owner, path) for item in node]
        if not isinstance(node, dict):
            return node
        part = node.get("module")
        # No node and no value has one of these two keys alone, so that nothing of the user's is taken for them.
        if isinstance(part, dict) and set(part) == {"template"}:
            return {"module": part["template"]}
        if isinstance(part, dict) and set(part) == {"child"}:
            return {"module": self._child(owner, part["child"], path)}
        return {key: self._resolved(item, owner, path) for key, item in node.items()}

    def _child(self, owner: nn.Module, at: str, path: str) -> Any:
        module: nn.Module | None = owner
        for name in at.split("."):
            module = None if module is None else module._modules.get(name)  # noqa: SLF001 - wrappers keep their names
        if module is None:
            self.problems.append(
                f"{join(path, at)}: this module was an argument of {path or 'the model'} and is gone; make the "
                "block anew without it"
            )
            return Entry()
        return self._entry(module, join(path, at))


def _plain(entry: Entry) -> Node:
    return msgspec.to_builtins(entry)


def _unfit(module: nn.Module) -> str:
    """Say why no entry names this module's class, or nothing."""
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if any(map(is_lazy, own)):
        return f"{name} is lazy; run the model once, so that it knows its shapes"
    if cls.__module__ == "torch.nn.utils.parametrize":
        return "it is parametrized, which no constructor shows; parametrize in the constructor of a @tk.block"
    if id_of(cls) is None:
        registered = next((base.__qualname__ for base in cls.__mro__ if id_of(base)), "Module")
        base = "" if registered == "Module" else f" (that its base {registered} is registered does not count)"
        return f"{name} is not registered{base}; decorate the class with @tk.block, or build the part inside one"
    if not is_current(cls):
        return f"{name} was defined again after this instance was made; make it anew"
    return ""
