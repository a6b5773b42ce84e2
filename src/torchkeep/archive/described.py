"""What the tree of a checkpoint means: parts, values, and what modules knew of their tensors. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from torchkeep.caching import cached_property
from torchkeep.errors import FormatError, NewerFormatError
from torchkeep.formats.describing import Known, check_facts, names_of_ties
from torchkeep.formats.document import ModuleFacts, decode_json
from torchkeep.names import join
from torchkeep.rows import Listing, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torchkeep.archive.manifest import Manifest

VERSION: Final = 1
_NOTHING: Final = msgspec.Raw(b"null")


class StateTree(Struct, omit_defaults=True):
    """How a saved state is put together. It is the tree of a manifest.

    Tensors are named by where they are in the state: ``model.0.weight`` is ``0.weight`` of the module kept as
    ``model``. Where the state is a module and nothing else, its prefix is empty and the names are its own.

    Attributes:
        version: of this format; a later one is refused.
        value: a tree of values (`torchkeep.formats.values`) with two more tags: ``{"tensor": name}`` and
            ``{"module": prefix}``.
        modules: what each module knew, by its prefix, which its tensors' names begin with, a dot between.
        order: all names, aliases included, in order; left out where the order of the manifest's tensors is it.
    """

    version: Annotated[int, Meta(ge=1)] = VERSION
    value: msgspec.Raw = _NOTHING
    modules: dict[str, ModuleFacts] = {}
    order: tuple[str, ...] = ()


def encode_state(tree: StateTree) -> Any:
    """Return the tree in JSON's own types, as a commit takes it."""
    return msgspec.json.decode(msgspec.json.encode(tree))


def decode_state(path: str, raw: msgspec.Raw) -> StateTree:
    """Read the tree of the manifest at ``path``.

    Raises:
        NewerFormatError: a later version wrote it.
        FormatError: it is not what it should be.
    """
    try:
        tree = msgspec.json.decode(raw, type=StateTree)
    except msgspec.DecodeError as cause:
        raise FormatError(f"the manifest {path!r} describes no state that can be read: {cause}") from cause
    except RecursionError as cause:
        raise FormatError(f"the state described in {path!r} is nested too deeply") from cause
    if tree.version > VERSION:
        raise NewerFormatError(
            f"the state in {path!r} was described in version {tree.version}, and this torchkeep reads up to "
            f"version {VERSION}; install a newer torchkeep"
        )
    return tree


class Described:
    """What a manifest says of its tensors, checked.

    Attributes:
        manifest: the checkpoint.
        tree: how its state is put together; without modules and values where whoever committed it said nothing.
        names: every name, aliases included, in order; tensors of modules' extra state are not among them.
        hidden: the names of these.

    Raises:
        NewerFormatError: a later version described the state.
        FormatError: what the manifest says contradicts itself.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        raw = manifest.body.tree
        self.tree = StateTree() if bytes(raw) == b"null" else decode_state(manifest.path, raw)
        try:
            self._check()
            self.hidden = frozenset(
                name for prefix, facts in self.tree.modules.items() for name in _extra_names(prefix, facts)
            )
        except FormatError as cause:
            raise FormatError(f"the manifest {manifest.path!r} contradicts itself: {cause}") from cause
        except RecursionError as cause:
            raise FormatError(
                f"the state that the manifest {manifest.path!r} describes is nested too deeply"
            ) from cause
        order = self.tree.order or (*manifest.tensors, *manifest.aliases)
        self.names = tuple(name for name in order if name not in self.hidden) if self.hidden else order

    def _check(self) -> None:
        manifest, order = self.manifest, self.tree.order
        known = manifest.tensors.keys() | manifest.aliases.keys()
        if order and (len(order) != len(known) or set(order) != known):
            raise FormatError("its order does not name every tensor once")
        own: dict[str, set[str]] = {prefix: set() for prefix in self.tree.modules}
        for name in known:
            for prefix in self._around(name):
                own[prefix].add(name[len(prefix) + 1 :] if prefix else name)
        for prefix, facts in self.tree.modules.items():
            check_facts(facts, own[prefix])

    @property
    def source(self) -> str:
        """What errors call the checkpoint: ``STORE@STEP``."""
        return f"{self.manifest.path.rpartition('/checkpoints/')[0]}@{self.manifest.step}"

    def owner(self, name: str) -> str:
        """Return the name that a tensor is kept under: itself, unless it is an alias."""
        return self.manifest.aliases.get(name, name)

    def module_of(self, name: str) -> str | None:
        """Return the prefix of the module that a name lies in; None where it lies in none."""
        return next(self._around(name), None)

    def _around(self, name: str) -> Iterator[str]:
        """Yield the prefixes of the modules around a name, the innermost first."""
        modules = self.tree.modules
        segments = name.split(".", self._depth)
        for depth in range(len(segments) - 1, 0, -1):
            if (prefix := ".".join(segments[:depth])) in modules:
                yield prefix
        if "" in modules:
            yield ""

    @cached_property
    def _depth(self) -> int:
        return max((prefix.count(".") + 1 for prefix in self.tree.modules if prefix), default=0)

    @cached_property
    def listing(self) -> Listing:
        """The rows: those of modules as their own files have them, of the others only dtype and shape."""
        known = {prefix: Known(facts, prefix) for prefix, facts in self.tree.modules.items()}
        further = names_of_ties(self.manifest.aliases)
        rows = []
        for owner in dict.fromkeys(map(self.owner, self.names)):
            names = (owner, *(name for name in further.get(owner, ()) if name not in self.hidden))
            rows.append(self._row(known, names))
        modules = {path: info for one in known.values() for path, info in one.modules.items()}
        return Listing(rows, modules if known else None, self.source)

    def _row(self, known: Mapping[str, Known], names: tuple[str, ...]) -> Row:
        stored = self.manifest.tensors[names[0]]
        own = ""
        for name in names:
            prefix = self.module_of(name)
            if prefix is not None and (not own or known[prefix].knows(name)):
                own, module = name, known[prefix]
                if module.knows(name):
                    break
        if not own:
            return Row(names[0], stored.shape, stored.dtype, aliases=names[1:])
        return module.row(names, stored.shape, stored.dtype, own)


def listing_of(manifest: Manifest) -> Listing:
    """Return the rows of a checkpoint; raises what `Described` does."""
    return Described(manifest).listing


def tensors_in(node: Any) -> list[str]:
    """Return the names of the tensors that a tree of values holds."""
    found: list[str] = []
    pending = [node]
    while pending:
        one = pending.pop()
        if type(one) is list:
            pending.extend(one)
        elif type(one) is dict:
            name = one.get("tensor")
            if len(one) == 1 and type(name) is str:
                found.append(name)
            else:
                pending.extend(one.values())
    return found


def _extra_names(prefix: str, facts: ModuleFacts) -> list[str]:
    """Return the names of the tensors that are only there as a module's extra state."""
    return [
        name
        for key, raw in facts.extra.items()
        for name in tensors_in(decode_json(raw))
        if name.startswith(join(prefix, key))
    ]
