"""The nearest of many texts, for "did you mean": rapidfuzz, loaded only when there is an error to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CUTOFF = 60.0
"""Least similarity in percent: ``Lin`` is 67 % like ``Linear``; below 60 % people see no likeness."""


def nearest(wanted: str, candidates: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Return the candidates that look most like ``wanted``, best first.

    Similarity is rapidfuzz's ``fuzz.ratio`` (1 minus the normalised indel distance), upper and lower case being
    alike. 100,000 candidates take some tens of milliseconds.

    Args:
        wanted: what was asked for.
        candidates: what there is; repeated ones count once.
        limit: the most to return.

    Returns:
        At most ``limit`` candidates; none where nothing is near.
    """
    from rapidfuzz import fuzz, process  # noqa: PLC0415 - only errors need it

    known = list(dict.fromkeys(candidates))
    folded = [candidate.lower() for candidate in known]
    found = process.extract(wanted.lower(), folded, scorer=fuzz.ratio, limit=limit, score_cutoff=_CUTOFF)
    return tuple(known[position] for _, _, position in found)


def did_you_mean(wanted: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Return ``" did you mean `x` or `y`?"`` for the nearest candidates, or nothing where none is near."""
    found = nearest(wanted, candidates)
    return f" did you mean {alternatives(prefix + candidate for candidate in found)}?" if found else ""


def alternatives(texts: Iterable[str]) -> str:
    """Spell texts for a sentence: ```a`, `b` or `c```."""
    quoted = [f"`{text}`" for text in texts]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1]))) if quoted else ""
