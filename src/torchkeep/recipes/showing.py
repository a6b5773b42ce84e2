"""A recipe as text, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from torchkeep.recipes.document import Entry, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchkeep.formats.values import Node

_LONG = 60
_DEEP = 64
_SELF_EVIDENT = {"dtype", "memory_format", "function", "class", "device", "size"}


def lines_of(recipe: Recipe) -> Iterator[str]:
    """Yield the tree of modules, then what was done to it after construction."""
    yield from _entry_lines(recipe.root, "", 0)
    for tie in recipe.ties:
        yield f"{'same module' if tie.kind == 'module' else 'tied'}: {' = '.join(tie.names)}"
    for dtype, names in recipe.dtypes.items():
        yield f"{dtype}: {', '.join(names)}"
    for word, names in (("frozen", recipe.frozen), ("trainable", recipe.trainable)):
        if names:
            yield f"{word}: {', '.join(names)}"


def _entry_lines(entry: Entry | None, name: str, depth: int) -> Iterator[str]:
    head = "  " * depth + (f"{name}: " if name else "")
    if entry is None or depth > _DEEP:
        yield f"{head}{'None' if entry is None else '...'}"
        return
    if entry.same:
        yield f"{head}the same as {entry.same}{f' at {entry.at}' if entry.at else ''}"
        return
    modules: list[tuple[str, Entry]] = []
    shown = [f"{key}={_argument(node, key, modules)}" for key, node in entry.args.items()]
    label = f"  [{entry.label}]" if entry.label else ""
    yield f"{head}{entry.block}({', '.join(shown)}){label}"
    for key, module in modules:
        yield from _entry_lines(module, key, depth + 1)
    for key, child in entry.children.items():
        yield from _entry_lines(child, key, depth + 1)


def _argument(node: Node, path: str, modules: list[tuple[str, Entry]]) -> str:
    try:
        return _value(node, path, modules)
    except (msgspec.ValidationError, TypeError, AttributeError, LookupError, RecursionError):
        # A recipe that somebody sent may hold anything; what can't be built can still be looked at.
        return "(not an argument)"


def _value(node: Node, path: str, modules: list[tuple[str, Entry]]) -> str:
    """Show one argument on the line; modules in it are noted, and get lines of their own."""
    if isinstance(node, list):
        return f"[{_items(node, path, modules)}]"
    if not isinstance(node, dict) or len(node) != 1:
        return _short(repr(node))
    ((tag, part),) = node.items()
    if tag == "module":
        modules.append((path, msgspec.convert(part, Entry)))
        return "..."
    return _tagged(tag, part, path, modules)


def _tagged(tag: str, part: Node, path: str, modules: list[tuple[str, Entry]]) -> str:
    if tag in {"tuple", "set", "frozenset"} and isinstance(part, list):
        inner = _items(part, path, modules)
        return f"({inner}{',' * (len(part) == 1)})" if tag == "tuple" else f"{tag}({inner})"
    if tag in {"dict", "OrderedDict", "Counter"} and isinstance(part, dict):
        shown = [f"{key!r}: {_value(item, f'{path}[{key!r}]', modules)}" for key, item in part.items()]
        return f"{{{_short(', '.join(shown))}}}"
    if tag == "dataclass":
        shown = [f"{key}={_value(item, f'{path}.{key}', modules)}" for key, item in part[1].items()]
        return f"{part[0]}({_short(', '.join(shown))})"
    if tag == "member":
        return ".".join(map(str, part))
    return str(part) if tag in _SELF_EVIDENT else f"{tag} {_short(str(part))}"


def _items(nodes: list[Node], path: str, modules: list[tuple[str, Entry]]) -> str:
    return _short(", ".join([_value(item, f"{path}[{i}]", modules) for i, item in enumerate(nodes)]))


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
