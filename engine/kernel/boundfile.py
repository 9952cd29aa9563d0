# SPDX-License-Identifier: Apache-2.0
"""The file of a unix socket's name: where it is by now.

Facts (probed on v6.18): SIOCUNIXFILE opens the file that bind(2) made (O_PATH), also that of a
listener for what it has accepted, wherever it was moved to; it takes CAP_NET_ADMIN over the
socket's network namespace. The link in /proc of that descriptor is its path in the mount
namespace that it belongs to, or the last one with ` (deleted)` behind it. Names by link(2) are
looked for around it.

Source: unix_open_file(), net/unix/af_unix.c.
"""

import fcntl
import itertools
import os
from contextlib import suppress
from pathlib import PurePosixPath

from torpor.engine.kernel import fdcalls, filefacts
from torpor.engine.kind import BoundFile

SIOCUNIXFILE = 0x89E0
DELETED = " (deleted)"


def find(socket_fd: int, root_fd: int) -> BoundFile | None:
    """None when there is no file, or no right to ask."""
    try:
        fd = fcntl.ioctl(socket_fd, SIOCUNIXFILE)
    except OSError:
        return None
    try:
        status, was = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    paths = [was] if _is_at(root_fd, was, status) else []
    if not paths:
        was = was.removesuffix(DELETED)
    folder = _closest_folder(root_fd, was)
    if status.st_nlink > len(paths):
        root = f"/proc/self/fd/{root_fd}"
        found = filefacts.names(root, status.st_dev, status.st_ino, folder)
        others = (path for path in found if path not in paths)
        paths += itertools.islice(others, status.st_nlink - len(paths))
    return BoundFile(
        paths=tuple(paths), was=was, folder=folder, mode=status.st_mode & 0o7777,
        uid=status.st_uid, gid=status.st_gid, links=status.st_nlink,
    )  # fmt: skip


def _is_at(root_fd: int, path: str, status: os.stat_result) -> bool:
    with suppress(OSError):
        fd = fdcalls.open_beneath(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.path.samestat(os.fstat(fd), status)
        finally:
            os.close(fd)
    return False


def _closest_folder(root_fd: int, path: str) -> str:
    for parent in PurePosixPath(path).parents:
        with suppress(OSError):
            os.close(fdcalls.open_beneath(root_fd, str(parent), os.O_PATH | os.O_DIRECTORY))
            return str(parent)
    return "/"
