"""Take apart what is to be saved: tensors under names, and the rest as plain values. Nothing is written here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from torchkeep.files.modules import EXTRA_STATE, module_facts, undescribed_state
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.safetensors import METADATA_KEY
from torchkeep.formats.values import Encoder, is_text
from torchkeep.names import join
from torchkeep.tables.survey import survey
from torchkeep.tensors.keepable import why_not_kept
from torchkeep.tensors.plain import encode_plain
from torchkeep.tensors.sharing import tied, unused_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from torchkeep.formats.document import ModuleFacts
    from torchkeep.formats.values import Hook, Node
    from torchkeep.tables.survey import Survey


@dataclass
class Collected:
    """What is to be saved, taken apart.

    Attributes:
        root: the kind of what was given; see `Document`.
        tensors: every tensor by its owner's name.
        apart: further tensors, which share nothing with the others (extra state).
        aliases: owner by alias.
        order: all names, as they came.
        tree: of a ``"tree"``.
        state: versions of a state_dict.
        parameters: names that were an ``nn.Parameter``, where no module says so.
        gradients: names that required a gradient, where no module says so.
        module: what a module knew.
        left_out: names of non-persistent buffers.
    """

    root: Literal["dict", "ordered", "module", "tree"]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    apart: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    tree: Node = None
    state: Node = None
    parameters: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    module: ModuleFacts | None = None
    left_out: tuple[str, ...] = ()


def collect(obj: Any) -> Collected:
    """Take ``obj`` apart.

    Raises:
        UnsavableError: something in it can't be kept without pickle; all of it is named, each with its path.
        SourceError: a module that contains itself.
    """
    gatherer = Gatherer()
    if isinstance(obj, nn.Module):
        collected = gatherer.module(survey(obj))
    else:
        collected = gatherer.mapping(obj) if _is_flat(obj) else gatherer.tree(obj)
    gatherer.encoder.raise_problems()
    return collected


def _is_flat(obj: Any) -> bool:
    """Tell whether ``obj`` is a dict of tensors whose keys can be the tensors' names."""
    if type(obj) not in {dict, OrderedDict} or set(getattr(obj, "__dict__", ())) - {"_metadata"}:
        return False
    return all(
        type(key) is str and isinstance(value, torch.Tensor) and key != METADATA_KEY and is_text(key)
        for key, value in obj.items()
    )


class Gatherer:
    """Collects tensors under distinct names, and every problem instead of the first.

    Args:
        prefix: what all names begin with, a dot between; empty for none.
        taken: names that are not free any more.
        hook: encodes, or refuses, values that are neither tensors nor torch's own plain values.

    Attributes:
        tensors: by name, as they are kept.
        encoder: encodes the values around them, and has the problems.
    """

    def __init__(self, prefix: str = "", taken: Iterable[str] = (), hook: Hook | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.encoder = Encoder(self._hook)
        self.root = Path(ROOT, prefix) if prefix else ROOT
        self._prefix = prefix
        self._originals: dict[str, Tensor] = {}
        self._taken = {METADATA_KEY, *taken}
        self._further = hook

    def mapping(self, obj: dict[str, Tensor]) -> Collected:
        """Collect a flat dict of tensors: its keys are the names."""
        for name, tensor in obj.items():
            self._keep(name, tensor, name)
        state = None
        if isinstance(obj, OrderedDict):
            state = self.encoder.encode(getattr(obj, "_metadata", None), Path(ROOT, "_metadata"))
        return self._with_ties(Collected("ordered" if isinstance(obj, OrderedDict) else "dict", state=state), obj)

    def tree(self, obj: Any) -> Collected:
        """Collect nested containers, plain values and tensors: names are the paths, joined by dots."""
        tree = self.encoder.encode(obj, self.root)
        return self._with_ties(Collected("tree", tree=tree), self._originals)

    def module(self, found: Survey) -> Collected:
        """Collect a module's persistent state. Facts and extra state have the module's own names as keys."""
        collected = Collected("module")
        for row, tensor in zip(found.listing.rows, found.tensors, strict=True):
            names = [join(self._prefix, name) for name in row.names] if self._prefix else row.names
            if not row.persistent:
                collected.left_out += tuple(names)
                continue
            self._keep(names[0], tensor, names[0], any_class=True)
            collected.aliases.update(dict.fromkeys(names[1:], names[0]))
        for path in found.modules:
            if not is_text(path):
                self.encoder.problems.append((repr(path), "no file can hold a module of that name; rename it"))
        collected.tensors, self.tensors = self.tensors, {}
        self._taken.update(collected.tensors, collected.aliases)
        collected.order = _state_dict_order(found, collected, self._prefix)
        extra = self.extra_state(found)
        collected.apart = self.tensors
        known = {name.removeprefix(f"{self._prefix}.") for name in collected.order} if self._prefix else ()
        for where, reason in undescribed_state(found, {*(known or collected.order), *extra}):
            self.encoder.problems.append((join(self._prefix, str(where)) if self._prefix else where, reason))
        collected.module = module_facts(found.listing, extra)
        return collected

    def extra_state(self, found: Survey) -> dict[str, Node]:
        """Encode a module's extra state by its key in the state_dict; its tensors are collected."""
        nodes = {}
        for path, module in found.modules.items():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                key = join(path, EXTRA_STATE)
                nodes[key] = self.encoder.encode(module.get_extra_state(), Path(ROOT, join(self._prefix, key)))
        return nodes

    def _hook(self, value: object, path: Path) -> tuple[str, Node] | None:
        if not isinstance(value, torch.Tensor):
            return encode_plain(value) or (self._further and self._further(value, path))
        name = unused_name(path.name or "tensor", self._taken)
        self._taken.add(name)
        self._keep(name, value, path)
        self._originals[name] = value
        return "tensor", name

    def _keep(self, name: str, tensor: Tensor, path: Path | str, *, any_class: bool = False) -> None:
        reason = why_not_kept(tensor, any_class=any_class)
        if reason is None and (name == METADATA_KEY or not is_text(name)):
            reason = "no safetensors file can hold a tensor of that name; rename it"
        if reason is not None:
            self.encoder.problems.append((path, reason))
        elif tensor.is_conj() or tensor.is_neg():
            # Lazily conjugated: the memory holds other values than the tensor.
            self.tensors[name] = tensor.detach().resolve_conj().resolve_neg()
        else:
            self.tensors[name] = tensor

    def _with_ties(self, collected: Collected, originals: dict[str, Tensor]) -> Collected:
        if self.encoder.problems:
            return collected
        collected.aliases = tied(self.tensors)
        collected.tensors = {n: tensor for n, tensor in self.tensors.items() if n not in collected.aliases}
        collected.order = tuple(self.tensors)
        collected.parameters = tuple(n for n, tensor in originals.items() if isinstance(tensor, nn.Parameter))
        collected.gradients = tuple(n for n, tensor in originals.items() if tensor.requires_grad)
        return collected


def _state_dict_order(found: Survey, collected: Collected, prefix: str) -> tuple[str, ...]:
    """Return all names in the order in which a state_dict has them."""
    if not collected.aliases:
        return tuple(collected.tensors)
    known = collected.tensors.keys() | collected.aliases.keys()
    return tuple(
        name
        for path, module in found.modules.items()
        for key in (*module._parameters, *module._buffers)  # noqa: SLF001 - named_parameters hides ties
        if (name := join(prefix, join(path, key))) in known
    )
