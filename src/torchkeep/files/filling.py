"""`load_into` and `plan_load`: a model filled from a file, a mapping, another model or a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchkeep.errors import DamageError
from torchkeep.files.matching import Matched, Options, match
from torchkeep.files.sources import MemorySource, opened
from torchkeep.rows.text import size_text
from torchkeep.storage.local import LOCAL
from torchkeep.tensors.pausing import without_collections

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor, nn

    from torchkeep.files.offering import Source
    from torchkeep.files.planning import LoadPlan, Policy
    from torchkeep.files.renaming import Renames
    from torchkeep.selectors import Selector
    from torchkeep.storage.base import Storage
    from torchkeep.tables.table import ParameterTable


@dataclass(frozen=True)
class LoadReport:
    """What was loaded; ``str()`` of it is for people.

    Attributes:
        plan: what went where, and what was ignored.
        nbytes: bytes of the model's tensors that were filled.
        verified: whether every byte was compared with its digest; None for a source that is no file.
    """

    plan: LoadPlan
    nbytes: int
    verified: bool | None

    @property
    def names(self) -> tuple[str, ...]:
        """Owners' names of the model's tensors that were filled."""
        return tuple(match.name for match in self.plan.matched)

    def __str__(self) -> str:
        plan = self.plan
        count = len(plan.matched)
        checked = {True: ", every byte verified", False: "; the file holds no digests to verify", None: ""}
        tensors = f"{count} tensor{'' if count == 1 else 's'}, {size_text(self.nbytes)}"
        lines = [f"loaded {tensors}, from {plan.source}{checked[self.verified]}"]
        casts = sum(match.is_cast for match in plan.matched)
        for number, what in (
            (casts, "converted to another dtype"),
            (len(plan.missing), "missing from the source, left as they were"),
            (len(plan.unexpected), "unexpected in the source, ignored"),
            (len(plan.mismatched), "did not fit, left as they were"),
            (len(plan.not_asked), "left out by select"),
            (len(plan.extra), "extra states restored"),
        ):
            if number:
                lines.append(f"  {number} {what}")
        return "\n".join(lines)


def plan_load(
    net: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | ParameterTable,
    *,
    select: str | Selector = "**",
    rename: Renames | None = None,
    missing: Policy = "error",
    unexpected: Policy = "error",
    mismatch: Policy = "error",
    cast: bool = False,
) -> LoadPlan:
    """Plan what `load_into` would do with the same arguments; nothing is changed.

    Returns:
        The plan. It tells its problems (``plan.problems``) instead of raising them.

    Raises:
        SourceError: ``source`` is nothing that a model can be loaded from.
        StoreError: there is no such store or checkpoint.
        SelectorError: ``select`` or ``rename`` can't be used, or ``select`` matches nothing.
        LoadError: a policy is none.
        FormatError: the file is not what it should be.
        StorageError: the file can't be read.
    """
    policies: dict[str, Policy] = {"missing": missing, "unexpected": unexpected, "mismatch": mismatch}
    with opened(LOCAL, source, whole=rename is not None) as found:
        return match(net, found, Options(select, rename, policies, cast)).plan


def load_into(
    net: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | ParameterTable,
    *,
    select: str | Selector = "**",
    rename: Renames | None = None,
    missing: Policy = "error",
    unexpected: Policy = "error",
    mismatch: Policy = "error",
    cast: bool = False,
    atomic: bool = False,
) -> LoadReport:
    """Fill a model's parameters and persistent buffers in place, and restore its extra state.

    The live tensors stay the objects that they are: ties and optimizers' references hold, and device, memory
    format and ``requires_grad`` are kept. What a plan can see is checked first, and nothing is changed unless all
    of it fits. A file's bytes are verified on the way: those of a small tensor before they reach it, those of a
    large one once they are there, which spares a copy. So damage found midway leaves tensors replaced, the damaged
    one among them; the error names them all, and ``atomic=True`` keeps the model as it was.

    Args:
        net: the model; wrappers around it are no part of the names.
        source: a path, a mapping from names to tensors (a state_dict), another model, a table of either, or a
            checkpoint (``"STORE@STEP"``, a `Checkpoint`): of it, the part ``model`` or its only module, under
            the module's own names; with ``rename``, all of it under full names.
        select: which tensors of the model are filled. What the source has besides is then left out.
        rename: patterns of the source's names and what they are called in the model, such as
            ``{"encoder.layer.*.": "blocks.*."}``; what ends with a dot is the beginning of names. The last that
            matches wins, and each must match something.
        missing: ``"ignore"`` leaves alone what the source has nothing for.
        unexpected: ``"ignore"`` leaves out what the model has nothing for.
        mismatch: ``"ignore"`` leaves alone what has another shape or dtype.
        cast: whether another dtype is converted, as ``Tensor.to`` does, instead of being a mismatch.
        atomic: whether a file is first read as a whole into memory, so that damage found in its middle changes
            nothing.

    Returns:
        What was loaded, and what was ignored.

    Raises:
        LoadError: the source does not fit the model; all of it is told, nothing was changed.
        DamageError: the file's bytes are not what was written; ``replaced`` names the tensors changed before that
            was found, wholly or in part.
        SourceError, StoreError, SelectorError, FormatError, StorageError: as for `plan_load`.
    """
    policies: dict[str, Policy] = {"missing": missing, "unexpected": unexpected, "mismatch": mismatch}
    options = Options(select, rename, policies, cast)
    return load_into_from(LOCAL, net, source, options, atomic=atomic)


def load_into_from(storage: Storage, net: nn.Module, source: Any, options: Options, *, atomic: bool) -> LoadReport:
    """Fill a model through any storage; see `load_into`."""
    with opened(storage, source, whole=options.rename is not None) as found:
        return fill_from(found, net, options, atomic=atomic)


@without_collections()
def fill_from(source: Source, net: nn.Module, options: Options, *, atomic: bool = False) -> LoadReport:
    """Fill a model from an open source; see `load_into`."""
    matched = match(net, source, options)
    matched.plan.raise_for_problems()
    extra = source.extra_state() if matched.plan.extra else {}
    _fill(source, matched, atomic=atomic)
    for (_, key), module in zip(matched.plan.extra, matched.modules, strict=True):
        module.set_extra_state(extra[key])
    return LoadReport(matched.plan, sum(tensor.nbytes for _, tensor in matched.pairs), source.verified)


def _fill(source: Source, matched: Matched, *, atomic: bool) -> None:
    """Copy, and when that fails midway, tell what was replaced."""
    begun: set[int] = set()
    try:
        if atomic and source.verified is not None:
            owners = list(dict.fromkeys(owner for owner, _ in matched.pairs))
            source = MemorySource(source.text, source.tensors(owners), {})
        source.fill(matched.pairs, begun.add)
    except BaseException as error:
        replaced = tuple(matched.plan.matched[position].name for position in sorted(begun))
        told = f"already replaced in the model: {', '.join(replaced)}" if replaced else "the model is as it was"
        if isinstance(error, DamageError):
            error.replaced = replaced
            error.args = (f"{error}; {told}",)
        else:
            error.add_note(told)
        raise
