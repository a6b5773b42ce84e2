"""What is done to a module after its constructors: shared modules, dtypes, ties, requires_grad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchkeep.errors import RecipeError, TorchkeepError
from torchkeep.names import parent
from torchkeep.recipes.comparing import places_of, shared_modules
from torchkeep.recipes.document import Recipe, TieEntry
from torchkeep.tables.survey import OWNERS_ATTRIBUTE, Place, Survey, TieGroup, survey
from torchkeep.tensors.dtypes import dtype_name, torch_dtype
from torchkeep.tying import keeping_ties
from torchkeep.tying.hanging import dressed_like, hang_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

EVERY = "**"


def finishing(mine: Survey, draft: Survey, recipe: Recipe) -> Recipe:
    """Return the recipe with what a draft lacks, of all that `finish` can do.

    Args:
        mine: the model.
        draft: what constructors alone make of it.
        recipe: the constructors.
    """
    ties = [*_module_ties(mine, draft), *_tensor_ties(mine, draft)]
    here, there = places_of(mine), places_of(draft)
    dtypes: dict[str, list[str]] = {}
    turned: dict[bool, list[str]] = {False: [], True: []}
    for name, place in here.items():
        if name not in there or there[name].kind != place.kind:
            continue
        tensor, other = place.tensor, there[name].tensor
        if tensor.dtype != other.dtype:
            dtypes.setdefault(dtype_name(tensor.dtype), []).append(name)
        if place.kind == "parameter" and tensor.requires_grad != other.requires_grad:
            turned[tensor.requires_grad].append(name)
    floating = [name for name, place in here.items() if place.tensor.dtype.is_floating_point]
    parameters = [name for name, place in here.items() if place.kind == "parameter"]
    return Recipe(
        root=recipe.root,
        ties=tuple(ties),
        dtypes={dtype: _short(names, floating) for dtype, names in dtypes.items()},
        frozen=_short(turned[False], parameters),
        trainable=_short(turned[True], parameters),
    )


def _short(names: list[str], everything: list[str]) -> tuple[str, ...]:
    return (EVERY,) if len(names) > 1 and names == everything else tuple(names)


def _module_ties(mine: Survey, draft: Survey) -> list[TieEntry]:
    """Return the shared modules that a draft has apart, leaving out what comes with a shared module around it."""
    ties: list[TieEntry] = []
    done: set[str] = set()
    for paths in shared_modules(mine).values():
        found = {id(draft.modules[path]) for path in paths if path in draft.modules}
        inside = {parent(path) for path in paths}
        if len(found) > 1:
            if len(inside) < len(paths) or not inside <= done:
                ties.append(TieEntry("module", tuple(paths)))
            done.update(paths)
    return ties


def _tensor_ties(mine: Survey, draft: Survey) -> list[TieEntry]:
    made = {_names(tie) for tie in draft.ties}
    return [
        TieEntry("storage" if tie.kind == "storage" else "parameter", _names(tie)[:-1])
        for tie in mine.ties
        if _names(tie) not in made and not _comes_with_modules(tie, mine)
    ]


def _names(tie: TieGroup) -> tuple[str, ...]:
    return (tie.owner, *tie.aliases, tie.kind)


def _comes_with_modules(tie: TieGroup, mine: Survey) -> bool:
    """Tell whether a tie is whole once shared modules are, and its owner the natural one."""
    return tie.kind == "module" and not any(OWNERS_ATTRIBUTE in vars(module) for module in mine.modules.values())


def finish(net: nn.Module, recipe: Recipe) -> None:
    """Do to a new module what its recipe says beyond constructors.

    Raises:
        RecipeError: it can't be done: a name does not exist, tensors do not agree, a tie holds itself.
    """
    try:
        for tie in recipe.ties:
            if tie.kind == "module":
                _share_modules(net, tie.names)
        if any(tie.kind == "module" for tie in recipe.ties):
            # Modules that were put into each other would never end; a survey says so.
            survey(net)
        if recipe.dtypes:
            with keeping_ties(net):
                _convert(net, recipe.dtypes)
        for tie in recipe.ties:
            if tie.kind != "module":
                _tie(net, tie)
        _turn(net, recipe.frozen, requires_grad=False)
        _turn(net, recipe.trainable, requires_grad=True)
    except RecipeError:
        raise
    except (TorchkeepError, RuntimeError, TypeError) as error:
        raise RecipeError(f"the recipe can't be finished: {error}") from error


def _share_modules(net: nn.Module, paths: tuple[str, ...]) -> None:
    modules = survey(net).modules
    _check_names(paths, modules, "module")
    if any(one != other and f"{other}.".startswith(f"{one}.") for one in paths for other in paths):
        raise RecipeError(f"{' = '.join(paths)}: a module can't be the same as a part of it")
    owner, *aliases = paths
    for path in aliases:
        above, _, name = path.rpartition(".")
        setattr(modules[above], name, modules[owner])


def _check_names(names: Iterable[str], known: Mapping[str, Any], what: str) -> None:
    names = tuple(names)
    if not names[1:] or len(set(names)) < len(names):
        raise RecipeError(f"{' = '.join(names)}: a tie has two or more names, each once")
    for name in names:
        if name not in known or not name:
            raise RecipeError(f"the recipe ties {name!r}, which is no {what} of what it builds")


def _convert(net: nn.Module, dtypes: Mapping[str, tuple[str, ...]]) -> None:
    places = places_of(survey(net))
    for spelled, names in dtypes.items():
        dtype = torch_dtype(spelled)
        if dtype is None:
            raise RecipeError(f"{spelled!r} is no dtype that this torch has")
        for place in _named(places, names):
            tensor = place.tensor
            if EVERY in names and not tensor.dtype.is_floating_point:
                continue
            if place.kind == "parameter":
                tensor.data = tensor.data.to(dtype)
            else:
                hang_all([(place, tensor.to(dtype))])


def _named(places: Mapping[str, Place], names: tuple[str, ...]) -> list[Place]:
    if EVERY in names:
        return list(places.values())
    for name in names:
        if name not in places:
            raise RecipeError(f"the recipe names {name!r}, which is no tensor of what it builds")
    return [places[name] for name in names]


def _tie(net: nn.Module, tie: TieEntry) -> None:
    places = places_of(survey(net))
    _check_names(tie.names, places, "tensor")
    owner, *aliases = (places[name] for name in tie.names)
    keeper = owner.tensor
    for alias in aliases:
        other = alias.tensor
        if (alias.kind, other.shape, other.dtype) != (owner.kind, keeper.shape, keeper.dtype):
            raise RecipeError(
                f"{tie.names[0]!r} is a {owner.kind} of {keeper.dtype} {tuple(keeper.shape)}, {alias.name!r} a "
                f"{alias.kind} of {other.dtype} {tuple(other.shape)}; only tensors that agree can be tied"
            )
    changes: list[tuple[Place, Tensor]] = []
    for alias in aliases:
        if tie.kind == "parameter":
            changes.append((alias, keeper))
        elif alias.tensor is not keeper:
            changes.append((alias, dressed_like(alias.tensor, keeper.data)))
    hang_all(changes)
    found = next(group for group in survey(net).ties if tie.names[0] in {group.owner, *group.aliases})
    if found.owner != tie.names[0]:
        before = vars(net).get(OWNERS_ATTRIBUTE, ())
        net.__dict__[OWNERS_ATTRIBUTE] = (*(name for name in before if name not in tie.names), tie.names[0])


def _turn(net: nn.Module, names: tuple[str, ...], *, requires_grad: bool) -> None:
    for place in _named(places_of(survey(net)), names) if names else ():
        if place.kind == "parameter":
            place.tensor.requires_grad_(requires_grad)
        elif EVERY not in names:
            raise RecipeError(f"{place.name!r} is a buffer; only parameters can be frozen")
