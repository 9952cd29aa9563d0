# SPDX-License-Identifier: Apache-2.0
"""openat2(2): open a path that cannot lead out of a directory, whatever lies in it.

The C library has no wrapper. The number is the same on every architecture (Linux 5.6).
"""

import ctypes
import os
from enum import IntFlag

_OPENAT2 = 437
_libc = ctypes.CDLL(None, use_errno=True)


class Resolve(IntFlag):
    """How a path is walked; ``include/uapi/linux/openat2.h``."""

    NO_XDEV = 0x01
    """No mount point is crossed (EXDEV)."""
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    """No symbolic link is followed, in any component (ELOOP)."""
    BENEATH = 0x08
    IN_ROOT = 0x10
    """The directory is the root for ``..`` and absolute links."""


INSIDE = Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS | Resolve.NO_XDEV
"""Nothing but plain components of one file system."""
IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
"""As a process with that root would see it."""


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: str, flags: int, resolve: Resolve, mode: int = 0) -> int:
    """Open ``path`` below a directory descriptor; close-on-exec.

    Raises:
        OSError: EXDEV or ELOOP when the path would lead elsewhere.
    """
    how = _How(flags | os.O_CLOEXEC, mode, int(resolve))
    while True:
        fd = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number not in (4, 11):  # EINTR; EAGAIN: a rename raced the walk
            raise OSError(number, os.strerror(number), path)
