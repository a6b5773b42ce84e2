"""`load_model`: a model out of its file alone, built by the recipe in it and filled with what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchkeep.errors import FormatError, RecipeError
from torchkeep.files.checkpointed import CheckpointSource
from torchkeep.files.file_sources import FileSource
from torchkeep.files.filling import fill_from
from torchkeep.files.matching import Options
from torchkeep.files.sources import opened
from torchkeep.formats.document import decode_json
from torchkeep.recipes import Recipe, build
from torchkeep.storage.local import LOCAL

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import nn

    from torchkeep.files.offering import Source
    from torchkeep.tensors.checkpoints import Checkpoint


def load_model(path: str | os.PathLike[str] | Checkpoint, registry: Mapping[str, type] | None = None) -> nn.Module:
    """Build the model that was saved to ``path``, and fill it.

    A recipe runs no code but the constructors of registered classes. The random state is left as it was. The
    model is in training mode and on torch's current default device, as constructors leave it.

    Args:
        path: a file that `save` made of a module that a recipe describes, or a checkpoint that holds one.
        registry: more classes by id; see `build`.

    Raises:
        RecipeError: the file holds no recipe, or one that can't be built.
        UnknownBlockError: the recipe names a block that is not registered.
        LoadError: the model that was built does not fit the file, since a class has changed.
        DamageError: the file's bytes are not what was written.
        FormatError: it is no file that can be read.
        StoreError: there is no such store or checkpoint.
        StorageError: the file can't be read.
    """
    with opened(LOCAL, path) as source:
        described = _recipe(source)
        if described is None:
            raise RecipeError(
                f"{source.text} holds no recipe, only tensors: it was not saved from a module that a recipe "
                "describes; build the model yourself and fill it with load_into"
            )
        try:
            described = Recipe.from_dict(described)
        except RecipeError as cause:
            raise FormatError(f"the recipe in {source.text} is not what it should be: {cause}") from cause
        with torch.random.fork_rng(devices=[]):
            net = build(described, registry)
        fill_from(source, net, Options())
    return net


def _recipe(source: Source) -> Any:
    if isinstance(source, CheckpointSource):
        return source.described.manifest.recipe
    document = source.contents.document if isinstance(source, FileSource) else None
    return None if document is None else decode_json(document.recipe)
