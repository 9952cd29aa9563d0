# SPDX-License-Identifier: Apache-2.0
"""End a task of another user without CAP_KILL.

A tracer that attached with PTRACE_O_EXITKILL takes its tracees with it when it ends, by a
SIGKILL of the kernel's own that asks for no right (ptrace(2); kernel/ptrace.c, exit_ptrace).
The tracer is a thread here. It works on the init of a pid namespace, too.
"""

import ctypes
import threading

_PTRACE_SEIZE = 0x4206
_PTRACE_O_EXITKILL = 0x100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def end_task(pid: int) -> bool:
    """Kill it; False if it is gone already or may not be traced."""
    results: list[int] = []

    def trace() -> None:
        results.append(_libc.ptrace(_PTRACE_SEIZE, pid, None, _PTRACE_O_EXITKILL))

    thread = threading.Thread(target=trace, name="end-task")
    thread.start()
    thread.join()
    return results == [0]
