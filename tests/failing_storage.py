"""A storage whose calls fail on demand, over the local one."""

from __future__ import annotations

import errno
import os

from torchkeep.formats.opening import refused
from torchkeep.storage.local import LOCAL


class FailingStorage:
    """Counts every call that reaches the disk, and lets one of them fail.

    Attributes:
        calls: names of the calls so far, in order.
    """

    def __init__(self, fail_at=None, failure=None):
        self.calls = []
        self._fail_at = fail_at
        self._failure = failure

    def call(self, name, path, function, *args):
        self.calls.append(name)
        if len(self.calls) - 1 == self._fail_at:
            if self._failure is not None:
                raise self._failure
            cause = OSError(errno.EIO, os.strerror(errno.EIO), path)
            raise refused(cause, name, path) from cause
        return function(*args)

    def resolve(self, path):
        return self.call("resolve", path, LOCAL.resolve, path)

    def replaceable_mode(self, path):
        return self.call("replaceable_mode", path, LOCAL.replaceable_mode, path)

    def create(self, path, mode):
        return FailingFile(self, path, self.call("create", path, LOCAL.create, path, mode))

    def open(self, path):
        return FailingFile(self, path, self.call("open", path, LOCAL.open, path))

    def rename(self, old, new):
        return self.call("rename", old, LOCAL.rename, old, new)

    def remove(self, path):
        return self.call("remove", path, LOCAL.remove, path)

    def sync_directory(self, path):
        return self.call("sync_directory", path, LOCAL.sync_directory, path)


class FailingFile:
    """A file of it, for reading or for writing."""

    def __init__(self, storage, path, file):
        self._storage, self.path, self._file = storage, path, file
        self.size = getattr(file, "size", 0)

    def reserve(self, *args):
        return self._storage.call("reserve", self.path, self._file.reserve, *args)

    def write(self, *args):
        return self._storage.call("write", self.path, self._file.write, *args)

    def sync(self):
        return self._storage.call("sync", self.path, self._file.sync)

    def read(self, *args):
        return self._storage.call("read", self.path, self._file.read, *args)

    def fill(self, *args):
        return self._storage.call("fill", self.path, self._file.fill, *args)

    def fill_view(self, *args):
        return self._storage.call("fill_view", self.path, self._file.fill_view, *args)

    def has_changed(self):
        return self._file.has_changed()

    def close(self):
        return self._file.close()
