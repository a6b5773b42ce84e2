"""Names of tensors and modules: dotted paths such as ``encoder.layers.0.weight``.

A name is what ``named_parameters()`` gives. A *segment* is what stands between two dots. How a segment is
spelled in a selector (quoted or bare) is decided here too, so that what is shown can be pasted back.
"""

from __future__ import annotations

import re

_PUNCTUATION = "_-/+#$"
_MOST_DIGITS = 1000
_DIGIT_RUN = re.compile(r"(\d+)")


def is_bare_char(char: str) -> bool:
    """Tell whether ``char`` may stand in a selector's segment without quotes."""
    return char.isalpha() or char.isdigit() or char in _PUNCTUATION


def is_bare_segment(segment: str) -> bool:
    """Tell whether a selector can hold ``segment`` without quotes."""
    return segment != "" and all(map(is_bare_char, segment))


def printable(text: str) -> str:
    r"""Show characters that would disturb a terminal or a page as Python escapes them, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, such as the name of a type."""
    return f"{'an' if noun[:1].lower() in {*'aeiou'} else 'a'} {noun}"


def quote_text(text: str) -> str:
    """Spell any text as a selector's quotes hold it, in single quotes, printable whatever it holds."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{printable(escaped)}'"


def quote_segment(segment: str) -> str:
    """Spell one literal segment as a selector does: bare where that is possible, else quoted."""
    return segment if is_bare_segment(segment) else quote_text(segment)


def quote_name(name: str) -> str:
    """Spell a whole name as the selector that selects exactly it."""
    return ".".join(map(quote_segment, name.split(".")))


def join(*parts: str) -> str:
    """Join paths with dots; empty ones (the root) leave no dot behind."""
    return ".".join(part for part in parts if part)


def parent(name: str) -> str:
    """Return the path of the module that owns ``name``; the root is the empty path."""
    return name.rpartition(".")[0]


def prefixes(name: str) -> list[str]:
    """Return the paths of all modules around ``name``, outermost (the root, ``""``) first."""
    found = [""]
    found.extend(name[: match.start()] for match in re.finditer(r"\.", name))
    return found


def _is_number(run: str) -> bool:
    # Python refuses to make an int of more than 4300 digits; names in hostile files may have them.
    return run.isdecimal() and len(run) <= _MOST_DIGITS


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Sort key under which ``layers.2`` comes before ``layers.10``, compared segment by segment."""
    return tuple(
        tuple((0, int(run), run) if _is_number(run) else (1, 0, run) for run in _DIGIT_RUN.split(segment) if run)
        for segment in name.split(".")
    )
