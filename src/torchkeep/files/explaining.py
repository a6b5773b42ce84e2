"""A load plan in words: repeated blocks folded, the nearest names, and what may mend it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from torchkeep.names import natural_key, quote_name
from torchkeep.rows.folding import fold
from torchkeep.selectors.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torchkeep.files.planning import LoadPlan
    from torchkeep.rows import Row

_SHOWN: Final = 30
_GUESSED: Final = 5
_COMPARED: Final = 2000
_WRAPPERS: Final = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def explained(plan: LoadPlan, model: Sequence[Row], offered: Sequence[Row], *, only_problems: bool) -> str:
    """Return the plan's lines.

    Args:
        plan: the plan.
        model: the rows of the model.
        offered: a row for every name in the source.
        only_problems: whether what fits, or is ignored, is left out.
    """
    sections = [_section("can't be done", plan.impossible)]
    if not only_problems:
        sections.insert(0, _matched(plan, model, offered))
    for kind, lines in (
        ("missing", _missing(plan, model)),
        ("unexpected", _counted(plan.unexpected, offered)),
        ("mismatch", _mismatched(plan, model)),
    ):
        ignored = plan.policies[kind] == "ignore"
        if not (ignored and only_problems):
            sections.append(_section(f"{_TITLES[kind]}{', ignored' if ignored else ''}", lines))
    if not only_problems:
        sections.append(_section("left out by select", _counted(plan.not_asked, offered)))
        sections.append(_section("extra state", [key for key, _ in plan.extra]))
    sections.append(_section("hints", plan.hints))
    return "\n".join(line for section in sections for line in section)


_TITLES: Final = {
    "missing": "missing from the source",
    "unexpected": "unexpected, the model has no such tensor",
    "mismatch": "does not fit",
}


def _section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    ... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
    return [f"  {title}:", *(f"    {line}" for line in lines[:_SHOWN]), *more]


def _matched(plan: LoadPlan, model: Sequence[Row], offered: Sequence[Row]) -> list[str]:
    """Return the lines of what is copied, told apart by what happens to the names and dtypes."""
    as_is = [match.name for match in plan.matched if match.source == match.name and not match.is_cast]
    lines = _counted(as_is, model)
    changed: dict[str, dict[str, str]] = {}
    for match in plan.matched:
        if match.source != match.name or match.is_cast:
            cast = f", {match.dtypes[0]} becomes {match.dtypes[1]}" if match.is_cast else ""
            changed.setdefault(cast, {})[match.name] = match.source
    for cast, sources in changed.items():
        for line in fold([row for row in model if row.name in sources], among=model):
            runs = _runs(line.rows, sources)
            if len(runs) > _SHOWN:
                runs = [[row] for row in line.rows]
            lines.extend(text + cast for rows in runs for text in _moved(rows, sources, model, offered))
    return _section(f"matched ({len(plan.matched)})", lines)


def _runs(rows: Sequence[Row], sources: Mapping[str, str]) -> list[list[Row]]:
    """Cut rows where what follows one of them in the source does not follow it here: one line would hide that."""
    ordered = sorted(rows, key=lambda row: natural_key(row.name))
    place = {name: at for at, name in enumerate(sorted({sources[row.name] for row in rows}, key=natural_key))}
    runs: list[list[Row]] = []
    expected = -1
    for row in ordered:
        at = place[sources[row.name]]
        if at != expected:
            runs.append([])
        runs[-1].append(row)
        expected = at + 1
    return runs


def _moved(
    rows: Sequence[Row], sources: Mapping[str, str], model: Sequence[Row], offered: Sequence[Row]
) -> list[str]:
    """Return one line for rows and where they come from, if both fold, or else one for each."""
    if len(rows) > 1:
        came_from = {sources[row.name] for row in rows}
        here = fold(rows, among=model)
        origin = fold([row for row in offered if row.name in came_from], among=offered)
        if len(here) == len(origin) == 1:
            return [f"{here[0].pattern} ({len(rows)} tensors) <- {origin[0].pattern}"]
    return [f"{quote_name(row.name)} <- {quote_name(sources[row.name])}" for row in rows]


def _missing(plan: LoadPlan, model: Sequence[Row]) -> list[str]:
    lines = _counted(plan.missing, model)
    if plan.unexpected and not plan.hints:
        candidates = list(plan.unexpected)
        for position, name in enumerate(plan.missing[:_GUESSED]):
            if position < len(lines) and lines[position].startswith(quote_name(name)):
                lines[position] += did_you_mean(name, candidates)
    return lines


def _mismatched(plan: LoadPlan, model: Sequence[Row]) -> list[str]:
    problems: dict[str, list[str]] = {}
    for misfit in plan.mismatched:
        problems.setdefault(misfit.problem, []).append(misfit.name)
    return [f"{line}: {problem}" for problem, names in problems.items() for line in _counted(names, model)]


def _counted(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Fold names among all rows of where they come from; names that are no rows' follow as they are."""
    wanted = set(names)
    chosen = [row for row in rows if row.name in wanted]
    wanted.difference_update(row.name for row in chosen)
    lines = [
        line.pattern if len(line.rows) == 1 else f"{line.pattern} ({len(line.rows)} tensors)"
        for line in fold(chosen, among=rows)
    ]
    return [*lines, *(name for name in names if name in wanted)]


def hints(missing: Collection[str], unexpected: Collection[str], *, has_matches: bool) -> tuple[str, ...]:
    """Look for one rename that brings the names of a source and of a model together.

    Args:
        missing: names in the model, aliases included.
        unexpected: names in the source.
        has_matches: whether other names fit already.

    Returns:
        A sentence, if there is one.
    """
    wanted, found = set(missing), set(unexpected)
    stripped = Counter(
        name[: dot + 1] for name in list(found)[:_COMPARED] for dot in _dots(name) if name[dot + 1 :] in wanted
    )
    if stripped:
        prefix, count = min(stripped.items(), key=lambda item: (-item[1], item[0]))
        why = f"{count} names of the source begin with {prefix!r}, those of the model do not"
        others = sum(not name.startswith(prefix) for name in found)
        besides = f", and unexpected='ignore' to leave out what it holds besides ({others})" if others else ""
        return (_hint(why, {prefix: ""}) + besides,)
    for wrapper in _WRAPPERS:
        if any(_without(name, wrapper) in wanted for name in list(found)[:_COMPARED]):
            return (_hint(f"the source was saved inside a wrapper ({wrapper})", {f"**.{wrapper}.**": "**.**"}),)
    added = Counter(
        name[: dot + 1] for name in list(wanted)[:_COMPARED] for dot in _dots(name) if name[dot + 1 :] in found
    )
    if added and not has_matches:
        prefix, count = min(added.items(), key=lambda item: (-item[1], item[0]))
        why = f"{count} names of the model begin with {prefix!r}, those of the source do not"
        return (_hint(why, {"": prefix}),)
    return ()


def _hint(why: str, rename: Mapping[str, str]) -> str:
    return f"{why}; try rename={rename!r}"


def _dots(name: str) -> Iterable[int]:
    return (position for position, char in enumerate(name) if char == ".")


def _without(name: str, segment: str) -> str:
    return ".".join(part for part in name.split(".") if part != segment)
