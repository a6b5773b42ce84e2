"""`save`: one object, one file, whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from torchkeep.errors import RecipeError
from torchkeep.files.collecting import collect
from torchkeep.files.writing import lay_out, write_layout
from torchkeep.recipes import recipe
from torchkeep.rows.text import size_text
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.pausing import without_collections

if TYPE_CHECKING:
    from torchkeep.storage.base import Storage

_SHOWN: Final = 20


@dataclass(frozen=True)
class SaveReport:
    """What was saved; ``str()`` of it is for people.

    Attributes:
        path: the file.
        names: every tensor's name, aliases included, in order.
        nbytes: size of the file.
        ties: the owner's name and then the aliases of each tensor that has several names.
        left_out: names of non-persistent buffers, which are not part of a module's state and are not in the file.
        no_recipe: why a module's file holds no recipe, so that `load_model` can't build it; None where it holds
            one, or where no module was saved.
        digest: blake3 of the file's header, which holds the digests of everything else: equal digests mean equal
            files.
    """

    path: str
    names: tuple[str, ...]
    nbytes: int
    ties: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]
    no_recipe: str | None
    digest: str

    def __str__(self) -> str:
        names = f"{len(self.names)} name{'' if len(self.names) == 1 else 's'}"
        lines = [f"saved {names}, {size_text(self.nbytes)}, to {self.path}"]
        lines.extend(f"  tied: {' = '.join(tie)}" for tie in _some(self.ties))
        lines.extend(f"  left out, not persistent: {name}" for name in _some(self.left_out))
        if self.no_recipe:
            lines.append("  without a recipe: load_into can load it, load_model can't build it")
        return "\n".join([*lines, f"  blake3 of the header: {self.digest}"])


def save(obj: Any, path: str | os.PathLike[str]) -> SaveReport:
    """Save tensors, containers of tensors and plain values, or a module's state, as one safetensors file.

    The file is written beside ``path``, synced, renamed into place, and the directory is synced; until then the
    old file is as it was, byte for byte. Saving the same values again gives the same bytes.

    A module that a recipe describes is saved with it, so that `load_model` can build it again.

    Args:
        obj: a tensor; a nested list, tuple, set or dict of tensors and plain values (None, bool, int, float,
            complex, str, bytes, OrderedDict, Counter, torch.Size, torch.dtype, torch.device); or a module, of
            which parameters, persistent buffers and extra state are saved.
        path: the file. Its directory must exist; symbolic links are followed, and an existing file's permission
            bits are kept.

    Returns:
        What was saved, and what was left out.

    Raises:
        UnsavableError: something in ``obj`` can't be kept without pickle; all of it is named, nothing was written.
        StorageError: the operating system refused; the old file is as it was.
        SourceError: a module that contains itself.
    """
    return save_to(LOCAL, obj, path)


@without_collections()
def save_to(storage: Storage, obj: Any, path: str | os.PathLike[str]) -> SaveReport:
    """Save through any storage; see `save`."""
    collected = collect(obj)
    described, no_recipe = _recipe_of(obj)
    layout = lay_out(collected, described)
    target = os.fspath(path)
    digest = write_layout(storage, target, layout)
    ties: dict[str, list[str]] = {}
    for alias, owner in collected.aliases.items():
        ties.setdefault(owner, [owner]).append(alias)
    return SaveReport(
        path=target,
        names=collected.order,
        nbytes=layout.nbytes,
        ties=tuple(map(tuple, ties.values())),
        left_out=collected.left_out,
        no_recipe=no_recipe,
        digest=digest,
    )


def _recipe_of(obj: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return a module's recipe, or why it has none."""
    if not isinstance(obj, nn.Module):
        return None, None
    try:
        return recipe(obj).to_dict(), None
    except RecipeError as error:
        return None, str(error)


def _some(items: tuple[Any, ...]) -> list[Any]:
    return [*items[:_SHOWN], "..."] if len(items) > _SHOWN else list(items)
