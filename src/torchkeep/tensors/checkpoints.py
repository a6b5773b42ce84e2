"""`Checkpoint`: one checkpoint of a store as a mapping from names to tensors, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchkeep.archive.described import Described
from torchkeep.archive.manifest import name_of
from torchkeep.caching import cached_property
from torchkeep.errors import NoMatchError
from torchkeep.selectors.suggest import alternatives, nearest
from torchkeep.tensors.archived import read_archived

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from torch import Tensor

    from torchkeep.archive import Archive, Manifest, Summary
    from torchkeep.archive.manifest import Name
    from torchkeep.rows import Listing


class Checkpoint(Mapping[str, "Tensor"]):
    """A checkpoint of a store: a mapping from names to tensors.

    Stores give them out. At first only the first line of its file is known, with step, time and metrics; the
    rest is read when it is needed, and each tensor, verified, whenever it is asked for. Aliases are names too. It
    is a source like a file: `params`, `load`, `load_into` and `load_model` take it.

    Args:
        archive: the store.
        name: what the name of the checkpoint's file says.
        summary: the file's first line.

    Attributes:
        archive: as given.
        summary: as given.

    Example:
        >>> checkpoint = store.latest()
        >>> checkpoint.metrics["loss"], checkpoint["model.0.weight"].norm()
    """

    def __init__(self, archive: Archive, name: Name, summary: Summary) -> None:
        self.archive, self.summary = archive, summary
        self._name = name

    @classmethod
    def of(cls, archive: Archive, manifest: Manifest) -> Checkpoint:
        """Return the checkpoint of a manifest that was read already."""
        name = name_of(manifest.path.rpartition("/")[2])
        assert name is not None
        made = cls(archive, name, manifest.summary)
        made.__dict__["manifest"] = manifest
        return made

    @property
    def step(self) -> int:
        """The step that the state belongs to."""
        return self.summary.step

    @property
    def sequence(self) -> int:
        """Number of the commit; the highest in a store is the latest."""
        return self.summary.sequence

    @property
    def time(self) -> float:
        """When it was saved, in seconds since 1970."""
        return self.summary.time

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors' elements, a tied one once."""
        return self.summary.nbytes

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics as they were given."""
        return self.summary.values()

    @property
    def location(self) -> str:
        """Where it is, as sources are written: ``STORE@STEP``."""
        return f"{self.archive.root}@{self.step}"

    @cached_property
    def manifest(self) -> Manifest:
        """All that is known of it, read at first use.

        Raises:
            DamageError: it is not what was written.
            MissingCheckpointError: it was pruned.
        """
        return self.archive.manifest(self._name)

    @cached_property
    def described(self) -> Described:
        """What its manifest says of its tensors; raises what reading that raises, and FormatError."""
        return Described(self.manifest)

    @property
    def recipe(self) -> Any:
        """How the model is built, in JSON's own types, as `Recipe.from_dict` takes it; None where it has none."""
        return self.manifest.recipe

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the programs that took part, by name."""
        return self.manifest.body.versions

    @property
    def listing(self) -> Listing:
        """The rows, one for each tensor."""
        return self.described.listing

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor by its owner's name or an alias, verified.

        Raises:
            NoMatchError: it has no tensor of that name; the nearest ones are named.
            DamageError: its bytes are not what was written; file and byte range are named.
            MissingCheckpointError: it was pruned.
            StorageError: the store can't be read.
        """
        if name not in self:
            raise self._unknown(name)
        return self.read([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.described.names)

    def __len__(self) -> int:
        return len(self.described.names)

    def __contains__(self, name: object) -> bool:
        manifest = self.manifest
        return (name in manifest.tensors or name in manifest.aliases) and name not in self.described.hidden

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        return (self.archive.id, self.sequence) == (other.archive.id, other.sequence)

    def __hash__(self) -> int:
        return hash((self.archive.id, self.sequence))

    def __repr__(self) -> str:
        metrics = "".join(f", {name}={value!r}" for name, value in self.metrics.items())
        return f"<Checkpoint {self.location}{metrics}>"

    def _unknown(self, name: object) -> NoMatchError:
        close = nearest(name, self.described.names) if isinstance(name, str) else ()
        hint = f"; did you mean {alternatives(close)}?" if close else ""
        error = NoMatchError(f"{self.location} has no tensor named {name!r}{hint}")
        error.wanted, error.nearest = str(name), close
        return error

    def read(self, names: Iterable[str], device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Read several tensors at once, in parallel, each verified; a tie is one object.

        Args:
            names: owners or aliases.
            device: where the tensors go.

        Raises:
            NoMatchError: it has no tensor of one of the names.
            DamageError, MissingCheckpointError, StorageError: as for a single one.
        """
        wanted = list(names)
        manifest = self.manifest
        for name in wanted:
            if name not in manifest.tensors and name not in manifest.aliases:
                raise self._unknown(name)
        return read_archived(self.archive, manifest, wanted, device)
