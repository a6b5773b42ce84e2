"""Which tensors of a checkpoint go where in a live state. Nothing is changed before all of it is known to fit."""

from __future__ import annotations

from collections import Counter, OrderedDict
from operator import is_
from typing import TYPE_CHECKING, Any, Final

import torch

from torchkeep.archive.described import decode_state
from torchkeep.errors import DamageError, FormatError, LoadError
from torchkeep.formats.document import decode_json
from torchkeep.formats.values import decode
from torchkeep.names import join
from torchkeep.tensors.archived import fill_archived
from torchkeep.tensors.copying import empty
from torchkeep.tensors.dtypes import dtype_name, torch_dtype
from torchkeep.tensors.identity import tensor_key
from torchkeep.tensors.keepable import why_not_filled
from torchkeep.tensors.plain import PLAIN_READERS
from torchkeep.tensors.reading import is_makeable
from torchkeep.tensors.sharing import suspects
from torchkeep.training.state.naming import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from torch import Tensor

    from torchkeep.archive import Archive, Manifest
    from torchkeep.formats.values import Node
    from torchkeep.training.state.contents import Content

_MUTABLE: Final = frozenset({dict, OrderedDict, Counter, list, set})


class Plan:
    """What goes where, what does not fit, and what is to be done once all bytes have been read and verified.

    Args:
        archive: the store.
        manifest: of the checkpoint.
        parts: names of the state's parts.
        contents: of those that are filled in place, as they are now.

    Attributes:
        value: the tree of values.
        modules: prefixes of the modules in it.
        frozen: names of the parameters that these did not train.
        live: tensors of the state by name.
        parts: names of the state's parts.
        problems: a sentence for each thing that does not fit.
        left: a sentence for each thing that is not restored, or that there is nothing for.
        assign: puts values where they belong; nothing of it runs others' code.
        hand_over: calls others' code, by part.

    Raises:
        NewerFormatError: a later version described the state.
        FormatError: the manifest contradicts itself.
    """

    def __init__(
        self, archive: Archive, manifest: Manifest, parts: Iterable[str], contents: Iterable[Content]
    ) -> None:
        self.archive, self.manifest = archive, manifest
        tree = decode_state(manifest.path, manifest.body.tree)
        self.value: Node = decode_json(tree.value)
        self.modules = tuple(tree.modules)
        self.frozen = frozenset(join(part, name) for part, facts in tree.modules.items() for name in facts.frozen)
        self.live = {
            name: tensor
            for one in contents
            for name, tensor in zip(one.names, one.tensors, strict=True)
            if not one.fresh
        }
        self.parts = tuple(parts)
        self.problems: list[str] = []
        self._reports: list[str] = []
        self._reported: set[str] = set()
        self.left: list[str] = []
        self.assign: list[Callable[[], object]] = []
        self.hand_over: list[tuple[str, Callable[[], object]]] = []
        self._makeable = set(filter(is_makeable, {stored.dtype for stored in manifest.tensors.values()}))
        self._pairs: list[tuple[str, Tensor]] = []
        self._names: list[str] = []
        self._fresh: dict[Hashable, Tensor] = {}
        self._sharing = {id(tensor) for tensor in suspects(self.live).values()}
        self._claimed: dict[Hashable, str] = {}

    @property
    def text(self) -> str:
        """What errors call the checkpoint."""
        return f"the checkpoint of step {self.manifest.step} in {self.archive.root!r}"

    @property
    def location(self) -> str:
        """Where it is, as sources are written."""
        return f"{self.archive.root}@{self.manifest.step}"

    def owner(self, name: str) -> str:
        """Return the name that a tensor is kept under.

        Raises:
            FormatError: the checkpoint has none of that name, or one that torch can't make.
        """
        owner = self.manifest.aliases.get(name, name)
        stored = self.manifest.tensors.get(owner)
        if stored is None:
            raise FormatError(f"its values hold a tensor {name!r}, which is not in the checkpoint")
        if stored.dtype not in self._makeable:
            raise FormatError(f"torch {torch.__version__} can't make the dtype {stored.dtype} of {name!r}")
        return owner

    def misfit(self, name: str, target: Tensor) -> str | None:
        """Say how a live tensor differs from what is to be put there; None where it fits."""
        stored = self.manifest.tensors[self.owner(name)]
        if tuple(target.shape) != stored.shape:
            return f"the checkpoint has the shape {list(stored.shape)}, the state {list(target.shape)}"
        if dtype_name(target.dtype) != stored.dtype:
            return f"the checkpoint has the dtype {stored.dtype}, the state {dtype_name(target.dtype)}"
        return None

    def fill(self, owner: str, target: Tensor, name: str) -> str | None:
        """Fill a live tensor, which fits.

        Returns:
            The name of another tensor of the checkpoint that is to be put into the very same memory: then this one
            is not. None where that is not so.
        """
        if id(target) in self._sharing:
            other = self._claimed.setdefault(tensor_key(target), owner)
            if other != owner:
                return other
        self._pairs.append((owner, target))
        self._names.append(name)
        return None

    def make(
        self, name: str, device: torch.device | str = "cpu", like: Tensor | None = None, within: Hashable = None
    ) -> Tensor:
        """Return a new tensor that is filled; a tie is one object.

        Args:
            name: in the checkpoint.
            device: where.
            like: has the strides that the new one should have, if it has its shape.
            within: ties are made one object only within the same.
        """
        owner = self.owner(name)
        key = (within, owner, str(device))
        if key not in self._fresh:
            stored = self.manifest.tensors[owner]
            dtype = torch_dtype(stored.dtype)
            assert dtype is not None
            if like is not None and tuple(like.shape) == stored.shape and dtype != torch.complex32:
                made = torch.empty_like(like.detach(), dtype=dtype, device=device)
            else:
                made = empty(stored.shape, dtype, device)
            self._fresh[key] = made
            self._pairs.append((owner, made))
            self._names.append("")
        return self._fresh[key]

    def decode(self, node: Node, tensor: Callable[[str], Tensor]) -> Any:
        """Make the values that a node stands for.

        Args:
            node: of the tree.
            tensor: gives the tensor of a name.

        Raises:
            FormatError: it is no tree of values.
        """

        def read(name: Any) -> Tensor:
            if not isinstance(name, str):
                raise FormatError("the name of a tensor is no text")
            return tensor(name)

        try:
            return decode(node, readers={**PLAIN_READERS, "tensor": read})
        except FormatError as cause:
            raise FormatError(f"the manifest {self.manifest.path!r} contradicts itself: {cause}") from cause

    def reuse(self, part: str, node: Node) -> Any:
        """Make the values of a part of which nothing else knows how; live tensors that fit are filled."""

        def tensor(name: str) -> Tensor:
            target = self.live.get(name)
            if target is None:
                return self.make(name, within=part)
            problem = self.misfit(name, target) or why_not_filled(target)
            if problem is None and self.fill(self.owner(name), target, name) is None:
                return target
            if problem is not None:
                self.left.append(f"the tensor {name} was not filled but replaced: {problem}")
            return self.make(name, target.device, within=part)

        return self.decode(node, tensor)

    def renew(self, part: str, node: Node) -> Any:
        """Make the values of a part with new tensors, on the devices of the live ones of the same names."""

        def tensor(name: str) -> Tensor:
            live = self.live.get(name)
            return self.make(name, "cpu" if live is None else live.device, within=part)

        return self.decode(node, tensor)

    def raise_for_problems(self) -> None:
        """Raise one error that tells all problems, if there are any."""
        if self.problems:
            lines = "\n".join(
                f"  {line}" for text in (*self._short(), *self._reports) for line in text.splitlines()
            )
            if self._reports:
                lines += (
                    "\nTo keep what is new here, give missing='ignore'; to leave what is gone, unexpected='ignore'"
                    f"\nTo load a module alone, renamed or in part: tk.load_into(net, {self.location!r}, ...)"
                )
            error = LoadError(f"{self.text} does not fit the state; nothing was changed\n{lines}")
            error.problems = tuple(self.problems)
            raise error

    def _short(self) -> list[str]:
        """Return the problems that no report tells."""
        return [problem for problem in self.problems if problem not in self._reported]

    def report(self, part: str, error: LoadError) -> None:
        """Take over what does not fit of a module."""
        where = f"{part}: " if part else ""
        self._reports.append(f"{where}{error}")
        self._reported = {f"{where}{problem}" for problem in error.problems} | self._reported
        self.problems += [f"{where}{problem}" for problem in error.problems]

    def carry_out(self) -> None:
        """Read everything, then assign, then call others' code."""
        self._read()
        for assign in self.assign:
            assign()
        for position, (part, call) in enumerate(self.hand_over):
            try:
                call()
            except Exception as cause:
                raise self._refused(position, part, cause) from cause

    def _refused(self, position: int, part: str, cause: Exception) -> LoadError:
        pending = {other for other, _ in self.hand_over[position:]}
        replaced = tuple(other for other in self.parts if other not in pending)
        error = LoadError(
            f"the part {part!r} refused what {self.text} has for it ({type(cause).__name__}: {cause}); already "
            f"replaced: {', '.join(replaced) or 'nothing'}; make the whole state anew before you go on"
        )
        error.problems, error.replaced = (f"{part}: {cause}",), replaced
        return error

    def _read(self) -> None:
        begun: set[int] = set()
        try:
            fill_archived(self.archive, self.manifest, self._pairs, begun.add)
        except BaseException as error:
            names = tuple(self._names[position] for position in sorted(begun) if self._names[position])
            told = f"already replaced in the state: {listed(names)}" if names else "the state is as it was"
            if isinstance(error, DamageError):
                error.replaced = names
            error.add_note(told)  # no part of the sentence: an older checkpoint may mend it
            raise
        finally:
            for name, (_, target) in zip(self._names, self._pairs, strict=True):
                if name:
                    torch.autograd.graph.increment_version(target)


def put_back(live: Any, new: Any, seen: set[int] | None = None) -> Any:
    """Return ``new``, in containers that are there already wherever these are of the same kind."""
    seen = set() if seen is None else seen
    if type(live) is type(new) is tuple and len(live) == len(new):
        items = tuple(put_back(one, item, seen) for one, item in zip(live, new, strict=True))
        return live if all(map(is_, items, live)) else items
    if type(live) is not type(new) or type(new) not in _MUTABLE or live is new or id(live) in seen:
        return new
    seen.add(id(live))
    if isinstance(new, dict):
        merged = {key: put_back(live[key], item, seen) if key in live else item for key, item in new.items()}
        live.clear()
        live.update(merged)
        if getattr(new, "__dict__", None):
            live.__dict__.update(new.__dict__)
    elif isinstance(new, list):
        live[:] = [
            put_back(live[index], item, seen) if index < len(live) else item for index, item in enumerate(new)
        ]
    else:
        live.clear()
        live.update(new)
    return live


def can_put_back(live: Any, new: Any) -> bool:
    """Tell whether `put_back` can change ``live`` itself into ``new``."""
    if type(live) is not type(new):
        return False
    if type(live) is tuple:
        return len(live) == len(new) and all(map(can_put_back, live, new))
    return type(live) in _MUTABLE or live is new or (not isinstance(live, torch.Tensor) and bool(live == new))
