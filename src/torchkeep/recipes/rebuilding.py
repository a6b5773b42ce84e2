"""Build a module from a recipe: look up, construct, fill, tie. Nothing is imported."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import torch
from torch import nn

from torchkeep.errors import RecipeError, UnknownBlockError
from torchkeep.names import join
from torchkeep.recipes.arguments import ArgumentDecoder
from torchkeep.recipes.builtin import CONTAINERS, MAX_LAYERS, signature_of
from torchkeep.recipes.describing import MAX_DEPTH
from torchkeep.recipes.document import Entry, Recipe
from torchkeep.recipes.finishing import finish
from torchkeep.recipes.registry import known_classes
from torchkeep.selectors.suggest import did_you_mean

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterator, Mapping

    from torchkeep.formats.values import Node


def build(recipe: Recipe | dict[str, Any] | str | Path, registry: Mapping[str, type] | None = None) -> nn.Module:
    """Build a new module as a recipe says, with fresh values.

    Every id and every argument is checked before the first constructor runs. No module is imported, and no code
    is run but the constructors of registered classes. The module is made on torch's current default device: a
    recipe that nobody vouches for can be looked at under ``with torch.device("meta")``, where size costs nothing.

    What only files know is left unset, as `materialize` leaves it: parameters of a ParameterList, class weights
    of a loss (NaN). Whatever else a constructor draws, it draws as always.

    Args:
        recipe: a Recipe, what its ``to_dict`` gives, or the path of a file that holds its JSON.
        registry: more classes by id, which come before the registered ones: ``{"old.home.Net": Net}`` builds a
            class under the id that it had.

    Returns:
        The module, in training mode, as constructors leave it.

    Raises:
        UnknownBlockError: an id is not registered; says which are nearest.
        RecipeError: it is no recipe, or constructors do not take what it says.
        MissingFileError: the file does not exist.
    """
    if isinstance(recipe, str | Path):
        recipe = Recipe.from_file(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_dict(recipe)
    for key, cls in (registry or {}).items():
        if not isinstance(cls, type):
            raise RecipeError(f"registry[{key!r}] is {cls!r}; a class was expected")
    classes = known_classes(registry)
    try:
        _Builder(classes, dry=True).module(recipe.root, "")
        with _float32():
            net = _Builder(classes, dry=False).module(recipe.root, "")
        finish(net, recipe)
    except RecursionError:
        raise RecipeError("the recipe is nested too deep") from None
    return net


@contextmanager
def _float32() -> Iterator[None]:
    """Construct under the default dtype under which recipes are written, whatever it is now."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


_Call: TypeAlias = tuple[list[Any], dict[str, Any]]
"""Positional and keyword arguments."""


class _Builder:
    """Builds entries in order. A dry one only sees whether they can be, and constructs nothing of theirs."""

    def __init__(self, classes: Mapping[str, type], *, dry: bool) -> None:
        self._classes, self._dry = classes, dry
        self._labelled: dict[str, nn.Module] = {}
        self._depth = 0

    def module(self, entry: Entry, path: str) -> nn.Module:
        """Return the module of an entry."""
        where = path or "the model"
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecipeError(f"{where}: modules are nested more than {MAX_DEPTH} deep")
        if bool(entry.block) == bool(entry.same):
            raise RecipeError(f"{where}: either a block or a reference was expected")
        made = self._reference(entry, where) if entry.same else self._new(entry, path, where)
        self._depth -= 1
        return made

    def _reference(self, entry: Entry, where: str) -> nn.Module:
        if entry.args or entry.children or entry.label:
            raise RecipeError(f"{where}: a reference has no arguments and no children")
        if entry.same not in self._labelled:
            raise RecipeError(f"{where}: it is to be the same as {entry.same!r}, which is not made before it")
        module = self._labelled[entry.same]
        if self._dry or not entry.at:
            return module
        try:
            return module.get_submodule(entry.at)
        except AttributeError:
            raise RecipeError(f"{where}: there is no module {entry.at!r} in {entry.same!r}") from None

    def _new(self, entry: Entry, path: str, where: str) -> nn.Module:
        cls = self._look_up(entry.block)
        if not issubclass(cls, nn.Module):
            raise RecipeError(f"{where}: {entry.block!r} is registered, but is no nn.Module")
        decoder = ArgumentDecoder(
            lambda node: self.module(_entry_of(node, where), join(path, "(argument)")),
            self._look_up,
            dry=self._dry,
        )
        args: dict[str, Any] = {}
        for name, node in entry.args.items():
            try:
                args[name] = decoder.decode(node)
            except UnknownBlockError:
                raise
            except Exception as error:
                raise RecipeError(f"{where}: argument {name!r} of {entry.block}: {error}") from error
        bound = self._bind(entry, cls, args, where)
        module = nn.Module() if self._dry else self._construct(entry, cls, bound, where)
        self._fill(entry, cls, module, path, where)
        if entry.label:
            if entry.label in self._labelled:
                raise RecipeError(f"{where}: the label {entry.label!r} is used twice")
            self._labelled[entry.label] = module
        return module

    def _look_up(self, name: Node) -> Any:
        if isinstance(name, str):
            if name.startswith("torchkeep.nn.") and name not in self._classes:
                # torchkeep's own blocks are always registered; only this id decides, nothing that a recipe says.
                import_module("torchkeep.nn")
                self._classes = {**known_classes(), **self._classes}
            if name in self._classes:
                return self._classes[name]
        near = did_you_mean(str(name), self._classes)
        raise UnknownBlockError(
            f"no class is registered under {name!r};{near} import the module that defines it (with @tk.block) "
            "first, or pass registry={id: class}"
        )

    def _bind(self, entry: Entry, cls: type[nn.Module], args: dict[str, Any], where: str) -> _Call:
        signature = signature_of(cls)
        unknown = [name for name in args if name not in signature.parameters]
        if unknown:
            raise RecipeError(
                f"{where}: {entry.block} takes no argument {', '.join(map(repr, unknown))}; it takes "
                f"{', '.join(signature.parameters)}"
            )
        if entry.block.startswith("torch.nn."):
            for name, value in args.items():
                counts = name.startswith("num_") and name.endswith("layers")
                if counts and isinstance(value, int) and value > MAX_LAYERS:
                    raise RecipeError(f"{where}: {name}={value} is more than {MAX_LAYERS}")
        try:
            bound = _bound(signature, args)
        except TypeError as error:
            raise RecipeError(f"{where}: {entry.block}: {error}") from None
        return bound

    def _construct(self, entry: Entry, cls: type[nn.Module], call: _Call, where: str) -> nn.Module:
        positional, keywords = call
        try:
            module = cls(*positional, **keywords)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise RecipeError(f"{where}: {entry.block} could not be constructed: {said}") from error
        if not isinstance(module, nn.Module):
            raise RecipeError(f"{where}: {entry.block} did not make an nn.Module")
        return module

    def _fill(self, entry: Entry, cls: type[nn.Module], module: nn.Module, path: str, where: str) -> None:
        if entry.children and cls not in CONTAINERS:
            raise RecipeError(f"{where}: {entry.block} makes its children itself, but the recipe gives it some")
        for name, child in entry.children.items():
            try:
                module.add_module(name, None if child is None else self.module(child, join(path, name)))
            except (KeyError, TypeError) as error:
                raise RecipeError(f"{where}: {name!r} can't be a child's name: {error}") from None


def _bound(signature: inspect.Signature, args: Mapping[str, Any]) -> _Call:
    """Return how to call with arguments by name: by name wherever the signature lets one.

    Raises:
        TypeError: they do not fit it.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name in args]
    rest = next((args[one.name] for one in parameters if one.kind is one.VAR_POSITIONAL), ())
    for parameter in parameters:
        value = args[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            if not isinstance(value, list | tuple):
                raise TypeError(f"*{parameter.name} takes a list, found {type(value).__name__}")
            positional += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            if not isinstance(value, dict) or value.keys() & signature.parameters.keys():
                raise TypeError(f"**{parameter.name} takes a dict of other names")
            keywords |= value
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            rest and parameter.kind is not parameter.KEYWORD_ONLY
        ):
            positional.append(value)
        else:
            keywords[parameter.name] = value
    bound = signature.bind(*positional, **keywords).arguments
    if rest and bound.keys() - keywords.keys() != args.keys() - keywords.keys():
        raise TypeError("arguments before the last positional one are missing")
    return positional, keywords


def _entry_of(node: Node, where: str) -> Entry:
    try:
        return msgspec.convert(node, Entry)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: what it holds as a module is none: {error}") from None
