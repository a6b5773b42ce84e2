"""What of a checkpoint goes into one file of torchkeep; no tensor is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torchkeep.archive.described import tensors_in
from torchkeep.errors import SourceError
from torchkeep.files.checkpointed import model_part, state_of
from torchkeep.files.collecting import Collected
from torchkeep.files.outlining import encode_plain_at, outline_rows, stand_in
from torchkeep.formats.document import decode_json
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.values import Encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec
    from torch import Tensor

    from torchkeep.archive.described import Described


class Extracted(NamedTuple):
    """What is to be saved of a checkpoint.

    Attributes:
        collected: its outline.
        recipe: of a module, or None.
        left_out: what of the checkpoint is not part of it.
    """

    collected: Collected
    recipe: Any
    left_out: tuple[str, ...]


def outline_state(described: Described) -> Extracted:
    """Outline all of a checkpoint: a module as such, anything else as `torchkeep.load` gives it.

    Raises:
        FormatError: what the manifest says contradicts itself, or torch can't make a dtype.
    """
    names = {name: name for name in described.names}
    module = outline_module(described, names)
    if module is not None:
        return module
    collected = outline_rows(described.listing)
    collected.root, collected.module = "dict", None
    collected.tensors.update(_hidden(described, described.hidden))
    collected.order = (*described.names, *sorted(described.hidden))
    collected.aliases = dict(described.manifest.aliases)
    if bytes(described.tree.value) != b"null":
        collected.root, collected.tree = "tree", _tree(described)
    knows = bool(described.tree.modules)
    return Extracted(
        collected,
        None,
        tuple(
            what
            for what, is_there in (
                ("kinds and classes, which a file has of one module alone (--select, --rename)", knows),
                ("the recipe", described.manifest.recipe is not None),
            )
            if is_there
        ),
    )


def outline_module(described: Described, renamed: Mapping[str, str]) -> Extracted | None:
    """Outline a module of a checkpoint, with its extra state and recipe; None unless just that is asked for.

    Args:
        described: what the checkpoint holds.
        renamed: what is to be written: each name and what it becomes.
    """
    for prefix, facts in described.tree.modules.items():
        inside = f"{prefix}." if prefix else ""
        own = {name: name[len(inside) :] for name in described.names if name.startswith(inside)}
        if own != dict(renamed):
            continue
        manifest = described.manifest
        collected = Collected("module", module=facts, order=tuple(own.values()))
        owners: dict[str, str] = {}
        for name, new in own.items():
            owner = owners.setdefault(described.owner(name), new)
            if owner != new:
                collected.aliases[new] = owner
        for name, new in owners.items():
            stored = manifest.tensors[name]
            collected.tensors[new] = stand_in(name, stored.shape, stored.dtype, manifest.path)
        extra = [name for raw in facts.extra.values() for name in tensors_in(decode_json(raw))]
        collected.apart = _hidden(described, described.hidden.intersection(extra))
        recipe = manifest.body.recipe if _is_model(described, prefix) else None
        return Extracted(collected, None if recipe is None or bytes(recipe) == b"null" else recipe, ())
    return None


def left_out_of(described: Described) -> tuple[str, ...]:
    """Say what a selection or a rename leaves behind besides tensors."""
    modules = described.tree.modules.values()
    return tuple(
        what
        for what, is_there in (
            ("the containers and plain values around the tensors", "" not in described.tree.modules),
            ("extra state", any(facts.extra for facts in modules)),
            ("the recipe", described.manifest.recipe is not None),
        )
        if is_there
    )


def _is_model(described: Described, prefix: str) -> bool:
    try:
        return model_part(described) == prefix
    except SourceError:  # several, and none of them is the model
        return False


def _hidden(described: Described, names: frozenset[str]) -> dict[str, Tensor]:
    manifest = described.manifest
    found = {name: manifest.tensors[name] for name in sorted(names) if name in manifest.tensors}
    return {name: stand_in(name, one.shape, one.dtype, manifest.path) for name, one in found.items()}


class _Named:
    """Stands for a tensor while the state is put together."""

    def __init__(self, name: str) -> None:
        self.name = name


def _tree(described: Described) -> msgspec.Raw | Any:
    """Return the tree of the values that `torchkeep.load` gives, modules being dicts there."""
    named = {name: _Named(name) for name in (*described.names, *described.hidden)}

    def encoded(value: object, path: Path) -> tuple[str, Any] | None:
        return ("tensor", value.name) if isinstance(value, _Named) else encode_plain_at(value, path)

    encoder = Encoder(encoded)
    node = encoder.encode(state_of(described, named), ROOT)
    encoder.raise_problems()
    return node
