# SPDX-License-Identifier: Apache-2.0
"""Rights of this process: reading them, and running a function with fewer in a child.

Facts: a change of uid clears `dumpable`, and then not even our own children could be traced
(kernel/cred.c, commit_creds); it is set again. Capabilities survive the change of uid only
with PR_SET_KEEPCAPS, which leaves the permitted set; capset raises them again.
"""

import ctypes
import errno
import json
import os
import struct
import traceback
from collections.abc import Callable, Collection
from typing import Any

from torpor.engine.errors import Bug, Error
from torpor.engine.kernel import proc

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names by number (linux/capability.h)."""
NOBODY = 65534
PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8
CAP_VERSION_3 = 0x20080522
BROKEN = 255
"""Exit code of a child that met an exception which is none of ours."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:  # noqa: ANN401
    """A function of the C library that sets errno. Raises OSError."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None, None, None)
    return result


def effective() -> frozenset[str]:
    """Names of the capabilities that are in force."""
    mask = proc.parse_status(proc.read_text("self", "status")).cap_eff
    return frozenset(name for i, name in enumerate(CAPABILITIES) if mask >> i & 1)


def keep_only(wanted: Collection[str]) -> None:
    """Become nobody with these capabilities; there is no way back."""
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    mask = sum(1 << i for i, name in enumerate(CAPABILITIES) if name in wanted)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    head = struct.pack("<Ii", CAP_VERSION_3, 0)
    call("capset", head, struct.pack("<6I", low, low, 0, high, high, 0))
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)


def in_child(work: Callable[[], Any], before: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401
    """Run `before` and `work` in a child; what it returns, as JSON takes it.

    Raises:
        OSError: what the child met.
        Bug: it broke.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            os.close(reading)
            before()
            answer = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as stream:
                stream.write(answer)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        except Error as error:
            code = getattr(error, "errno", errno.EIO)
        finally:
            if code == BROKEN:
                traceback.print_exc()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        if code == BROKEN or code < 0:
            raise Bug("a child of a probe broke", cause=f"status {code}")
        raise OSError(code, os.strerror(code))
    return json.loads(answer)
