# SPDX-License-Identifier: Apache-2.0
"""/proc/PID/ns: which namespaces a task is in, and which its children will be.

Facts: `pid_for_children` cannot be read while that pid namespace has no task yet (fs/nsfs.c,
kernel/pid_namespace.c, pidns_for_children_get; v6.18); of a zombie only the links of its user
and pid namespace can.
"""

import ctypes
import errno
import os
from contextlib import suppress

from torpor.engine.errors import Denied, KernelError, Vanished
from torpor.engine.kernel import proc

TYPES = {"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000}
"""CLONE_NEW... of what is entered here."""


def namespaces(pid: int | str) -> dict[str, str]:
    """Text of each link by name (`net` → `net:[4026531840]`); a zombie has few."""
    try:
        names = proc.list_names(pid, "ns")
    except Vanished:
        return {}
    found = {}
    for name in names:
        with suppress(Vanished):
            found[name] = proc.read_link(pid, f"ns/{name}")
    if "pid_for_children" in names and "pid_for_children" not in found:
        with suppress(Vanished):
            proc.read_link(pid, "ns/net")  # it still lives: that was not the reason
            found["pid_for_children"] = "pid:[empty]"
    return found


def enter(kind: str, path: str) -> None:
    """Enter a namespace of a kind with the calling thread, and so with what it starts.

    Raises: KernelError; Denied without CAP_SYS_ADMIN.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("cannot open the namespace", errno=error.errno or 0, subject=path,
                          remedy="give a file like /proc/PID/ns/net") from error  # fmt: skip
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, TYPES[kind]) == 0:
            return
    finally:
        os.close(fd)
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise Denied("may not enter the namespace", subject=path, remedy="run with CAP_SYS_ADMIN")
    raise KernelError("cannot enter the namespace", errno=number, subject=path,
                      remedy=f"give the file of a {kind} namespace")  # fmt: skip
