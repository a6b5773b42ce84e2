"""A recipe: how a module was made, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import msgspec

from torchkeep.errors import MissingFileError, RecipeError, StorageError
from torchkeep.tables.survey import TieKind

FORMAT: Final = "torchkeep-recipe"
VERSION: Final = 1


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One module: a block's id and arguments, or a reference to a module that was made before.

    Attributes:
        block: id of the class.
        args: node of each argument by name (see `torchkeep.recipes.arguments`).
        children: of a container, what it is filled with, by name.
        label: the name by which references mean this module; empty where none does.
        same: the label of the module that this is; then there is no block.
        at: where in that module it is: a path; empty for itself.
    """

    block: str = ""
    args: dict[str, Any] = {}
    children: dict[str, Entry | None] = {}
    label: str = ""
    same: str = ""
    at: str = ""


class TieEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A tie that constructors do not make.

    Attributes:
        kind: ``"module"``: names are paths of modules; ``"parameter"`` or ``"storage"``: names of tensors.
        names: the owner's first.
    """

    kind: TieKind
    names: tuple[str, ...]


class Recipe(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, eq=True, kw_only=True):
    """How a module was made: block ids, arguments, children, ties. Values are no part of it, nor are devices.

    Two recipes are equal when they say the same. `str` shows the tree.

    Attributes:
        root: the module.
        ties: those that constructors do not make.
        dtypes: names of tensors by the dtype that they were converted to; ``**`` is every floating one.
        frozen: names of parameters that need no gradient, though their constructors say they do; ``**`` is all.
        trainable: the other way round.
    """

    root: Entry
    ties: tuple[TieEntry, ...] = ()
    dtypes: dict[str, tuple[str, ...]] = {}
    frozen: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON's own types, with its format and version."""
        return {"format": FORMAT, "version": VERSION, **msgspec.to_builtins(self)}

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=2).decode()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read what `to_dict` made. Whether it can be built is seen by `build`.

        Raises:
            RecipeError: it is no recipe, or one of a later torchkeep.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise RecipeError(f'this is no recipe: an object with "format": "{FORMAT}" was expected')
        version = data.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise RecipeError(f"a recipe's version is a positive integer; found {version!r}")
        if version > VERSION:
            raise RecipeError(
                f"the recipe has version {version}, this torchkeep knows up to {VERSION}; update torchkeep"
            )
        rest = {key: value for key, value in data.items() if key not in {"format", "version"}}
        try:
            return msgspec.convert(rest, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise RecipeError(f"the recipe is not what it should be: {_said(error)}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` made.

        Raises:
            RecipeError: it is no recipe, or one of a later torchkeep.
        """
        try:
            data = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise RecipeError(f"the recipe is no JSON: {_said(error)}") from None
        return cls.from_dict(data)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a file that holds what `to_json` made.

        Raises:
            RecipeError: it holds no recipe, or one of a later torchkeep.
            MissingFileError: there is none.
            StorageError: it can't be read.
        """
        try:
            text = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise MissingFileError.wrap(error, f"there is no recipe at {path}") from error
        except OSError as error:
            raise StorageError.wrap(error, f"{path} can't be read: {error.strerror}") from error
        try:
            return cls.from_json(text)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}; for a saved model, use tk.load_model") from None

    def __str__(self) -> str:
        from torchkeep.recipes.showing import lines_of  # noqa: PLC0415 - only who prints needs it

        return "\n".join(lines_of(self))


def _said(error: BaseException) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
