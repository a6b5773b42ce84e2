"""Remember what a block's constructor was given, as plain data in the instance."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchkeep.formats.paths import ROOT, Path
from torchkeep.recipes.arguments import ArgumentEncoder, Template

if TYPE_CHECKING:
    from torchkeep.formats.values import Node

ARGUMENTS_ATTRIBUTE = "_torchkeep_arguments"
"""Where an instance keeps them: ``{"args": {name: node}, "problems": [[path, sentence], ...]}``."""


def remember_arguments(cls: type[nn.Module]) -> None:
    """Replace the constructor of ``cls`` by one that also writes down its arguments; its signature stays."""
    original: Any = cls.__init__
    signature = _without_self(inspect.signature(original))

    @functools.wraps(original)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the class's own
        # An instance of a subclass remembers the subclass's arguments, if that is registered itself.
        if type(self) is not cls:
            original(self, *args, **kwargs)
            return
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            original(self, *args, **kwargs)
            raise
        # Before the call, because constructors may change what they are given.
        remembered = _Remembered(bound)
        original(self, *args, **kwargs)
        self.__dict__[ARGUMENTS_ATTRIBUTE] = remembered.record(self)

    cls.__init__ = __init__  # type: ignore[method-assign]  # that is what remembering is


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    first, *rest = signature.parameters.values()
    # A constructor may take itself as the first of *args.
    return signature if first.kind is first.VAR_POSITIONAL else signature.replace(parameters=rest)


class _Remembered:
    """Arguments as they were at the call. Modules among them are found in the instance once it is made."""

    def __init__(self, bound: inspect.BoundArguments) -> None:
        self.encoder = ArgumentEncoder(self._module)
        self.modules: list[tuple[nn.Module, dict[str, Any], Path]] = []
        given = set(bound.arguments)
        bound.apply_defaults()
        self.args: dict[str, Node] = {}
        for name, value in bound.arguments.items():
            if is_placement(name, value):
                continue
            found = len(self.encoder.problems)
            node = self.encoder.encode(value, Path(ROOT, name))
            if name in given or len(self.encoder.problems) == found:
                self.args[name] = node
            else:
                # A default that JSON can't hold will be the default again.
                del self.encoder.problems[found:]

    def _module(self, module: nn.Module | Template, path: Path) -> Node:
        """Leave room for what the module turns out to be."""
        assert isinstance(module, nn.Module)
        node: dict[str, Any] = {}
        self.modules.append((module, node, path))
        return node

    def record(self, owner: nn.Module) -> dict[str, Any]:
        """Say which of the given modules became children, describe the others, and return all as plain data."""
        paths: dict[int, str] = {}
        if self.modules:
            for path, module in owner.named_modules(remove_duplicate=False):
                paths.setdefault(id(module), path)
        problems = [[str(path), sentence] for path, sentence in self.encoder.problems]
        for module, node, path in self.modules:
            if id(module) in paths:
                node["child"] = paths[id(module)]
            else:
                node["template"], reasons = _template(module)
                problems += [[str(path), reason] for reason in reasons]
        return {"args": self.args, "problems": problems}


def _template(module: nn.Module) -> tuple[Node, list[str]]:
    """Describe a module that a constructor only looked at or copied, while it is at hand."""
    from torchkeep.recipes.describing import Describer  # noqa: PLC0415 - describing knows blocks, which know this

    describer = Describer()
    entry = describer.describe(module, "")
    if describer.shares:
        describer.problems.append("it holds one module in two places, which only a child may")
    return entry, [f"it is a module that became no child, and {problem}" for problem in describer.problems]


def is_placement(name: str, value: object) -> bool:
    """Tell whether an argument says on which device to build, which is no part of a recipe."""
    return name == "device" and (value is None or isinstance(value, str | int | torch.device))
