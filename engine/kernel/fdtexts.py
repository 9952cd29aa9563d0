# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of the descriptors of a task, and the errors of looking there."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torpor.engine.errors import Denied, Error, KernelError, Vanished
from torpor.engine.kernel import proc

HEADER_LINES = ("pos", "flags", "mnt_id", "ino")


def descriptors(pid: int) -> list[int]:
    """Numbers of a task's descriptors, sorted."""
    with translated(f"task {pid}", f"/proc/{pid}/fd"):
        return sorted(map(int, os.listdir(f"/proc/{pid}/fd")))


def read(path: str) -> str:
    """A text of /proc. Raises OSError."""
    return text_of(proc.whole(path))


def text_of(raw: bytes) -> str:
    """Decoded as all names are."""
    return raw.decode("utf-8", "surrogateescape")


def parse_fdinfo(text: str) -> tuple[dict[str, str], Sequence[str]]:
    """The four values that every descriptor has, and the lines after them."""
    head: dict[str, str] = {}
    rest: list[str] = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not rest and name in HEADER_LINES and name not in head:
            head[name] = value.strip()
        else:
            rest.append(line)
    return head, tuple(rest)


def epoll_targets_of(info: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """From lines `tfd: 5 events: 19 data: 5  pos:0 ino:61 sdev:7` (ep_show_fdinfo, v6.8)."""
    seen: dict[int, int] = {}
    found: list[tuple[int, int, int, int]] = []
    for line in info:
        words = line.replace(":", " ").split()
        if len(words) < 6 or words[0] != "tfd":
            continue
        tfd = int(words[1])
        index = seen.get(tfd, 0)
        seen[tfd] = index + 1
        found.append((tfd, int(words[3], 16), int(words[5], 16), index))
    return found


def ns_pid_of(pid: int) -> int:
    """A task's number in its own pid namespace."""
    with translated(f"task {pid}", f"/proc/{pid}/status"):
        status = read(f"/proc/{pid}/status")
    for line in status.splitlines():
        if line.startswith("NStgid:"):
            return int(line.split()[-1])
    return pid


def netns(pid: int) -> str:
    """A task's network namespace: `net:[4026531840]`."""
    with translated(f"task {pid}", f"/proc/{pid}/ns/net"):
        return os.readlink(f"/proc/{pid}/ns/net")


def same_netns(pid: int) -> bool:
    """Whether a task is in our network namespace."""
    return netns(pid) == netns(os.getpid())


def topmost(fd: int) -> int:
    """The root of a directory's mount namespace: what has itself as its parent."""
    while True:
        above = os.open("..", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=fd)
        is_top = os.path.samestat(os.fstat(above), os.fstat(fd))
        os.close(fd)
        fd = above
        if is_top:
            return fd


def about(error: Error, subject: str) -> Error:
    """The same error with the descriptor for its subject."""
    if isinstance(error, KernelError) and error.errno == errno.EBADF:
        return Vanished("the descriptor was closed while it was looked at", subject=subject)
    error.subject = subject
    return error


def from_os(error: OSError, subject: str, path: str) -> Error:
    """The error for one of /proc."""
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return Vanished("gone while it was looked at", subject=subject, cause=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(
            f"{path} may not be read",
            subject=subject,
            cause=f"{os.strerror(error.errno)}; files of /proc/PID belong to the task's user",
            remedy="run as the owner of the task, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        )
    return KernelError(f"{path} cannot be read", errno=error.errno or 0, subject=subject)


@contextmanager
def translated(subject: str, path: str) -> Iterator[None]:
    """OSError of a file in /proc to an error of ours."""
    try:
        yield
    except OSError as error:
        raise from_os(error, subject, path) from error
