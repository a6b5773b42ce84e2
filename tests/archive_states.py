"""States to commit, and what a store gives back, for the tests of the archive."""

from __future__ import annotations

from itertools import count

from torchkeep.archive import TensorBytes, Writer

ROOT = "/runs/store"
CHUNK = 64
"""Bytes of a piece, so that small tensors have several."""


def state(**tensors):
    """Return tensors to commit: bytes by name."""
    return {name: TensorBytes.of(data) for name, data in tensors.items()}


def steady_ids(prefix="id"):
    """Return what makes the same names in the same order every time."""
    numbers = count()
    return lambda: f"{prefix}{next(numbers)}"


def writer(storage, *, kind=Writer, prefix="id", **options):
    """Open a store for writing, with nothing left to chance."""
    settings = {"wait": 0.0, "chunk": CHUNK, "ids": steady_ids(prefix), "clock": lambda: 1.5}
    return kind(storage, ROOT, **{**settings, **options})


def content(archive, manifest):
    """Return all tensors of a checkpoint, read and verified."""
    return {name: bytes(archive.tensor(manifest, name)) for name in manifest.tensors}
