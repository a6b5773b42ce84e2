"""What a module knows of its tensors beyond their bytes, and state that it keeps where no survey sees it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
from torch import nn

from torchkeep.formats.document import ModuleFacts
from torchkeep.formats.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torchkeep.formats.paths import Path
    from torchkeep.formats.values import Node
    from torchkeep.rows import Listing
    from torchkeep.tables.survey import Survey

EXTRA_STATE: Final = "_extra_state"
"""The last part of the key under which a state_dict has what ``get_extra_state`` returns."""


def module_facts(listing: Listing, extra: Mapping[str, Node]) -> ModuleFacts:
    """Write down what selectors ask about: kinds, what is frozen, plain names, classes.

    Args:
        listing: of the live module.
        extra: encoded extra state by its key in the state_dict.
    """
    rows = [row for row in listing.rows if row.persistent]
    types = listing.modules or {}
    lineages = {info.lineage: None for info in types.values()}
    index = {lineage: position for position, lineage in enumerate(lineages)}
    return ModuleFacts(
        lineages=tuple(lineages),
        modules={path: index[info.lineage] for path, info in types.items()},
        buffers=tuple(row.name for row in rows if row.kind == "buffer"),
        frozen=tuple(row.name for row in rows if row.kind == "parameter" and not row.trainable),
        plain={row.name: row.plain for row in rows if row.plain},
        extra={key: msgspec.Raw(msgspec.json.encode(node)) for key, node in extra.items()},
    )


def undescribed_state(found: Survey, known: Collection[str]) -> list[tuple[Path | str, str]]:
    """Find what modules put into their state_dict besides their parameters, buffers and extra state.

    Some modules (quantized ones, say) write their state_dict themselves. What they add there would be lost.

    Args:
        found: the survey of the model.
        known: names that are saved anyway.

    Returns:
        For each such module its path and what to do.
    """
    problems: list[tuple[Path | str, str]] = []
    for path, module in found.modules.items():
        if writes_itself(module):
            prefix = f"{path}." if path else ""
            written: OrderedDict[str, object] = OrderedDict()
            module.state_dict(destination=written, prefix=prefix, keep_vars=True)
            unknown = ", ".join([repr(name) for name in written if name not in known][:5])
            if unknown:
                kind = f"{type(module).__module__}.{type(module).__qualname__}"
                sentence = (
                    f"the {kind} adds {unknown} to its state_dict by code of its own, which load_into could not "
                    "give back; save its state_dict() instead"
                )
                problems.append((path or ROOT, sentence))
    return problems


def writes_itself(module: nn.Module) -> bool:
    """Tell whether a module may put into its state_dict what it likes."""
    kind = type(module)
    return (
        kind._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001 - what torch itself overrides
        or kind.state_dict is not nn.Module.state_dict
        or bool(module._state_dict_hooks)  # noqa: SLF001
    )
