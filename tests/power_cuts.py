"""The states that a power cut can leave, built from what a `MemoryStorage` was asked to do.

What was synced is there. Of what was not, each write is there, or not, or torn; each name in a folder is what it
was at the last sync, or anything that it became since. All of that independently of each other: no file system
promises an order without a sync.
"""

from __future__ import annotations

from itertools import islice, product
from math import prod

from torchkeep.storage.journal import FOLDER, Entries, FileSynced, FolderSynced, Written, apply


class Disk:
    """What of a storage is durable, and what is not yet, while its journal is followed step by step.

    Args:
        storage: at a moment when nothing is in its journal.
        quiet: folders below this one are left to chance even where everything else is tried out.
    """

    def __init__(self, storage, quiet):
        assert not storage.journal
        self._quiet = quiet
        self._names = {folder: dict(entries) for folder, entries in storage._folders.items()}
        self._content = {
            id(node): bytes(node.data) for entries in self._names.values() for node in entries.values()
        }
        self._nodes = []  # keeps them alive, since they are told apart by id
        self._new_names = {}
        self._writes = {}

    def follow(self, step):
        """Take one more step of the journal."""
        if isinstance(step, Written):
            self._nodes.append(step.node)
            self._writes.setdefault(id(step.node), []).append(step)
        elif isinstance(step, FileSynced):
            content = bytearray(self._content.get(id(step.node), b""))
            for write in self._writes.pop(id(step.node), ()):
                apply(content, write.start, write.data)
            self._content[id(step.node)] = bytes(content)
        elif isinstance(step, Entries):
            for folder, name, node in step.changes:
                self._nodes.append(node)
                self._new_names.setdefault((folder, name), []).append(node)
                if node is FOLDER:
                    self._names[f"{folder}/{name}"] = {}
        elif isinstance(step, FolderSynced):
            for folder, name in [place for place in self._new_names if place[0] == step.folder]:
                self._names[folder][name] = self._new_names.pop((folder, name))[-1]

    def cuts(self, rng, limit):
        """Yield about ``limit`` images: all that matter where they are not more, else some drawn with ``rng``."""
        loud, still = self._options()
        total = prod(map(len, loud.values()))
        chosen = list(product(*loud.values()) if total <= limit else _drawn(rng, loud, limit))
        for values in chosen:
            for _ in range(max(1, limit // len(chosen)) if still else 1):
                quiet = {place: rng.choice(options) for place, options in still.items()}
                yield self._build({**dict(zip(loud, values, strict=True)), **quiet})

    def cut(self, rng):
        """Return one image, drawn with ``rng``."""
        options = {place: values for part in self._options() for place, values in part.items()}
        return self._build({place: rng.choice(values) for place, values in options.items()})

    def _options(self):
        """Return what each name and each write may be: those that matter, and those below the quiet folder."""
        names = {
            place: list(dict.fromkeys([self._names.get(place[0], {}).get(place[1]), *nodes]))
            for place, nodes in self._new_names.items()
        }
        linked = {
            id(node)
            for folder, name, nodes in [
                *((*place, nodes) for place, nodes in names.items()),
                *((folder, name, [node]) for folder, found in self._names.items() for name, node in found.items()),
            ]
            if not self._is_quiet(folder)
            for node in nodes
        }
        loud = {place: options for place, options in names.items() if not self._is_quiet(place[0])}
        still = {place: options for place, options in names.items() if self._is_quiet(place[0])}
        for node, found in self._writes.items():
            for index, write in enumerate(found):
                (loud if node in linked else still)[node, index] = _torn(len(write.data))
        return loud, still

    def _is_quiet(self, folder):
        return folder.startswith(self._quiet)

    def _build(self, choice):
        image = {}
        pending = {}
        for place, value in choice.items():
            if isinstance(place[0], str):
                pending.setdefault(place[0], {})[place[1]] = value
        stack = [""]
        while stack:
            folder = stack.pop()
            for name, node in {**self._names.get(folder, {}), **pending.get(folder, {})}.items():
                if node is FOLDER:
                    image[f"{folder}/{name}"] = None
                    stack.append(f"{folder}/{name}")
                elif node is not None:
                    image[f"{folder}/{name}"] = self._file(node, choice)
        return image

    def _file(self, node, choice):
        durable = self._content.get(id(node), b"")
        writes = self._writes.get(id(node))
        if not writes:
            return durable
        content = bytearray(durable)
        for index, write in enumerate(writes):
            begin, end = choice[id(node), index]
            if begin < end:
                apply(content, write.start + begin, write.data[begin:end])
        return bytes(content)


def _torn(length):
    """Return what of a write may have arrived: nothing, a half, nearly all, all."""
    return list(dict.fromkeys([(0, 0), (0, length // 2), (length // 2, length), (0, length - 1), (0, length)]))


def _drawn(rng, options, limit):
    """Yield the oldest and the newest state of everything, and others by chance."""
    values = list(options.values())
    yield tuple(one[0] for one in values)
    yield tuple(one[-1] for one in values)
    yield from islice(iter(lambda: tuple(rng.choice(one) for one in values), None), limit - 2)
