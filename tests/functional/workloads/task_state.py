# SPDX-License-Identifier: Apache-2.0
"""Gives itself a state, tells it, waits to be asked again, tells it again.

    task_state.py CASE FOLDER

Writes FOLDER/before.json; when FOLDER/ask is there, FOLDER/after.json, and ends.
"""

import ctypes
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
GETTERS = {
    "dumpable": 3, "keepcaps": 7, "tsc": None, "securebits": 27, "timerslack": 30,
    "no_new_privs": 39, "thp_disable": 42,
}  # fmt: skip
WORDS = {"pdeathsig": 2, "subreaper": 37, "tsc": 25}
SYS_SETFSUID, SYS_SETFSGID, SYS_CAPSET = 122, 123, 126
SYS_IOPRIO_SET, SYS_IOPRIO_GET = 251, 252


def prctl(number, *args):
    words = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    result = LIBC.prctl(number, *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl({number}, {args})")
    return result


def call(number, *args):
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"syscall {number}{args}")
    return result


def word(number):
    value = ctypes.c_int(0)
    if LIBC.prctl(number, ctypes.byref(value), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), f"prctl({number})")
    return value.value


def read_own(name):
    """/proc/self belongs to root once the task is not dumpable."""
    try:
        return Path("/proc/self", name).read_text().strip()
    except PermissionError:
        return "not readable"


def state_of(thread):
    status = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    kept = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Sig", "Name")
    return [line for line in status if line.startswith(kept) and not line.startswith("SigQ")]


def thread_state():
    """What belongs to the calling thread; read by itself."""
    return {
        "status": state_of(threading.get_native_id()),
        "ioprio": call(SYS_IOPRIO_GET, 1, 0),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "policy": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "affinity": sorted(os.sched_getaffinity(0)),
        **{name: prctl(number) for name, number in GETTERS.items() if number},
        **{name: word(number) for name, number in WORDS.items()},
    }


def state():
    umask = os.umask(0)
    os.umask(umask)
    return {
        **thread_state(),
        "umask": umask,
        "personality": LIBC.personality(ctypes.c_ulong(0xFFFFFFFF)),
        "limits": {n: resource.getrlimit(n) for n in range(16)},
        "oom_score_adj": read_own("oom_score_adj"),
        "loginuid": read_own("loginuid"),
        "resuid": [os.getresuid(), os.getresgid()],
        "cwd": os.getcwd(),
    }


def capset(effective, permitted, inheritable):
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low = [v & 0xFFFFFFFF for v in (effective, permitted, inheritable)]
    high = [v >> 32 for v in (effective, permitted, inheritable)]
    data = (ctypes.c_uint32 * 6)(*low, *high)
    if LIBC.syscall(SYS_CAPSET, head, data) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def fsuid():
    call(SYS_SETFSGID, 1234)
    call(SYS_SETFSUID, 1234)


def securebits():
    prctl(28, 0b10101)  # NOROOT, NO_SETUID_FIXUP, KEEP_CAPS


def locked_securebits():
    prctl(28, 0xCF)  # NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, all locked


def keepcaps():
    prctl(8, 1)


def keepcaps_of_a_user():
    os.setgroups([])
    os.setresgid(999, 999, 999)
    os.setresuid(999, 999, 999)
    prctl(8, 1)
    prctl(4, 1)


def user():
    os.setgroups([5, 6])
    os.setresgid(999, 999, 999)
    os.setresuid(999, 998, 997)
    prctl(4, 1)


def ambient():
    bind = 1 << 10
    prctl(8, 1)
    os.setresgid(999, 999, 999)
    os.setresuid(999, 999, 999)
    capset(bind, bind, bind)
    prctl(47, 2, 10)
    prctl(4, 1)


def ambient_not_to_be_raised():
    bind = 1 << 10
    capset((1 << 24) - 1 & ~(1 << 19), (1 << 24) - 1 & ~(1 << 19), bind)
    prctl(47, 2, 10)
    prctl(28, 1 << 6)  # NO_CAP_AMBIENT_RAISE


def bounding():
    prctl(24, 19)
    prctl(24, 21)


def thread():
    """A second thread whose settings are others than the leader's."""
    done, again, last = threading.Event(), threading.Event(), threading.Event()

    def body():
        prctl(1, 12)
        prctl(29, 70_000)
        call(SYS_IOPRIO_SET, 1, 0, 3 << 13)
        call(SYS_SETFSUID, 77)
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        OTHER["before"] = thread_state()
        done.set()
        again.wait()
        OTHER["after"] = thread_state()
        last.set()

    one = threading.Thread(target=body, daemon=True)
    one.start()
    done.wait()
    return again, last


def loginuid():
    Path("/proc/self/loginuid").write_text("1234")


OTHER = {}
CASES = {
    "plain": lambda: None,
    "fsuid": fsuid,
    "securebits": securebits,
    "locked_securebits": locked_securebits,
    "keepcaps": keepcaps,
    "keepcaps_of_a_user": keepcaps_of_a_user,
    "user": user,
    "ambient": ambient,
    "ambient_not_to_be_raised": ambient_not_to_be_raised,
    "bounding": bounding,
    "pdeathsig": lambda: prctl(1, 15),
    "pdeathsig_of_a_user": lambda: (user(), prctl(1, 15)),
    "subreaper": lambda: prctl(36, 1),
    "not_dumpable": lambda: prctl(4, 0),
    "thp_disable": lambda: prctl(41, 1),
    "timerslack": lambda: prctl(29, 123_456),
    "ioprio": lambda: call(SYS_IOPRIO_SET, 1, 0, 2 << 13 | 6),
    "oom_score_adj": lambda: Path("/proc/self/oom_score_adj").write_text("321"),
    "umask": lambda: os.umask(0o117),
    "personality": lambda: LIBC.personality(0x0040000),  # ADDR_NO_RANDOMIZE
    "personality_read_implies_exec": lambda: LIBC.personality(0x0400000),
    "core_limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192)),
    "limits": lambda: (
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)),
        resource.setrlimit(resource.RLIMIT_NPROC, (5000, 6000)),
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    ),
    "no_new_privs": lambda: prctl(38, 1),
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "policy": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "fifo": lambda: os.sched_setscheduler(
        0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(3)
    ),
    "affinity": lambda: os.sched_setaffinity(0, {0}),
    "loginuid": loginuid,
    "thread": thread,
}


def main():
    case, folder = sys.argv[1], Path(sys.argv[2])
    os.chdir(folder)  # relative paths: another user could not pass through its parents
    events = CASES[case]()
    Path("before.new").write_text(json.dumps([state(), OTHER.get("before")]))
    os.rename("before.new", "before.json")
    while not os.path.exists("ask"):
        time.sleep(0.01)
    if case == "thread":
        events[0].set()
        events[1].wait()
    Path("after.json").write_text(json.dumps([state(), OTHER.get("after")]))


main()
