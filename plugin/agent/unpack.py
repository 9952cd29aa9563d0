# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: PTH101, PTH208 (works on descriptors, which have no path)
"""Bring an archive back into a tree that may be as hostile as the archive.

The archive is checked as a whole first. Then every parent directory is opened by openat2
with plain components only and no mount point crossed, and everything is made by name below
that descriptor, new and exclusive: no link that lies in the tree is ever followed. Doing it
twice gives the same tree, so that a restart of the agent can begin again.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torpor.engine.errors import BadImage
from torpor.plugin.agent.openat2 import INSIDE, openat2
from torpor.plugin.agent.treefile import DATA, KEPT_XATTRS, ROOT, Entry, Type, extract, read_entries


@dataclass(slots=True, kw_only=True)
class Unpacker:
    """One tree: ``root`` is a descriptor; what lies at or below ``mounts`` is left alone."""

    root: int
    archive: Path
    mounts: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    def run(self) -> int:
        """Make the tree as the archive says; gives the number of entries.

        Raises:
            BadImage: the archive is damaged or hostile; nothing was written.
            OSError: it could not be written.
        """
        count = sum(1 for _ in read_entries(self.archive))
        directories = []
        data = os.open(self.archive / DATA, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for entry in read_entries(self.archive):
                if self._is_mounted(entry.path):
                    continue
                if entry.type is Type.DIRECTORY:
                    self._directory(entry)
                    directories.append(entry)
                else:
                    self._other(entry, data)
        finally:
            os.close(data)
        for entry in reversed(directories):
            self._finish_directory(entry)
        return count

    def _directory(self, entry: Entry) -> None:
        if entry.path != ROOT:
            parent, name = self._parent(entry.path)
            try:
                mode = _mode(parent, name)
                if mode is not None and not stat.S_ISDIR(mode):
                    os.unlink(name, dir_fd=parent)
                    mode = None
                if mode is None:
                    os.mkdir(name, 0o700, dir_fd=parent)
            finally:
                os.close(parent)
        if entry.names is not None:
            self._remove_others(entry.path, entry.names)

    def _remove_others(self, path: str, names: Iterable[str]) -> None:
        """Remove what the directory did not hold."""
        keep = frozenset(names)
        fd = openat2(self.root, path, os.O_RDONLY | os.O_DIRECTORY, INSIDE)
        try:
            for name in os.listdir(fd):
                child = name if path == ROOT else f"{path}/{name}"
                if name not in keep and not self._leads_to_mount(child):
                    self._remove(fd, name, child)
        finally:
            os.close(fd)

    def _remove(self, parent: int, name: str, path: str) -> None:
        mode = _mode(parent, name)
        if mode is None:
            return
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return
        fd = openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, INSIDE)
        try:
            for child in os.listdir(fd):
                self._remove(fd, child, f"{path}/{child}")
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)

    def _other(self, entry: Entry, data: int) -> None:
        parent, name = self._parent(entry.path)
        try:
            self._remove(parent, name, entry.path)
            if entry.type is Type.HARDLINK:
                self._link(entry, parent, name)
                return
            if entry.type is Type.SYMLINK:
                os.symlink(entry.target, name, dir_fd=parent)
            elif entry.type is Type.FIFO:
                os.mkfifo(name, 0o600, dir_fd=parent)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, 0o600, dir_fd=parent)
                try:
                    extract(data, entry, fd)
                finally:
                    os.close(fd)
            fd = openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, INSIDE)
        finally:
            os.close(parent)
        try:
            _set_metadata(fd, entry)
        finally:
            os.close(fd)

    def _link(self, entry: Entry, parent: int, name: str) -> None:
        source, source_name = self._parent(entry.target)
        try:
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _finish_directory(self, entry: Entry) -> None:
        """Owner, mode and times, once nothing more is made in it."""
        fd = openat2(self.root, entry.path, os.O_RDONLY | os.O_DIRECTORY, INSIDE)
        try:
            _set_metadata(fd, entry)
        finally:
            os.close(fd)

    def _parent(self, path: str) -> tuple[int, str]:
        """A descriptor of the parent directory, to be closed, and the name in it."""
        directory, _, name = path.rpartition("/")
        try:
            fd = openat2(self.root, directory or ROOT, os.O_PATH | os.O_DIRECTORY, INSIDE)
        except OSError as error:
            raise BadImage(
                "the archived files do not fit into the container",
                subject=f"/{path}",
                cause=f"its directory cannot be reached without a link or a mount ({error})",
                remedy="restore into a pod of the same image and the same mounts",
            ) from error
        return fd, name

    def _is_mounted(self, path: str) -> bool:
        """Whether something is mounted at it or above it (the root itself apart)."""
        return any(path == each or path.startswith(each + "/") for each in self.mounts)

    def _leads_to_mount(self, path: str) -> bool:
        """Whether something is mounted at it or below it."""
        return any(each == path or each.startswith(path + "/") for each in self.mounts)


def _mode(parent: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _set_metadata(fd: int, entry: Entry) -> None:
    """Owner, then mode (chown drops set-id bits), then capabilities, then times."""
    path = f"/proc/self/fd/{fd}"
    if entry.type is Type.SYMLINK:
        # The magic link leads to the symbolic link itself, which is not followed further.
        os.chown(path, entry.uid, entry.gid)
        os.utime(path, ns=(entry.atime_ns, entry.mtime_ns))
        return
    os.chown(path, entry.uid, entry.gid)
    os.chmod(path, entry.mode)
    for name in _archived_xattrs(path):
        if name not in entry.xattrs:
            os.removexattr(path, name)
    for name, value in entry.xattrs.items():
        os.setxattr(path, name, value)
    os.utime(path, ns=(entry.atime_ns, entry.mtime_ns))


def _archived_xattrs(path: str) -> list[str]:
    try:
        names = os.listxattr(path)
    except OSError:  # file systems without any
        return []
    return [name for name in names if name.startswith(KEPT_XATTRS)]
