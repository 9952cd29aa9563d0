# SPDX-License-Identifier: Apache-2.0
"""The first process of a tree that comes back."""

import os
from collections.abc import Sequence

from torpor.engine.native.seam import error_for, ffi, lib


def spawn_seed(  # noqa: PLR0913 - what a process is started with
    path: bytes,
    argv: list[bytes],
    *,
    set_tid: int = 0,
    flags: int = 0,
    stdio: tuple[int, int, int] | None = None,
    new_session: bool = False,
    kept: Sequence[int] = (),
    env: Sequence[bytes] = (),
    dies_with_us: bool = False,
    clocks: bytes = b"",
    time_namespace: int = -1,
) -> int:
    """Clone a child (with pid ``set_tid`` if not 0) that executes ``path`` at once.

    Only its standard descriptors stay open, and ``kept`` as 3, 4, ... With ``dies_with_us`` it
    has a parent-death signal. With ``clocks`` (`kernel/clocks.py`) it gets a time namespace of its
    own, with ``time_namespace`` (a descriptor) it enters that one, where it has the right to.
    Raises KernelError named clone3 or execve.
    """
    keep = [ffi.new("char[]", item) for item in (path, *argv, *env)]
    arguments = ffi.new("char *[]", [*keep[1 : 1 + len(argv)], ffi.NULL])
    environment = ffi.new("char *[]", [*keep[1 + len(argv) :], ffi.NULL])
    spawn = ffi.new("struct seam_spawn *")
    spawn.path, spawn.argv, spawn.envp = keep[0], arguments, environment
    spawn.set_tid, spawn.flags, spawn.new_session = set_tid, flags, new_session
    offsets = ffi.new("char[]", clocks)
    spawn.clocks, spawn.clocks_size = offsets, len(clocks)
    spawn.time_namespace = time_namespace
    spawn.dies_with = os.getpid() if dies_with_us else 0
    numbers = ffi.new("int[]", [*kept])
    spawn.kept, spawn.kept_count = numbers, len(kept)
    for i, fd in enumerate(stdio or (-1, -1, -1)):
        spawn.stdio[i] = fd
    pid = lib.seam_spawn_seed(spawn)
    if pid < 0:
        call = "execve" if spawn.failed_call else "clone3"
        name = os.fsdecode(path) + (f" with pid {set_tid}" if set_tid else "")
        raise error_for(pid, call, name)
    return pid
