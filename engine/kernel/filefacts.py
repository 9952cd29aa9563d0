# SPDX-License-Identifier: Apache-2.0
"""What a view of a descriptor tells of a file itself: content, times, attributes, other names.

Facts (probed on v6.18): /proc/PID/fd/N opens the file anew whatever its name is, with a position
of its own, so that lseek does not move the task's. O_NOATIME leaves the access time alone, but is
only for the owner and CAP_FOWNER. An O_PATH symbolic link is read by readlinkat(fd, "").
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from torpor.engine.errors import KernelError

SEARCH_LIMIT = 20_000
"""Names that are looked at for another name of a file."""
ACLS = "system.posix_acl_"
"""Of all attributes of the system those that are kept with a file."""


class FileFacts:
    """The part of `LiveFd` about files; it needs nothing but the path in /proc."""

    __slots__ = ()

    pid: int
    st_dev: int
    st_ino: int
    st_size: int
    flags: int

    @property
    def path(self) -> str:
        """The link in /proc that opens the same file anew."""
        raise NotImplementedError

    @property
    def subject(self) -> str:
        """`task 41, fd 7 -> pipe:[9123]`."""
        raise NotImplementedError

    def data_ranges(self) -> Sequence[tuple[int, int]]:
        """(start, end) of what is data in a regular file."""
        with self._opened() as fd:
            return list(_ranges(fd, self.st_size))

    def read_range(self, offset: int, size_bytes: int) -> bytes:
        """Content by pread, shorter at the end of the file."""
        content = bytearray()
        with self._opened() as fd:
            while len(content) < size_bytes:
                piece = os.pread(fd, size_bytes - len(content), offset + len(content))
                if not piece:
                    break
                content += piece
        return bytes(content)

    def times_ns(self) -> tuple[int, int]:
        """atime and mtime."""
        status = os.stat(self.path)
        return status.st_atime_ns, status.st_mtime_ns

    def xattrs(self) -> Mapping[str, bytes]:
        """Extended attributes; none where a file system has none."""
        found: dict[str, bytes] = {}
        if self.flags & os.O_PATH:
            return found
        with suppress(OSError):
            for name in os.listxattr(self.path):
                if not name.startswith("system.") or name.startswith(ACLS):
                    found[name] = os.getxattr(self.path, name)
        return found

    def symlink_target(self) -> str:
        """What a symbolic link leads to."""
        fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        try:
            return os.readlink("", dir_fd=fd)
        except OSError as error:
            raise self._failed("readlinkat", error) from error
        finally:
            os.close(fd)

    def other_name(self, folder: str) -> str | None:
        """Another path of the inode inside the task's root: below ``folder``, then further up."""
        return next(names(f"/proc/{self.pid}/root", self.st_dev, self.st_ino, folder), None)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            try:
                fd = os.open(self.path, flags | os.O_NOATIME)
            except PermissionError:
                fd = os.open(self.path, flags)
        except OSError as error:
            raise self._failed("open", error) from error
        try:
            yield fd
        except OSError as error:
            raise self._failed("read", error) from error
        finally:
            os.close(fd)

    def _failed(self, call: str, error: OSError) -> KernelError:
        return KernelError(f"{call} failed", errno=error.errno or 0, subject=self.subject)


def _ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno == errno.EINVAL:
                yield at, size
                return
            raise
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def names(root: str, device: int, inode: int, folder: str) -> Iterator[str]:
    """Paths below ``root`` of a file: below ``folder``, then further up, up to a limit."""
    left, done = [SEARCH_LIMIT], ""
    for top in (folder, *map(str, PurePosixPath(folder).parents)):
        yield from _search(root, top, done, left, (device, inode))
        done = top


def _search(
    root: str, top: str, done: str, left: list[int], wanted: tuple[int, int]
) -> Iterator[str]:
    """Breadth first on one file system; ``done`` was searched before."""
    queue = deque([top])
    while queue and left[0] > 0:
        directory = queue.popleft()
        with suppress(OSError), os.scandir(root + directory) as entries:
            for entry in entries:
                left[0] -= 1
                path = f"{directory.rstrip('/')}/{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != wanted[0] or path == done:
                    continue
                if status.st_ino == wanted[1]:
                    yield path
                if stat.S_ISDIR(status.st_mode):
                    queue.append(path)
