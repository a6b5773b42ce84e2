"""Take apart what is to be saved: tensors under names, and the rest as plain values. Nothing is written here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from torchkeep.files.modules import module_facts, undescribed_state
from torchkeep.formats.paths import ROOT, Path
from torchkeep.formats.safetensors import METADATA_KEY
from torchkeep.formats.values import Encoder, is_text
from torchkeep.names import join
from torchkeep.tables.survey import survey
from torchkeep.tensors.keepable import why_not_kept
from torchkeep.tensors.plain import encode_plain
from torchkeep.tensors.sharing import tied, unused_name

if TYPE_CHECKING:
    from torch import Tensor

    from torchkeep.formats.document import ModuleFacts
    from torchkeep.formats.values import Node
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
    if isinstance(obj, nn.Module):
        return _Gatherer().module(obj)
    return _Gatherer().mapping(obj) if _is_flat(obj) else _Gatherer().tree(obj)


def _is_flat(obj: Any) -> bool:
    """Tell whether ``obj`` is a dict of tensors whose keys can be the tensors' names."""
    if type(obj) not in {dict, OrderedDict} or set(getattr(obj, "__dict__", ())) - {"_metadata"}:
        return False
    return all(
        type(key) is str and isinstance(value, torch.Tensor) and key != METADATA_KEY and is_text(key)
        for key, value in obj.items()
    )


class _Gatherer:
    """Collects tensors under distinct names, and every problem instead of the first."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._originals: dict[str, Tensor] = {}
        self._taken = {METADATA_KEY}
        self._encoder = Encoder(self._hook)

    def mapping(self, obj: dict[str, Tensor]) -> Collected:
        """Collect a flat dict of tensors: its keys are the names."""
        for name, tensor in obj.items():
            self._keep(name, tensor, name)
        state = None
        if isinstance(obj, OrderedDict):
            state = self._encoder.encode(getattr(obj, "_metadata", None), Path(ROOT, "_metadata"))
        self._encoder.raise_problems()
        return self._with_ties(Collected("ordered" if isinstance(obj, OrderedDict) else "dict", state=state), obj)

    def tree(self, obj: Any) -> Collected:
        """Collect nested containers, plain values and tensors: names are the paths, joined by dots."""
        tree = self._encoder.encode(obj)
        self._encoder.raise_problems()
        return self._with_ties(Collected("tree", tree=tree), self._originals)

    def module(self, net: nn.Module) -> Collected:
        """Collect a module's persistent state."""
        found = survey(net)
        collected = Collected("module")
        for row, tensor in zip(found.listing.rows, found.tensors, strict=True):
            if not row.persistent:
                collected.left_out += row.names
                continue
            self._keep(row.name, tensor, row.name, any_class=True)
            collected.aliases.update(dict.fromkeys(row.aliases, row.name))
        for path in found.modules:
            if not is_text(path):
                self._encoder.problems.append((repr(path), "no file can hold a module of that name; rename it"))
        collected.tensors, self._tensors = self._tensors, {}
        self._taken.update(collected.tensors, collected.aliases)
        collected.order = _state_dict_order(found, collected)
        extra = self._extra_state(found)
        collected.apart = self._tensors
        self._encoder.problems.extend(undescribed_state(found, {*collected.order, *extra}))
        self._encoder.raise_problems()
        collected.module = module_facts(found.listing, extra)
        return collected

    def _extra_state(self, found: Survey) -> dict[str, Node]:
        nodes = {}
        for path, module in found.modules.items():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                key = join(path, "_extra_state")
                nodes[key] = self._encoder.encode(module.get_extra_state(), Path(ROOT, key))
        return nodes

    def _hook(self, value: object, path: Path) -> tuple[str, Node] | None:
        if not isinstance(value, torch.Tensor):
            return encode_plain(value)
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
            self._encoder.problems.append((path, reason))
        elif tensor.is_conj() or tensor.is_neg():
            # Lazily conjugated: the memory holds other values than the tensor.
            self._tensors[name] = tensor.detach().resolve_conj().resolve_neg()
        else:
            self._tensors[name] = tensor

    def _with_ties(self, collected: Collected, originals: dict[str, Tensor]) -> Collected:
        collected.aliases = tied(self._tensors)
        collected.tensors = {n: tensor for n, tensor in self._tensors.items() if n not in collected.aliases}
        collected.order = tuple(self._tensors)
        collected.parameters = tuple(n for n, tensor in originals.items() if isinstance(tensor, nn.Parameter))
        collected.gradients = tuple(n for n, tensor in originals.items() if tensor.requires_grad)
        return collected


def _state_dict_order(found: Survey, collected: Collected) -> tuple[str, ...]:
    """Return all names in the order in which a state_dict has them."""
    if not collected.aliases:
        return tuple(collected.tensors)
    known = collected.tensors.keys() | collected.aliases.keys()
    return tuple(
        name
        for path, module in found.modules.items()
        for key in (*module._parameters, *module._buffers)  # noqa: SLF001 - named_parameters hides ties
        if (name := join(path, key)) in known
    )
