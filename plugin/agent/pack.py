# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: PTH116, PTH208 (works on descriptors, which have no path)
"""Take a tree of files into an archive, without following anything out of it.

Every path is opened by openat2 with plain components only and no mount point crossed, so
that what the runtime mounted over the tree (hosts, secrets, devices, volumes) is never taken.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torpor.engine.errors import Refused
from torpor.plugin.agent.openat2 import INSIDE, openat2
from torpor.plugin.agent.treefile import KEPT_XATTRS, ROOT, Entry, Type, Writer

_DROPPED_XATTRS = ("user.overlay.",)
_MOST_NOTES = 20

NamesIn = Callable[[str, Sequence[str]], Sequence[str]]
"""Which names of a directory (path, all its names) are to be taken."""


@dataclass(slots=True, kw_only=True)
class Packer:
    """One tree: ``root`` is a descriptor of its directory."""

    root: int
    writer: Writer
    subject: str
    names_in: NamesIn = lambda _, names: names
    notes: list[str] = field(default_factory=list)
    _links: dict[tuple[int, int], str] = field(default_factory=dict)

    def run(self) -> None:
        """Take everything.

        Raises:
            Refused: a device node is in it.
            OSError: it could not be read, or the archive not be written.
        """
        todo = [ROOT]
        while todo:
            path = todo.pop()
            try:
                todo += self._directory(path)
            except OSError as error:
                # Another container may change a shared volume; mounts are not ours to take.
                if path == ROOT or error.errno not in (errno.ENOENT, errno.EXDEV, errno.ENOTDIR):
                    raise

    def _directory(self, path: str) -> list[str]:
        """Take a directory and its files; gives the directories in it."""
        fd = openat2(self.root, path, os.O_RDONLY | os.O_DIRECTORY, INSIDE)
        try:
            names = sorted(os.listdir(fd))
            self.writer.add(self._entry(fd, path, Type.DIRECTORY, names=tuple(names)))
        finally:
            os.close(fd)
        directories = []
        for name in self.names_in(path, names):
            child = name if path == ROOT else f"{path}/{name}"
            if self._child(child):
                directories.append(child)
        return directories

    def _child(self, path: str) -> bool:
        """Take what is no directory; True for a directory."""
        try:
            fd = openat2(self.root, path, os.O_PATH | os.O_NOFOLLOW, INSIDE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EXDEV):
                return False
            raise
        try:
            mode = os.stat(fd).st_mode
            if stat.S_ISDIR(mode):
                return True
            if stat.S_ISREG(mode):
                self._file(fd, path)
            elif stat.S_ISLNK(mode):
                target = os.readlink("", dir_fd=fd)
                self.writer.add(self._entry(fd, path, Type.SYMLINK, target=target))
            elif stat.S_ISFIFO(mode):
                self.writer.add(self._entry(fd, path, Type.FIFO))
            elif stat.S_ISSOCK(mode):
                self._note(f"socket {path} left out; whoever binds it makes it anew")
            else:
                raise Refused(
                    "a device node was made in the container",
                    subject=f"{self.subject}: /{path}",
                    cause="device nodes are not taken from one node to another",
                    remedy="remove it, or have the runtime provide the device",
                )
        finally:
            os.close(fd)
        return False

    def _file(self, fd: int, path: str) -> None:
        found = os.stat(fd)
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and key in self._links:
            self.writer.add(Entry(path=path, type=Type.HARDLINK, target=self._links[key]))
            return
        source = _reopen(fd)
        try:
            size = os.stat(source).st_size
            extents = self.writer.copy(source, size)
        finally:
            os.close(source)
        self.writer.add(self._entry(fd, path, Type.FILE, size_bytes=size, extents=extents))
        if found.st_nlink > 1:
            self._links[key] = path

    def _entry(self, fd: int, path: str, kind: Type, **more: object) -> Entry:
        found = os.stat(fd)
        return Entry(
            path=path,
            type=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            atime_ns=found.st_atime_ns,
            mtime_ns=found.st_mtime_ns,
            xattrs={} if kind is Type.SYMLINK else _xattrs(fd),
            **more,  # type: ignore[arg-type]
        )

    def _note(self, text: str) -> None:
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(f"{self.subject}: {text}")


def _reopen(fd: int) -> int:
    """The same file for reading; its time of access is left alone where we may."""
    path = f"/proc/self/fd/{fd}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _xattrs(fd: int) -> dict[str, bytes]:
    path = f"/proc/self/fd/{fd}"
    found = {}
    with suppress(OSError):  # file systems without any
        for name in os.listxattr(path):
            if name.startswith(KEPT_XATTRS) and not name.startswith(_DROPPED_XATTRS):
                found[name] = os.getxattr(path, name)
    return found
