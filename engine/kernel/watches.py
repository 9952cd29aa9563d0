# SPDX-License-Identifier: Apache-2.0
"""The path of an inotify watch: fdinfo gives device, inode and file handle, but no name.

Facts: open_by_handle_at(2) finds the inode, but needs CAP_DAC_READ_SEARCH in the initial
user namespace and a file system that can (overlayfs mostly cannot). Without it the mounts of
that device are searched for the inode number, `SEARCH_LIMIT` names at most.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from torpor.engine.kernel import fdcalls

SEARCH_LIMIT = 50_000
MINOR_BITS = 20  # include/linux/kdev_t.h: fdinfo prints the kernel's own dev_t


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What fdinfo says: `s_dev` as it is there, inode, `f_handle`."""

    device: int
    inode: int
    handle_type: int
    handle: bytes


def find(pid: int, watch: Watch) -> str | None:
    """Path inside the root of task ``pid``, or None."""
    root = f"/proc/{pid}/root"
    for mount in _mounts(pid, watch.device):
        path = _by_handle(root, mount, watch)
        if path is not None:
            return path
    for mount in _mounts(pid, watch.device):
        path = _by_search(root, mount, watch)
        if path is not None:
            return path
    return None


def mount_point(pid: int, mount_id: int | None, device: int) -> str | None:
    """Where a mount is, by its id, or else any mount of a device; the topmost of several."""
    if mount_id is None:
        return next(iter(reversed(_mounts(pid, device))), None)
    return next((point for number, _, point in _mount_lines(pid) if number == mount_id), None)


def _mounts(pid: int, device: int) -> list[str]:
    """Mount points of a device, inside the task's root."""
    wanted = f"{device >> MINOR_BITS}:{device & (1 << MINOR_BITS) - 1}"
    return [point for _, found, point in _mount_lines(pid) if found == wanted]


def _mount_lines(pid: int) -> Iterator[tuple[int, str, str]]:
    """(id, device, mount point) of every mount below the task's root."""
    with suppress(OSError), open(f"/proc/{pid}/mountinfo", "rb") as lines:
        for line in lines:
            words = line.split()
            raw = words[4].decode("unicode_escape").encode("latin-1")
            yield int(words[0]), words[2].decode(), os.fsdecode(raw)


def _by_handle(root: str, mount: str, watch: Watch) -> str | None:
    try:
        mount_fd = os.open(root + mount, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fd = fdcalls.open_by_handle(mount_fd, watch.handle_type, watch.handle)
        if fd < 0:
            return None
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
            base = os.readlink(f"/proc/self/fd/{mount_fd}")
            wanted = os.fstat(fd)
        finally:
            os.close(fd)
    finally:
        os.close(mount_fd)
    # The names are those of the mount as we see it; what lies below its point is the task's.
    below = name[len(base.rstrip("/")) :] if name.startswith(base.rstrip("/")) else None
    if below is None:
        return None
    path = (mount.rstrip("/") + below) or "/"
    with suppress(OSError):
        status = os.lstat(root + path)
        if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
            return path
    return None


def _by_search(root: str, mount: str, watch: Watch) -> str | None:
    """Breadth first, on one file system."""
    with suppress(OSError):
        top = os.lstat(root + mount)
        if top.st_ino == watch.inode:
            return mount
        left = SEARCH_LIMIT
        queue = deque([mount])
        while queue and left > 0:
            directory = queue.popleft()
            with suppress(OSError), os.scandir(root + directory) as entries:
                for entry in entries:
                    left -= 1
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != top.st_dev:
                        continue
                    path = f"{directory.rstrip('/')}/{entry.name}"
                    if status.st_ino == watch.inode:
                        return path
                    if stat.S_ISDIR(status.st_mode):
                        queue.append(path)
    return None
