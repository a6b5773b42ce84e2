"""Keep ties and optimizers whole while something replaces a model's tensors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from torchkeep.errors import TieError, TorchkeepError
from torchkeep.tables.survey import Place, survey
from torchkeep.tensors.identity import tensor_key
from torchkeep.tying.deciding import Candidate, decide, inner_of, version_of
from torchkeep.tying.following import Held
from torchkeep.tying.hanging import dressed_like, hang_all
from torchkeep.tying.overlaps import real_overlaps

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from torch import Tensor
    from torch.optim import Optimizer


@contextmanager
def keeping_ties(net: nn.Module, *optimizers: Optimizer) -> Iterator[None]:
    """Whatever happens to the tensors of ``net`` in the block, at its end the ties hold and the optimizers follow.

    Inside may stand ``to_empty``, ``.to("meta")``, ``.to(dtype)``, ``load_state_dict(assign=True)``, assignments,
    under any of ``torch.__future__``'s conversion settings, with weak references to the parameters alive or not.
    At the end, also when the block raised, tied names lead to one tensor again, in the same way as before (one
    object, or several over the same storage), and each optimizer's groups and state are those of the live
    Parameters, found by name.

    Where tied names came out with different tensors, those that were written (assigned, loaded or filled) win
    over those that were converted, those over the ones left alone, and any with values over the meta device; among
    equals the owner wins. Written values must agree bit for bit.

    The gradient is that of the tensor that wins, and the tensors in an optimizer's state (moments, momenta) stay
    as they are: after a change of dtype or device, ``optimizer.load_state_dict(optimizer.state_dict())`` converts
    them. While the block runs, the tied tensors as they were stay in memory. Loading two values into one tensor in
    place, as plain ``load_state_dict`` does, is no broken tie: the last one stands.

    Args:
        net: the model.
        *optimizers: those that hold its parameters.

    Raises:
        SourceError: ``net`` is no module, or contains itself.
        TieError: before the block, an optimizer holds nothing of the model; after it, tied names were given
            different values, or a name, a shared module or an overlap is gone. Whatever else was tied is tied
            again. When the block itself raised, its error is raised with this one as a note.
    """
    before = _Before(net, optimizers)
    with _assignments() as assigned:
        try:
            yield
        except BaseException as error:
            try:
                problems = before.restore(assigned)
            except TorchkeepError as other:
                problems = [str(other)]
            if problems:
                error.add_note("\n".join(problems))
            raise
    problems = before.restore(assigned)
    if problems:
        raise TieError("\n".join(problems))


_Assigned = WeakKeyDictionary[nn.Module, set[str]]


@contextmanager
def _assignments() -> Iterator[_Assigned]:
    """Note which modules are given a tensor, by assignment or load_state_dict; conversions do not pass here."""
    assigned: _Assigned = WeakKeyDictionary()

    def note(module: nn.Module, name: str, _: Any) -> None:
        assigned.setdefault(module, set()).add(name)

    handles = [register_module_parameter_registration_hook(note), register_module_buffer_registration_hook(note)]
    try:
        yield assigned
    finally:
        for handle in handles:
            handle.remove()


class _Member:
    """One name of a tie: what hung there when the block began."""

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self.hook = (id(place.module), place.key)
        self.holder = place.module  # kept alive, so that its id stays its own
        # Holding the object (not weakly: swap_tensors refuses weak references) makes `is` a safe question later,
        # and holding its memory makes the key one.
        self.tensor = place.tensor
        self.memory = None if is_lazy(self.tensor) else self.tensor.data
        self.key = tensor_key(self.tensor)
        self.version = version_of(self.tensor)
        self.inner = inner_of(self.tensor)

    def candidate(self, place: Place, assigned: _Assigned) -> Candidate:
        """Tell what became of this name."""
        now = place.tensor
        # swap_tensors puts a new inner tensor, whose writes are counted from 0, into the old object.
        started = self.version if inner_of(now) == self.inner else 0
        return Candidate(
            place,
            moved=now is not self.tensor or tensor_key(now) != self.key,
            written=version_of(now) != started or place.key in assigned.get(place.module, ()),
        )


class _Group:
    """A tie as it was: its names, the owner's first."""

    def __init__(self, places: tuple[Place, ...]) -> None:
        self.members = [_Member(place) for place in places]

    def restore(self, now: dict[str, Place], assigned: _Assigned) -> str:
        """Make the tie hold again; return what went wrong, if anything."""
        names = [member.name for member in self.members]
        listed = ", ".join(map(repr, names))
        gone = [name for name in names if name not in now]
        if gone:
            return f"{listed} were tied, and the block took {', '.join(map(repr, gone))} away; put it back"
        places = [now[name] for name in names]
        if not self._together([member.hook for member in self.members], [id(place.module) for place in places]):
            return (
                f"{listed} were one module's, and the block put another module in one of the places; put the same "
                "module in each"
            )
        if self._holds(places):
            return ""
        pairs = zip(self.members, places, strict=True)
        winner, problem = decide([member.candidate(place, assigned) for member, place in pairs])
        if not problem:
            hang_all(self._changes(places, winner))
        return problem

    def _holds(self, places: list[Place]) -> bool:
        one_memory = len({tensor_key(place.tensor) for place in places}) == 1
        objects = [id(member.tensor) for member in self.members]
        return one_memory and self._together(objects, [id(place.tensor) for place in places])

    @staticmethod
    def _together(before: Sequence[Hashable], now: Sequence[Hashable]) -> bool:
        """Tell whether all that were one before are one now."""
        heirs: dict[Hashable, Hashable] = {}
        return all(heirs.setdefault(was, found) == found for was, found in zip(before, now, strict=True))

    def _changes(self, places: list[Place], winner: Place) -> list[tuple[Place, Tensor]]:
        """Return what to hang where: one object for each one there was, all over the winner's storage."""
        pairs = list(zip(self.members, places, strict=True))
        heirs = {id(member.tensor): winner.tensor for member, place in pairs if place is winner}
        for member, place in pairs:
            if id(member.tensor) not in heirs:
                heirs[id(member.tensor)] = _over_storage_of(winner.tensor, place.tensor)
        new = [(place, heirs[id(member.tensor)]) for member, place in pairs]
        return [(place, tensor) for place, tensor in new if place.tensor is not tensor]


class _Before:
    """A model's ties, overlaps and optimizers, as they were when the block began."""

    def __init__(self, net: nn.Module, optimizers: tuple[Optimizer, ...]) -> None:
        found = survey(net)
        self.net = net
        self.paths: dict[int, set[str]] = {}
        for path, module in found.modules.items():
            self.paths.setdefault(id(module), set()).add(path)
        self.alive = list(found.modules.values())
        self.groups = [_Group(places) for places in found.places if len(places) > 1]
        self.overlaps = real_overlaps(found)
        # From the last to the first place, so that of a tie the owner's name stays.
        names = {id(place.tensor): place.name for places in found.places for place in reversed(places)}
        self.held = Held(optimizers, names)

    def restore(self, assigned: _Assigned) -> list[str]:
        """Tie again what was tied, lead the optimizers, and return what went wrong."""
        now, elsewhere = self._places()
        problems = [problem for group in self.groups if (problem := group.restore(now, assigned))]
        live = {name: place.tensor for name, place in now.items()}
        problems += self.held.follow(live, {id(place.tensor) for place in elsewhere})
        if self.overlaps:
            problems += self._lost_overlaps()
        return problems

    def _places(self) -> tuple[dict[str, Place], list[Place]]:
        """Return the places that have the names they had, and those whose module stood under another path.

        Taking one module out of a Sequential renumbers those after it: their names now mean other tensors.
        """
        places = [place for places in survey(self.net).places for place in places]
        stayed: dict[str, Place] = {}
        elsewhere: list[Place] = []
        for place in places:
            before = self.paths.get(id(place.module))
            if before is None or place.name.rpartition(".")[0] in before:
                stayed[place.name] = place
            else:
                elsewhere.append(place)
        return stayed, elsewhere

    def _lost_overlaps(self) -> Iterator[str]:
        found = survey(self.net)
        for names in self.overlaps:
            if not any(set(names) <= set(still) for still in found.overlaps):
                yield (
                    f"{', '.join(map(repr, names))} overlapped in memory and no longer do; ties are kept, other "
                    "overlaps are not: make the views again"
                )


def _over_storage_of(winner: Tensor, other: Tensor) -> Tensor:
    """Return ``other`` over the winner's storage: the same object where torch allows, else a new one like it."""
    if tensor_key(winner) == tensor_key(other):
        return other
    try:
        other.data = winner.data
    except RuntimeError:
        # Of another type of tensor (meta and not, say): the object can't be kept.
        return dressed_like(other, winner.data)
    gradient = other.grad
    if gradient is not None and (gradient.dtype, gradient.device) != (other.dtype, other.device):
        other.grad = None
    return other
