"""Memory for snapshots: kept from save to save, and asked for only where the machine has it to spare."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import torch

from torchkeep.storage.buffers import address_of, anonymous

_WIPE_ON_FORK: Final = 18 if sys.platform == "linux" else None
"""Linux's MADV_WIPEONFORK, which Python has no name for."""
_SPARE: Final = 32 * 1024 * 1024
"""Bytes that a save needs beside the snapshot: windows of its threads, and the manifest."""
_NO_LIMIT: Final = 1 << 60
"""Control groups of version 1 say a number like this where there is no limit."""


class Staging:
    """One block of memory that holds a snapshot, and then the next one.

    Attributes:
        allocations: how often memory was asked for.
    """

    def __init__(self) -> None:
        self.allocations = 0
        self._memory: mmap.mmap | torch.Tensor | None = None
        self._size = 0
        self._pinned = False

    def __len__(self) -> int:
        return self._size

    def lacks(self, nbytes: int) -> bool:
        """Tell whether the machine has too little memory left to hold ``nbytes`` in all."""
        more = nbytes - self._size
        return more > 0 and more + _SPARE > free_memory()

    def room(self, nbytes: int, *, pinned: bool = False) -> int:
        """Return the address of ``nbytes`` bytes, undefined at first; what was given out before is given up.

        Args:
            nbytes: how many.
            pinned: ask for memory that accelerators copy to quickly, where they have that.

        Raises:
            MemoryError: there is not that much.
        """
        if nbytes > self._size or (pinned and not self._pinned):
            self.free()  # before the new is asked for: there is never room for two of them
            self._memory = _allocated(nbytes, pinned=pinned)
            self._size, self._pinned = nbytes, pinned
            self.allocations += 1
        if isinstance(self._memory, torch.Tensor):
            return self._memory.data_ptr()
        return 0 if self._memory is None else address_of(self._memory)

    def free(self) -> None:
        """Give the memory back."""
        self._memory, self._size, self._pinned = None, 0, False


def _allocated(nbytes: int, *, pinned: bool) -> mmap.mmap | torch.Tensor:
    if pinned:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # that kind of accelerator has none, or it is used up; other memory is only slower
            pass
    memory = anonymous(nbytes)
    for advice in (
        getattr(mmap, "MADV_HUGEPAGE", None),  # fewer faults when it is filled for the first time
        # Workers of a DataLoader would make each page be copied when it is filled again. Not MADV_DONTFORK: what a
        # child then has at these addresses would be gone when this object is.
        _WIPE_ON_FORK,
    ):
        if advice is not None:
            with suppress(OSError):  # it is advice: without it everything works as well
                memory.madvise(advice)
    return memory


def free_memory() -> int:
    """Return how many bytes this process can still take: of the machine, and of its control group."""
    return min(int(psutil.virtual_memory().available), group_memory())


def group_memory(own: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Return how many bytes the control groups that this process is in leave to it.

    Method: the limit less what is used, but for cached files, which give way; of every group on the way to the
    root; https://docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html.

    Args:
        own: the file that names the groups.
        root: where groups are mounted.
    """
    left = _NO_LIMIT
    for line in _text(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            names, top = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = os.path.join(root, "memory")  # noqa: PTH118 - the paths of groups are text
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            left = min(left, _left(Path(top, *parts[:depth]), *names))
    return left


def _left(folder: Path, limit: str, used: str, cached: str) -> int:
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not most.isdigit() or not now.isdigit() or int(most) >= _NO_LIMIT:
        return _NO_LIMIT
    pairs = (line.split() for line in _text(folder / "memory.stat").splitlines())
    files = next((int(pair[1]) for pair in pairs if pair[:1] == [cached]), 0)
    return max(0, int(most) - int(now) + files)


def _text(path: str | Path) -> str:
    """Read a file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
