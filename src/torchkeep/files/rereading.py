"""Read checkpoints again and compare every byte with the digests in them. No torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchkeep.archive.locating import checkpoint_at, open_store
from torchkeep.archive.manifest import name_of
from torchkeep.archive.verifying import VerifyReport, verify
from torchkeep.errors import DamageError, FormatError, TorchkeepError
from torchkeep.files.verifying import Damage, FileReport, KeptReport, SourceReport, StoreReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torchkeep.archive import Archive
    from torchkeep.archive.manifest import Name
    from torchkeep.formats.locations import Location


def verify_stored(location: Location) -> SourceReport:
    """Verify a checkpoint, or all of a store, what they share once; what is wrong is returned, not raised."""
    try:
        archive = open_store(location)
        if location.whole:
            return _report(location, *_verified(archive, archive.names()))
        name = name_of(checkpoint_at(location).manifest.path.rpartition("/")[2])
        assert name is not None
        found, problems = _verified(archive, [name])
        if not found.checkpoints and not problems:
            problems = [f"{location.text!r} was pruned while it was verified; name another checkpoint"]
        return _report(location, found, problems)
    except DamageError as error:
        damage = Damage(error.tensor, error.start, error.stop, error.problem or str(error))
        return SourceReport(location.text, (_damaged(error.file, [damage]),), None)
    except TorchkeepError as error:
        return SourceReport(location.text, (), str(error))


def _verified(archive: Archive, names: Sequence[Name]) -> tuple[VerifyReport, list[str]]:
    """Verify checkpoints; one whose manifest can't be understood does not keep the others from it."""
    try:
        return verify(archive, names), []
    except FormatError:
        readable, problems = [], []
        for name in names:
            try:
                archive.manifest(name)
            except DamageError:
                readable.append(name)
            except FormatError as error:
                problems.append(str(error))
            else:
                readable.append(name)
        if not problems:
            raise
        return verify(archive, readable), problems


def _report(location: Location, found: VerifyReport, problems: Iterable[str]) -> SourceReport:
    wrong = {damage.sequence for damage in found.damage}
    checkpoints = tuple(
        KeptReport(name.step, name.sequence, name.sequence not in wrong) for name in found.checkpoints
    )
    files: dict[str, dict[Damage, None]] = {}
    for one in found.damage:
        # As the store was given: its root has symbolic links resolved.
        path = location.store.rstrip("/") + one.file.removeprefix(found.root)
        files.setdefault(path, {})[Damage(one.tensor, one.start, one.stop, one.problem)] = None
    return SourceReport(
        location.text,
        tuple(_damaged(path, sorted(ones, key=lambda one: one.start)) for path, ones in files.items()),
        "; ".join(problems) or None,
        StoreReport(checkpoints, found.nbytes),
    )


def _damaged(path: str, damage: Sequence[Damage]) -> FileReport:
    return FileReport(path, None, 0, 0, 0, tuple(damage))
