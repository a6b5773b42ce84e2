"""Every error that torchkeep raises on purpose.

    TorchkeepError
    ├── SelectorError (ValueError)
    │   ├── SelectorSyntaxError        the text is not a selector; shows it with a caret
    │   ├── MissingFieldError          the source does not know what the selector asks about
    │   └── NoMatchError (KeyError)    nothing has that name, or nothing matches; shows the nearest names
    ├── SourceError (TypeError)        the object given is nothing that parameters can be read from
    ├── TableError (ValueError)        the operation does not fit the table (freezing a file, mixing two models)
    ├── StructureError (RuntimeError)  a module could not be run to see its shapes
    ├── BlockError (ValueError)        a block of tk.nn that can't be made, or a tensor that does not fit it
    ├── RuleError (ValueError)         rules that leave parameters unclaimed, never win, or can't be carried out
    ├── TieError (ValueError)          tensors that can't be tied, or ties that could not be kept
    ├── MaterializeError (ValueError)  a tensor that could not be rebuilt from the meta device
    ├── RecipeError (ValueError)       a module that no recipe describes, or a recipe that can't be built
    │   └── UnknownBlockError (KeyError)   a block id that is not registered
    ├── UnsavableError (TypeError)     a value that can't be kept without pickle, named by its path
    ├── StateError (AttributeError)    a TrainingState has no such part, or can't have one of that name
    ├── LoadError (ValueError)         the source does not fit the model; nothing was touched
    ├── CheckError (ValueError)        a check can't be run as asked
    │   ├── UnknownCheckError (KeyError)   no check has that name; says which are nearest
    │   └── LayerCallError (RuntimeError)  the layer does not run on the inputs given
    ├── ChecksFailedError (AssertionError) a layer does not behave; the sentence is the report
    ├── FormatError (ValueError)       the file is not what it should be
    │   ├── NewerFormatError           it was written by a later torchkeep
    │   ├── UnsafeFileError            it asks for something to be imported, called or changed; nothing was
    │   └── DamageError                a digest or a size does not match: tensor, file and byte range are named
    ├── RunError (ValueError)          a run that can't go on as asked: other batches than before, two loops
    ├── StoreError (ValueError)        a store of checkpoints that can't be used as asked
    │   ├── MissingCheckpointError (KeyError)  it has no such checkpoint
    │   ├── StoreLockedError (TimeoutError)    another process writes to it
    │   └── SaveUnfinishedError (TimeoutError) a save takes longer than was to be waited; it goes on
    └── StorageError (OSError)         the operating system refused
        └── MissingFileError (FileNotFoundError)

    TorchkeepWarning (UserWarning)     something went on without what it should have had, and says so

Each sentence names the thing, what was expected, what was found, and what to do.
"""

from __future__ import annotations

from typing import Any, Self
from unicodedata import combining, east_asian_width


class TorchkeepError(Exception):
    """The root of the tree: catch this to catch all of torchkeep's own errors.

    An error's only positional argument is its sentence; details are attributes, and both survive pickling.
    """

    def __str__(self) -> str:
        # KeyError would show repr(sentence), OSError "[Errno ...]": the sentence as written is what people read.
        return str(self.args[0]) if self.args else ""


class TorchkeepWarning(UserWarning):
    """Something went on without what it should have had: an older checkpoint was restored, say."""


class SelectorError(TorchkeepError, ValueError):
    """A selector that can't be used."""


class SelectorSyntaxError(SelectorError):
    """The text is not a selector.

    Attributes:
        text: the selector as given.
        position: index into ``text`` of the first character that does not fit.
        problem: what is wrong, without the picture.
    """

    text: str = ""
    position: int = 0
    problem: str = ""

    @classmethod
    def at(cls, text: str, position: int, problem: str) -> SelectorSyntaxError:
        """Build the error with the selector, on one line, and a caret under ``position``."""
        shown = "".join(char if char.isprintable() else " " for char in text)
        # Chinese, say, takes two columns a character, and an accent that follows its letter none.
        columns = sum(
            0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in shown[:position]
        )
        error = cls(f"{problem}\n  {shown}\n  {' ' * columns}^")
        error.text, error.position, error.problem = text, position, problem
        return error


class MissingFieldError(SelectorError):
    """The selector asks for something that the source does not know, such as classes in a plain state_dict."""


class NoMatchError(SelectorError, KeyError):
    """Nothing has that name, or nothing matches that selector.

    Attributes:
        wanted: the name or selector as given.
        nearest: the nearest names, best first; may be empty.
    """

    wanted: str = ""
    nearest: tuple[str, ...] = ()


class SourceError(TorchkeepError, TypeError):
    """The object given is nothing that parameters can be read from."""


class TableError(TorchkeepError, ValueError):
    """The operation does not fit this table."""


class StructureError(TorchkeepError, RuntimeError):
    """The module could not be run on the given inputs, so its shapes can't be shown.

    Attributes:
        path: the module that it happened in; empty for the root, and when it happened in none.
    """

    path: str = ""


class BlockError(TorchkeepError, ValueError):
    """A block of `torchkeep.nn` that can't be made as asked, or that was given a tensor which does not fit."""


class RuleError(TorchkeepError, ValueError):
    """Rules (for initialising, for optimizer groups) that can't be carried out as given.

    Attributes:
        problems: one sentence for each thing that is wrong.
    """

    problems: tuple[str, ...] = ()


class TieError(TorchkeepError, ValueError):
    """Tensors that can't be tied, or ties that could not be kept."""


class MaterializeError(TorchkeepError, ValueError):
    """A tensor on the meta device that could not be rebuilt."""


class RecipeError(TorchkeepError, ValueError):
    """A module that no recipe describes, or a recipe that can't be built."""


class UnknownBlockError(RecipeError, KeyError):
    """A recipe names a block id that is not registered."""


class UnsavableError(TorchkeepError, TypeError):
    """A value that can't be kept without pickle.

    Attributes:
        path: where it sits in the object given, such as ``optimizer[0]['hook']``.
    """

    path: str = ""


class StateError(TorchkeepError, AttributeError):
    """A TrainingState has no such part, or can't have one of that name."""


class LoadError(TorchkeepError, ValueError):
    """The source does not fit the model.

    Attributes:
        problems: one sentence for each tensor that does not fit.
        replaced: what was replaced before code of others refused what it was given; empty in every other case.
    """

    problems: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


class CheckError(TorchkeepError, ValueError):
    """A check can't be run as asked: a factory that makes no module, say."""


class UnknownCheckError(CheckError, KeyError):
    """No check has that name."""


class LayerCallError(CheckError, RuntimeError):
    """The layer does not run on the inputs given; its own error is the cause."""


class ChecksFailedError(TorchkeepError, AssertionError):
    """A layer does not behave; the sentence is the report."""


class FormatError(TorchkeepError, ValueError):
    """The file is not what it should be."""


class NewerFormatError(FormatError):
    """The file was written by a later version of torchkeep."""


class UnsafeFileError(FormatError):
    """The file asks for code: a class or function by name, a call, an attribute. Nothing of that was done.

    Attributes:
        global_name: what it asked for, such as ``"os.system"``; empty when it names nothing.
        offset: where in the file it asks, in bytes.
    """

    global_name: str = ""
    offset: int = 0


class DamageError(FormatError):
    """Bytes differ from what was written.

    Attributes:
        tensor: name of the damaged tensor; empty when it is the header.
        file: path of the file.
        start: first byte of the damaged range in the file.
        stop: one past its last byte.
        problem: what is wrong there, in a few words; empty where only the sentence says it.
        replaced: names that a load had already replaced when the damage was found.
    """

    tensor: str = ""
    file: str = ""
    start: int = 0
    stop: int = 0
    problem: str = ""
    replaced: tuple[str, ...] = ()


class RunError(TorchkeepError, ValueError):
    """A run that can't go on as asked: its loader gives other batches than before, say, or two loops are run."""


class StoreError(TorchkeepError, ValueError):
    """A store of checkpoints that can't be used as asked: no store, steps that go backwards, a forked child."""


class MissingCheckpointError(StoreError, KeyError):
    """The store has no such checkpoint."""


class StoreLockedError(StoreError, TimeoutError):
    """Another process writes to the store; the sentence names host and process."""


class SaveUnfinishedError(StoreError, TimeoutError):
    """A save takes longer than was to be waited for it; it goes on."""


class StorageError(TorchkeepError, OSError):
    """The operating system refused.

    ``errno`` and ``filename`` are those of the original error, when there is one.
    """

    @classmethod
    def wrap(cls, cause: OSError, sentence: str) -> Self:
        """Build the error from the one the operating system gave; raise it ``from cause``."""
        error = cls(sentence)
        error.errno, error.filename = cause.errno, cause.filename
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError keeps errno and filename in slots that its own pickling restores only from args.
        return type(self), self.args, {**self.__dict__, "errno": self.errno, "filename": self.filename}


class MissingFileError(StorageError, FileNotFoundError):
    """There is no such file."""
