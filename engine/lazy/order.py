# SPDX-License-Identifier: Apache-2.0
"""In which order memory was waited for: kept beside the images, for the next restore of them.

`torpor-faults-PID` holds addresses, 64 bits each, little-endian. It is a hint: what makes no sense
in it is passed over, and where it cannot be written there is none.
"""

import os
from array import array
from collections.abc import Iterable
from contextlib import suppress

MOST = 1 << 16
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def recorded(directory: int, pid: int) -> list[int]:
    """Addresses in the order of the first faults on them; none when nothing is known."""
    found = array("Q")
    with suppress(OSError):
        fd = os.open(_name(pid), READ, dir_fd=directory)
        try:
            raw = os.read(fd, MOST * found.itemsize)
        finally:
            os.close(fd)
        found.frombytes(raw[: len(raw) // found.itemsize * found.itemsize])
    return list(found)


def record(directory: int, pid: int, addresses: Iterable[int]) -> None:
    """Keep an order; each address once."""
    content = array("Q", list(dict.fromkeys(addresses))[:MOST]).tobytes()
    part = f"{_name(pid)}.{os.getpid()}"
    with suppress(OSError):
        fd = os.open(part, WRITE, 0o600, dir_fd=directory)
        try:
            os.write(fd, content)
            os.rename(part, _name(pid), src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(fd)


def _name(pid: int) -> str:
    return f"torpor-faults-{pid}"
