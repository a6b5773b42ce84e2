"""The manifest: one checkpoint, what it holds and where each byte of it is.

Two lines. The first is a summary, so that a listing reads no more than it; the second is everything else, and its
digest covers both. Fields that are not known are ignored, a later version is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from torchkeep.archive.consistency import check_body
from torchkeep.archive.lines import damaged, holds, sealed
from torchkeep.caching import cached_property
from torchkeep.dtypes import DTYPES
from torchkeep.errors import DamageError, FormatError, NewerFormatError, UnsavableError
from torchkeep.formats.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
FORMAT: Final = "torchkeep-checkpoint"

_Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Shape = tuple[_Size, ...]
_NOTHING: Final = msgspec.Raw(b"null")
STEPS: Final = 10**18
"""Steps are below this; file names hold them."""
_NAME: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})\.json")


class Piece(Struct, array_like=True, frozen=True, gc=False):
    """A box of a tensor whose bytes lie together, in row-major order, and have one digest.

    Attributes:
        offset: its first element in the whole tensor.
        shape: its sizes.
        pack: position in the manifest's packs.
        start: its first byte in that pack's file.
        stop: one past its last byte.
        digest: 64 hexadecimal digits of blake3.
    """

    offset: _Shape
    shape: _Shape
    pack: _Size
    start: _Size
    stop: _Size
    digest: str


class Stored(Struct, frozen=True, gc=False):
    """A tensor of a checkpoint.

    Attributes:
        dtype: torch's name.
        shape: sizes of the whole tensor.
        pieces: boxes that fill it; none where it has no element.
    """

    dtype: str
    shape: _Shape
    pieces: tuple[Piece, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


class Pack(Struct, frozen=True, gc=False):
    """A file that pieces lie in.

    Attributes:
        id: its name in packs/, without the ending.
        size: bytes of the file.
        data: where its tensors' bytes begin.
        header: blake3 of what comes before, 64 hexadecimal digits.
    """

    id: str
    size: _Size
    data: _Size
    header: str


class Summary(Struct, frozen=True, omit_defaults=True):
    """The first line.

    Attributes:
        format: ``"torchkeep-checkpoint"``.
        version: of this format.
        sequence: number of the commit; the highest is the latest.
        step: the step that the state belongs to.
        time: when it was saved, in seconds since 1970.
        metrics: values by name, as `torchkeep.formats.values` encodes them.
        tensors: how many there are, a tied one once.
        nbytes: bytes of all their elements.
        written: bytes of the packs that were written for it.
        best: the rule by which the run that wrote it tells the best checkpoint: a metric's name and ``"min"`` or
            ``"max"``; None where it has none.
    """

    format: str
    version: int
    sequence: _Size
    step: _Size
    time: float
    metrics: dict[str, Any] = {}
    tensors: _Size = 0
    nbytes: _Size = 0
    written: _Size = 0
    best: tuple[str, Literal["min", "max"]] | None = None

    def values(self) -> dict[str, Any]:
        """Return the metrics as they were given."""
        return {name: decode(node) for name, node in self.metrics.items()}


class Body(Struct, frozen=True, omit_defaults=True):
    """The second line.

    Attributes:
        tensors: by name, owners only.
        packs: the files that their pieces lie in.
        aliases: owner's name by alias.
        tree: how plain values and tensors are nested; whoever commits decides what it means.
        recipe: how the module is built, as `torchkeep.recipe` wrote it down.
        versions: of the programs that took part, by name.
    """

    tensors: dict[str, Stored]
    packs: tuple[Pack, ...] = ()
    aliases: dict[str, str] = {}
    tree: msgspec.Raw = _NOTHING
    recipe: msgspec.Raw = _NOTHING
    versions: dict[str, str] = {}


class Name(NamedTuple):
    """What the name of a manifest's file says; sorts as the commits were made."""

    sequence: int
    step: int
    file: str


def name_of(file: str) -> Name | None:
    """Read the name of a manifest's file; None for any other name."""
    match = _NAME.fullmatch(file)
    return Name(int(match[1]), int(match[2]), file) if match else None


def file_name(sequence: int, step: int) -> str:
    """Return the name of a manifest's file; names sort as the sequence does."""
    return f"{sequence:08d}-{step}.json"


@dataclass(frozen=True)
class Manifest:
    """A checkpoint as it was committed; checked.

    Attributes:
        path: its file.
        summary: its first line.
        body: its second line.
    """

    path: str
    summary: Summary
    body: Body

    @property
    def sequence(self) -> int:
        """Number of the commit."""
        return self.summary.sequence

    @property
    def step(self) -> int:
        """The step that the state belongs to."""
        return self.summary.step

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The tensors by name, owners only."""
        return self.body.tensors

    @property
    def aliases(self) -> Mapping[str, str]:
        """Owner's name by alias."""
        return self.body.aliases

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics as they were given."""
        return self.summary.values()

    @cached_property
    def tree(self) -> Any:
        """The tree as it was given: JSON's own types."""
        return self._given("tree", self.body.tree)

    @cached_property
    def recipe(self) -> Any:
        """The recipe as it was given: JSON's own types; None when there is none."""
        return self._given("recipe", self.body.recipe)

    def _given(self, what: str, raw: msgspec.Raw) -> Any:
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as cause:
            raise FormatError(f"the {what} in {self.path!r} can't be read: {cause}") from cause


def encode_metrics(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Encode metrics; UnsavableError names one that is no plain value, nor an array of one number."""
    return dict(encode({key: _plain(key, one) for key, one in (metrics or {}).items()})["dict"])


def _plain(key: str, metric: Any) -> Any:
    shape = getattr(metric, "shape", None)
    if not isinstance(shape, tuple) or not hasattr(metric, "item"):
        return metric
    if prod(shape) != 1:
        raise UnsavableError(
            f"the metric {key!r} can't be saved: it has the shape {list(shape)}, and metrics are plain values and "
            "tensors of one number; give its mean(), say"
        )
    return metric.item()


class _Version(Struct):
    format: str
    version: int


_version_decoder: Final = msgspec.json.Decoder(_Version)
_summary_decoder: Final = msgspec.json.Decoder(Summary)
_body_decoder: Final = msgspec.json.Decoder(Body)


def encode_manifest(summary: Summary, body: Body) -> bytes:
    """Return the bytes of the file."""
    first = sealed(msgspec.json.encode(summary))
    return first + sealed(msgspec.json.encode(body), first)


def decode_summary(path: str, line: bytes) -> Summary:
    """Read the first line of the manifest at ``path``.

    Raises:
        DamageError: it is not what was written.
        NewerFormatError: a later version wrote it.
        FormatError: it is no manifest, or that of another checkpoint.
    """
    if not holds(line):
        raise damaged(path, 0, len(line), "the digest of its first line differs")
    try:
        version = _version_decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise FormatError(f"{path!r} is no manifest: {cause}; check the path") from cause
    check_version(path, version.format, version.version, FORMAT, VERSION)
    try:
        summary = _summary_decoder.decode(line)
        summary.values()
    except (msgspec.DecodeError, RecursionError, FormatError) as cause:
        raise FormatError(f"the summary in {path!r} is not what it should be: {cause}") from cause
    name = name_of(path.rpartition("/")[2])
    if name is None or (name.sequence, name.step) != (summary.sequence, summary.step):
        raise damaged(path, 0, len(line), f"it is that of commit {summary.sequence}, step {summary.step}")
    return summary


def check_version(path: str, found: str, version: int, wanted: str, newest: int) -> None:
    """Refuse what is of another kind than wanted, or of a later version than the newest known."""
    if found != wanted:
        raise FormatError(f"{path!r} says that it is {found!r}, where {wanted!r} is expected; check the path")
    if version > newest:
        raise NewerFormatError(
            f"{path!r} was written in version {version} of its format, and this torchkeep reads up to "
            f"version {newest}; install a newer torchkeep"
        )


def decode_manifest(path: str, content: bytes) -> Manifest:
    """Read the manifest at ``path``; raises what `decode_summary` does."""
    end = content.find(b"\n") + 1
    summary = decode_summary(path, content[:end] if end else content)
    if not holds(content[end:], content[:end]):
        raise damaged(path, end, len(content), "the digest of its second line differs")
    try:
        body = _body_decoder.decode(content[end:])
        check_body(body)
    except (msgspec.DecodeError, RecursionError, FormatError) as cause:
        raise FormatError(f"the manifest {path!r} contradicts itself: {cause}") from cause
    return Manifest(path, summary, body)


def missing(path: str) -> DamageError:
    """Return the error for a file of a store that is not there."""
    error = DamageError(f"{path!r} is missing, and a checkpoint needs it; copy it again from elsewhere")
    error.file, error.problem = path, "the file is missing, and a checkpoint needs it"
    return error
