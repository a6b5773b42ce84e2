"""A store of checkpoints on disk, format 1, without torch: commit, read, verify, prune.

`Archive` looks into a store and reads; it needs no lock. `Writer` is an archive that holds the store's lock,
commits and prunes. What they promise, the crash explorer in tests/crash/ checks: after any crash a restore gives
exactly the last acknowledged checkpoint or the one in flight, whole.

Everything here is imported when it is first used: who lists a store needs nothing of what writes one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep.archive.looking import Listed as Listed
    from torchkeep.archive.manifest import Manifest as Manifest
    from torchkeep.archive.manifest import Piece as Piece
    from torchkeep.archive.manifest import Stored as Stored
    from torchkeep.archive.manifest import Summary as Summary
    from torchkeep.archive.reading import Archive as Archive
    from torchkeep.archive.reading import Restored as Restored
    from torchkeep.archive.retaining import PruneReport as PruneReport
    from torchkeep.archive.retaining import Retention as Retention
    from torchkeep.archive.tensors import Part as Part
    from torchkeep.archive.tensors import TensorBytes as TensorBytes
    from torchkeep.archive.verifying import Damage as Damage
    from torchkeep.archive.verifying import VerifyReport as VerifyReport
    from torchkeep.archive.verifying import verify as verify
    from torchkeep.archive.writing import Writer as Writer

_HOMES = {
    "looking": ("Listed",),
    "manifest": ("Manifest", "Piece", "Stored", "Summary"),
    "reading": ("Archive", "Restored"),
    "retaining": ("PruneReport", "Retention"),
    "tensors": ("Part", "TensorBytes"),
    "verifying": ("Damage", "VerifyReport", "verify"),
    "writing": ("Writer",),
}
"""Names by the module that defines them."""


def __getattr__(name: str) -> object:
    """Import a name's module when the name is first used (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
