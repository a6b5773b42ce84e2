"""A slow and obvious reading of the selector language, to compare the real one with.

Nothing here is shared with the package but the rows. A selector is a nest of plain tuples; `spell` writes it as
text, and `selected` answers it by trying everything.

    ("names", [segment, ...])       a segment is ("deep",), ("index", low, high), ("number", value)
                                    or ("glob", [piece, ...]); a piece is a literal string, ("star",)
                                    or ("braces", [[piece, ...], ...])
    ("regex", pattern)  ("class", name, exact)  ("state", name)  ("field", name, comparison, value, spelled value)
    ("inside", [class node, ...], node)  ("not", node)  ("and", a, b)  ("minus", a, b)  ("or", a, b)
"""

from __future__ import annotations

import re

# Spelling -----------------------------------------------------------------------------------------


def spell(node):  # noqa: PLR0911 - one line for each kind of node
    """Write a selector as text."""
    kind, *parts = node
    if kind == "names":
        return spell_names(parts[0])
    if kind == "regex":
        return f"re:'{parts[0]}'"
    if kind == "class":
        return f"@{'=' if parts[1] else ''}{parts[0]}"
    if kind == "state":
        return f":{parts[0]}"
    if kind == "field":
        return f"[{parts[0]}{parts[1]}{parts[3]}]"
    if kind == "not":
        return f"~{spell_operand(parts[0])}"
    if kind == "inside":
        classes = " | ".join(map(spell, parts[0]))
        left = classes if len(parts[0]) == 1 else f"({classes})"
        return f"{left} > {spell_operand(parts[1])}"
    sign = {"and": "&", "minus": "-", "or": "|"}[kind]
    return f"{spell_operand(parts[0])} {sign} {spell_operand(parts[1])}"


def spell_operand(node):
    """Put parentheses around what an operator joins, so that nothing rests on precedence."""
    return f"({spell(node)})" if node[0] in ("and", "minus", "or") else spell(node)


def spell_names(segments):
    """Write a pattern; a slice joins the segment before it, or follows a dot."""
    text = ""
    for segment in segments:
        if segment[0] == "index":
            low, high = ("" if bound is None else bound for bound in segment[1:])
            text += f"[{low}:{high}]"
        elif segment[0] == "number":
            text += f"[{segment[1]}]"
        else:
            text += "." if text else ""
            text += "**" if segment[0] == "deep" else spell_pieces(segment[1])
    return text


def spell_pieces(pieces):
    """Write a segment; everything literal is quoted where a character is not plainly a letter, digit or _."""
    text = ""
    for piece in pieces:
        if piece == ("star",):
            text += "*"
        elif isinstance(piece, tuple):
            text += "{" + ",".join(map(spell_pieces, piece[1])) + "}"
        elif re.fullmatch(r"[A-Za-z0-9_]+", piece):
            text += piece
        else:
            text += '"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


# Meaning ------------------------------------------------------------------------------------------


def selected(listing, node):
    """Return the positions of the rows that a selector selects, in order."""
    return [position for position, row in enumerate(listing.rows) if holds(listing, row, node, root=[])]


def holds(listing, row, node, root):  # noqa: PLR0911 - same
    """Tell whether a row is selected as seen from the module at ``root``, a list of segments."""
    kind, *parts = node
    if kind in ("names", "regex", "class"):
        seen = [name for name in all_names(row) if is_under(name, root)]
        return any(holds_for_name(listing, name, node, root) for name in seen)
    if kind == "inside":
        entered = [
            path.split(".") if path else []
            for path, info in listing.modules.items()
            if any(is_class(info, name, exact) for _, name, exact in parts[0])
        ]
        return any(
            holds(listing, row, parts[1], module)
            for module in entered
            if module[: len(root)] == root and any(is_under(name, module) for name in all_names(row))
        )
    if kind == "not":
        return not holds(listing, row, parts[0], root)
    if kind == "and":
        return holds(listing, row, parts[0], root) and holds(listing, row, parts[1], root)
    if kind == "minus":
        return holds(listing, row, parts[0], root) and not holds(listing, row, parts[1], root)
    if kind == "or":
        return holds(listing, row, parts[0], root) or holds(listing, row, parts[1], root)
    return row_has_state(row, parts[0]) if kind == "state" else row_has_field(row, *parts[:3])


def all_names(row):
    """Return a row's names, each as a list of segments."""
    return [name.split(".") for name in (row.name, *row.aliases, *row.plain)]


def is_under(name, root):
    """Tell whether a tensor of that name lies in the module at ``root``."""
    return len(name) > len(root) and name[: len(root)] == root


def holds_for_name(listing, name, node, root):
    """Tell whether one name is meant by a pattern, a regular expression or a class."""
    relative = name[len(root) :]
    if node[0] == "names":
        return fits(listing, node[1], relative, root)
    if node[0] == "regex":
        return re.fullmatch(node[1], ".".join(relative)) is not None
    info = listing.modules.get(".".join(name[:-1]))
    return info is not None and is_class(info, node[1], node[2])


def is_class(info, wanted, exact):
    """Tell whether a class, or one that it descends from, has a name: its own, or its own behind a module's."""
    lineage = info.lineage[:1] if exact else info.lineage
    for module, qualname in lineage:
        if wanted in (qualname, qualname.split(".")[-1]):
            return True
        parts = module.split(".")
        if any(wanted == ".".join([*parts[:end], qualname]) for end in range(1, len(parts) + 1)):
            return True
    return False


def fits(listing, segments, rest, before):
    """Tell whether the segments of a name are what a pattern says; ``before`` are those already used up."""
    if not segments:
        return not rest
    first, following = segments[0], segments[1:]
    if first == ("deep",):
        return any(fits(listing, following, rest[taken:], before + rest[:taken]) for taken in range(len(rest) + 1))
    if not rest:
        return False
    if first[0] == "glob":
        meant = glob_fits(first[1], rest[0])
    else:
        meant = is_number(rest[0]) and number_fits(first, int(rest[0]), present(listing, before))
    return meant and fits(listing, following, rest[1:], before + rest[:1])


def present(listing, before):
    """Return the numbers that follow ``before`` in the names of persistent tensors."""
    names = [name.split(".") for row in listing.rows if row.persistent for name in (row.name, *row.aliases)]
    following = [name[len(before)] for name in names if is_under(name, before)]
    return [int(segment) for segment in following if is_number(segment)]


def is_number(segment):
    """Tell whether a segment is a number, written as people write one."""
    return segment != "" and all(char in "0123456789" for char in segment)


def number_fits(segment, value, there):
    """Tell whether a number is in a slice; negative bounds count from the highest number there, which is -1."""
    bounds = [bound for bound in segment[1:] if bound is not None]
    if any(bound < 0 for bound in bounds) and not there:
        return False

    def resolve(bound):
        return max(there) + 1 + bound if bound < 0 else bound

    if segment[0] == "number":
        return value == resolve(segment[1])
    _, low, high = segment
    return (low is None or value >= resolve(low)) and (high is None or value < resolve(high))


def glob_fits(pieces, text):
    """Tell whether a segment is what its pieces say."""
    if not pieces:
        return text == ""
    first, following = pieces[0], pieces[1:]
    if first == ("star",):
        return any(glob_fits(following, text[taken:]) for taken in range(len(text) + 1))
    if isinstance(first, tuple):
        return any(glob_fits([*alternative, *following], text) for alternative in first[1])
    return text.startswith(first) and glob_fits(following, text[len(first) :])


def row_has_state(row, state):
    """Tell whether a row, of which everything is known, has a state."""
    return {
        "param": row.kind == "parameter",
        "buffer": row.kind == "buffer",
        "trainable": row.kind == "parameter" and row.trainable,
        "frozen": row.kind == "parameter" and not row.trainable,
        "tied": len(row.aliases) > 0,
        "meta": row.device == "meta",
        "lazy": row.shape is None,
    }[state]


def row_has_field(row, field, comparison, value):
    """Compare a field of a row that is not lazy."""
    actual = getattr(row, field)
    equal = actual == value or (field == "device" and actual.startswith(value + ":"))
    if comparison in ("=", "!="):
        return equal == (comparison == "=")
    if comparison in ("<", ">"):
        return actual < value if comparison == "<" else actual > value
    return equal or (actual < value if comparison == "<=" else actual > value)
