"""What keeps each kind of part of a state: modules, random generators, what has a state_dict, plain values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from torchkeep.archive.described import StateTree, encode_state
from torchkeep.files.collecting import Gatherer
from torchkeep.files.modules import module_facts, writes_itself
from torchkeep.names import join
from torchkeep.tables.sources import PLAIN, ModuleSource
from torchkeep.training.state.contents import Content, has_state, layout_of, refuse_objects
from torchkeep.training.state.randomness import rng_state

if TYPE_CHECKING:
    from torchkeep.files.collecting import Collected
    from torchkeep.formats.document import ModuleFacts
    from torchkeep.tables.survey import Survey
    from torchkeep.training.state.naming import Names


_RENORMALIZING: Final = (nn.Embedding, nn.EmbeddingBag)
"""With ``max_norm``, their forward changes the weight."""


class Keeper(ABC):
    """Keeps one part of a state.

    Attributes:
        part: its name, which the names of its tensors begin with; empty for a state that is nothing else.
        obj: what is kept.
    """

    def __init__(self, part: str, obj: Any) -> None:
        self.part, self.obj = part, obj

    @abstractmethod
    def content(self, names: Names) -> Content:
        """Take the part apart as it is now; what can't be kept is told in ``problems``."""


class ModuleKeeper(Keeper):
    """Keeps a module: parameters, persistent buffers, extra state. What was found is good until it changes."""

    def __init__(self, part: str, obj: nn.Module) -> None:
        super().__init__(part, obj)
        self._source: ModuleSource | None = None
        self._seen: Survey | None = None
        self._embeddings: list[nn.Embedding | nn.EmbeddingBag] = []

    def survey(self) -> Survey:
        """Survey the module, if it has changed since."""
        if self._source is None:
            self._source = ModuleSource(self.obj)
        self._source.listing()
        return self._source.survey

    def content(self, names: Names) -> Content:
        """Take the module apart."""
        content = self._taken(names.surveys[self.part])
        content.restless = [one.weight for one in self._embeddings if one.max_norm is not None]
        return content

    def _taken(self, found: Survey) -> Content:
        # What a module writes by code of its own may be more than the last time; then it is refused.
        if found is not self._seen or any(map(writes_itself, found.modules.values())):
            gatherer = Gatherer(self.part)
            self._collected = gatherer.module(found)
            self._problems = gatherer.encoder.problems
            self._content = self._composed(found, self._collected)
            self._embeddings = [one for one in found.modules.values() if isinstance(one, _RENORMALIZING)]
            self._seen = found if self._is_steady(found) else None
            self._content.lasting = self._seen is not None and all(map(_is_told, self._content.tensors))
            return self._content
        if not _has_extra(self._collected):
            return self._content
        collected = self._collected
        gatherer = Gatherer(self.part, taken=collected.order)
        extra = gatherer.extra_state(found)
        self._problems = gatherer.encoder.problems
        collected.apart = gatherer.tensors
        collected.module = module_facts(found.listing, extra)
        return self._composed(found, collected)

    def _is_steady(self, found: Survey) -> bool:
        """Tell whether what was collected holds as long as the module does not change: no problems, no copies."""
        live = set(map(id, found.tensors))
        return not self._problems and all(id(tensor) in live for tensor in self._collected.tensors.values())

    def _composed(self, found: Survey, collected: Collected) -> Content:
        tensors = {**collected.tensors, **collected.apart}
        further = {
            join(self.part, row.name): others
            for row, tensor, places in zip(found.listing.rows, found.tensors, found.places, strict=True)
            if row.aliases and (others := [place.tensor for place in places if place.tensor is not tensor])
        }
        return Content(
            names=tuple(tensors),
            tensors=list(tensors.values()),
            node={"module": self.part},
            layout=(id(found), layout_of(list(collected.apart.values()))),
            problems=self._problems,
            aliases=collected.aliases,
            order=(*collected.order, *collected.apart),
            further=further,
            facts=_plain(collected.module),
            left_out=collected.left_out,
        )


class ValueKeeper(Keeper):
    """Keeps plain values and tensors, nested in containers."""

    def content(self, names: Names) -> Content:
        """Encode the values."""
        del names
        return encoded(self.part, self.obj)


class StatefulKeeper(Keeper):
    """Keeps anything that has ``state_dict`` and ``load_state_dict``."""

    def content(self, names: Names) -> Content:
        """Encode its state_dict."""
        del names
        return encoded(self.part, self.state())

    def state(self) -> Any:
        """Return its state_dict."""
        try:
            return self.obj.state_dict()
        except Exception as error:
            error.add_note(
                f"state_dict() of the part {self.part!r}, a {type(self.obj).__qualname__}, raised this."
            )
            raise


class GeneratorKeeper(Keeper):
    """Keeps a ``torch.Generator``."""

    def content(self, names: Names) -> Content:
        """Encode its state."""
        del names
        return encoded(self.part, self.obj.get_state(), fresh=True)


class LoaderKeeper(Keeper):
    """Keeps what a loader has of its own: its state_dict, or the states of its samplers and generators."""

    def content(self, names: Names) -> Content:
        """Encode it."""
        del names
        return encoded(self.part, self.state())

    def state(self) -> dict[str, Any]:
        """Return the states of what in the loader has one, by where it is."""
        return {
            where: obj.get_state() if isinstance(obj, torch.Generator) else obj.state_dict()
            for where, obj in self.stateful().items()
        }

    def stateful(self) -> dict[str, Any]:
        """Return what in the loader has a state: the loader itself; or else its samplers and generators."""
        loader = self.obj
        if has_state(loader):
            return {"loader": loader}
        found: dict[str, Any] = {}
        for where in ("sampler", "batch_sampler"):
            sampler = getattr(loader, where, None)
            if has_state(sampler):
                found[where] = sampler
            elif isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                found[f"{where}.generator"] = generator
        if isinstance(generator := getattr(loader, "generator", None), torch.Generator):
            found["generator"] = generator
        return found


class RandomKeeper(Keeper):
    """Keeps the global random generators."""

    def content(self, names: Names) -> Content:
        """Encode their states."""
        del names
        return encoded(self.part, rng_state(), fresh=True)


def encoded(part: str, value: object, *, fresh: bool = False) -> Content:
    """Encode plain values and the tensors among them."""
    gatherer = Gatherer(part, hook=refuse_objects)
    node = gatherer.encoder.encode(value, gatherer.root)
    tensors = list(gatherer.tensors.values())
    names = tuple(gatherer.tensors)
    return Content(names, tensors, node, problems=gatherer.encoder.problems, order=names, fresh=fresh)


def _is_told(tensor: torch.Tensor) -> bool:
    """Tell whether a survey is made anew where a tensor in the CPU's memory lies elsewhere or otherwise."""
    return type(tensor) in PLAIN and tensor.layout is torch.strided and tensor.is_cpu and tensor.is_contiguous()


def _has_extra(collected: Collected) -> bool:
    return collected.module is not None and bool(collected.module.extra)


def _plain(facts: ModuleFacts | None) -> Any:
    assert facts is not None
    return encode_state(StateTree(modules={"": facts})).get("modules", {}).get("")
