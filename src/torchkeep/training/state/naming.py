"""What optimizers' parameters are called: as in the modules of the state, wherever they are in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchkeep.caching import cached_property
from torchkeep.names import join
from torchkeep.tensors.sharing import unused_name

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence

    from torch import Tensor

    from torchkeep.tables.survey import Survey

_SHOWN: Final = 5
MODEL: Final = "model"
"""The part whose parameters need no prefix."""


class Names:
    """Names of the parameters in a state's modules.

    Those of the part ``model``, or of the only module, are the module's own; those of other modules, which are in
    no earlier one, begin with their part. A tied parameter has its owner's name.

    Attributes:
        surveys: of the modules, by part.
    """

    def __init__(self, surveys: Mapping[str, Survey]) -> None:
        self.surveys = dict(surveys)

    @cached_property
    def _known(self) -> tuple[dict[int, str], dict[int, str]]:
        """The name of each parameter, and its name among the state's tensors; only optimizers ask for them."""
        names: dict[int, str] = {}
        paths: dict[int, str] = {}
        for part in sorted(self.surveys, key=lambda part: part != MODEL):
            found = self.surveys[part]
            prefix = "" if part == MODEL or len(self.surveys) == 1 else part
            for row, tensor, places in zip(found.listing.rows, found.tensors, found.places, strict=True):
                for place in places:
                    one = place.tensor
                    # Two Parameters over one memory have each a state of their own.
                    name = row.name if one is tensor else place.name
                    names.setdefault(id(one), join(prefix, name))
                    paths.setdefault(id(one), join(part, name))
        return names, paths

    def are_of(self, surveys: Mapping[str, Survey]) -> bool:
        """Tell whether they were made from these very surveys."""
        return self.surveys.keys() == surveys.keys() and all(
            self.surveys[part] is found for part, found in surveys.items()
        )

    def of_groups(self, groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Return distinct names of the parameters in an optimizer's groups.

        One that is in no module has the name that its group gives it (``param_names``), or else one that says
        where it is: ``group-0.position-3``.
        """
        taken: set[str] = set()
        found = [[self._claimed(self.of(one), taken) for one in group["params"]] for group in groups]
        for number, (group, names) in enumerate(zip(groups, found, strict=True)):
            for position, name in enumerate(names):
                if not name:
                    wanted = _given(group, position) or f"group-{number}.position-{position}"
                    names[position] = unused_name(wanted, taken)
                    taken.add(names[position])
        return found

    @staticmethod
    def _claimed(name: str | None, taken: set[str]) -> str:
        if name is None:
            return ""
        name = unused_name(name, taken)  # a child of the model may be called as another part is
        taken.add(name)
        return name

    def of(self, parameter: Tensor) -> str | None:
        """Return a parameter's name; None where it is in no module."""
        return self._known[0].get(id(parameter))

    def path(self, parameter: Tensor) -> str | None:
        """Return the name of a parameter as one of the state's tensors; None where it is in no module."""
        return self._known[1].get(id(parameter))


def paths_of(names: Sequence[str], modules: Collection[str], known: Container[str]) -> dict[str, str]:
    """Return the names that parameters have among a state's tensors, by the names that optimizers know them by.

    Args:
        names: as `Names.of_groups` gave them.
        modules: the state's modules, by part.
        known: names of the state's tensors, aliases included.
    """
    found = {}
    alone = next(iter(modules), MODEL) if len(modules) == 1 else MODEL
    for name in names:
        path = next((path for path in (join(alone, name), name) if path in known), None)
        if path is not None:
            found[name] = path
    return found


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _given(group: Mapping[str, Any], position: int) -> str | None:
    """Return the name that a group itself gives a parameter."""
    given = group.get("param_names")
    if not isinstance(given, list | tuple) or len(given) != len(group["params"]):
        return None
    return given[position] if isinstance(given[position], str) else None
