"""What a file system in memory was asked to do, step by step."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Node:
    """A file, whatever its names.

    Attributes:
        data: its bytes.
        lost: a sync of it has failed: what was not durable then never will be.
    """

    __slots__ = ("data", "lost")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.lost = False


FOLDER = Node()
"""Stands for any folder among the entries of its parent."""


class Written(NamedTuple):
    """Bytes written to a file."""

    node: Node
    start: int
    data: bytes


class Entries(NamedTuple):
    """Names that change in one step: folder, name, and what has that name now (None: nothing)."""

    changes: tuple[tuple[str, str, Node | None], ...]


class FileSynced(NamedTuple):
    """A file's content became durable."""

    node: Node


class FolderSynced(NamedTuple):
    """The names in a folder became durable."""

    folder: str


Step: TypeAlias = Written | Entries | FileSynced | FolderSynced


def apply(content: bytearray, start: int, data: bytes) -> None:
    """Write into a file's content; what lies between its end and ``start`` becomes zeros."""
    if len(content) < start:
        content.extend(bytes(start - len(content)))
    content[start : start + len(data)] = data
