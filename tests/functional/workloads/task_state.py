# SPDX-License-Identifier: Apache-2.0
"""Small settings of a task and its threads, each of which reads them back itself.

task_state.py FOLDER CASE
"""

import ctypes
import mmap
import os
import resource
import struct
import sys
import threading
from pathlib import Path

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)
GETTERS = {
    "dumpable": 3, "keepcaps": 7, "tsc": None, "securebits": 27, "timerslack": 30,
    "no_new_privs": 39, "thp_disable": 42,
}  # fmt: skip
WORDS = {"pdeathsig": 2, "subreaper": 37, "tsc": 25}
OPTIONAL = {"mce_kill": 34, "mdwe": 66, "memory_merge": 68, "io_flusher": 58, "ssb": (52, 0),
            "indirect branches": (52, 1)}  # fmt: skip
SYS_SCHED_SETATTR, SYS_SCHED_GETATTR, SYS_MEMBARRIER, SYS_SECCOMP = 314, 315, 324, 317
SYS_SETFSUID, SYS_SETFSGID, SYS_CAPSET = 122, 123, 126
SYS_SETGROUPS, SYS_SETRESUID, SYS_KEYCTL = 116, 117, 250
SYS_IOPRIO_SET, SYS_IOPRIO_GET = 251, 252
SYS_MBIND, SYS_SET_MEMPOLICY, SYS_GET_MEMPOLICY = 237, 238, 239
NUMA_AREA = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
NUMA_AREA[:1] = b"x"
NUMA_AT = ctypes.addressof(ctypes.c_char.from_buffer(NUMA_AREA))


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


def optional(number):
    """What some kernels or rights do not have."""
    words = number if isinstance(number, tuple) else (number,)
    return LIBC.prctl(*(ctypes.c_ulong(a) for a in (*words, 0, 0, 0, 0)[:5]))


def scheduling():
    room = ctypes.create_string_buffer(48)
    call(SYS_SCHED_GETATTR, 0, ctypes.addressof(room), 48, 0)
    return room.raw


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
        **{name: optional(number) for name, number in OPTIONAL.items()},
        "scheduling": scheduling(),
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
        "coredump_filter": read_own("coredump_filter"),
        "autogroup": read_own("autogroup").partition(" ")[2],
        "memory_policies": memory_policies(),
        "membarrier": call(SYS_MEMBARRIER, 1 << 9, 0, 0),
        "resuid": [os.getresuid(), os.getresgid()],
        "cwd": os.getcwd(),
    }


def memory_policies():
    """Of the task, and of the area that NUMA_AREA is."""
    told = []
    for address, flags in ((0, 0), (NUMA_AT, 2)):
        mode, nodes = ctypes.c_int(), (ctypes.c_ulong * 16)()
        at = ctypes.addressof
        call(SYS_GET_MEMPOLICY, at(mode), at(nodes), 1024, address, flags)
        told.append((mode.value, list(nodes)))
    return told


def numa():
    """MPOL_BIND for the task, MPOL_PREFERRED for a page."""
    node = (ctypes.c_ulong * 16)(1)
    call(SYS_SET_MEMPOLICY, 2, ctypes.addressof(node), 1024)
    call(SYS_MBIND, NUMA_AT, mmap.PAGESIZE, 1, ctypes.addressof(node), 1024, 0)


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


def mixed_credentials():
    """Another user with one capability, groups of its own, no_new_privs."""
    LIBC.syscall(SYS_SETGROUPS, 3, (ctypes.c_uint32 * 3)(7, 8, 9))
    prctl(8, 1)
    call(SYS_SETRESUID, 1001, 1002, 1003)
    capset(1 << 10, 1 << 10 | 1 << 12, 0)
    prctl(38, 1)


def threads(*setups):
    """Threads whose settings are others than the leader's; each reads its own."""

    def run(setup, ready):
        setup()
        told = [thread_state()]
        ready.set()
        AGAIN.wait()
        told.append(thread_state())
        TOLD.append(told)

    for setup in setups:
        ready = threading.Event()
        one = threading.Thread(target=run, args=(setup, ready))
        one.start()
        OTHERS.append(one)
        assert ready.wait(10)


def a_bit_of_everything():
    prctl(1, 12)
    prctl(29, 70_000)
    call(SYS_IOPRIO_SET, 1, 0, 3 << 13)
    call(SYS_SETFSUID, 77)
    os.setpriority(os.PRIO_PROCESS, 0, 7)


def sched_attr(policy, flags=0, nice=0, priority=0, runtime=0, deadline=0, period=0):
    raw = struct.pack("<IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    room = ctypes.create_string_buffer(raw)
    call(SYS_SCHED_SETATTR, 0, ctypes.addressof(room), 0)


def policy(number, priority=0):
    return lambda: os.sched_setscheduler(0, number, os.sched_param(priority))


def ioprio(kind, level=0):
    return lambda: call(SYS_IOPRIO_SET, 1, 0, kind << 13 | level)


def filtered(flags=0):
    """A filter that lets everything pass."""

    def install():
        code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
        program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code)))
        call(SYS_SECCOMP, 1, flags, ctypes.addressof(program))

    return install


def filtered_with_privileges():
    filtered()()
    user()


def new_session_keyring():
    call(SYS_KEYCTL, 0, -2, 1)


def loginuid():
    Path("/proc/self/loginuid").write_text("1234")


AGAIN, TOLD, OTHERS = threading.Event(), [], []
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
    "batch": policy(os.SCHED_BATCH),
    "idle": policy(os.SCHED_IDLE),
    "round_robin": policy(os.SCHED_RR, 7),
    "fifo": policy(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 3),
    "deadline": lambda: sched_attr(6, 1, 0, 0, 1_000_000, 50_000_000, 100_000_000),
    "policies_of_threads": lambda: threads(
        policy(os.SCHED_BATCH), policy(os.SCHED_IDLE), policy(os.SCHED_RR, 2), lambda: None
    ),
    "ioprio_realtime": ioprio(1, 3),
    "ioprio_idle": ioprio(3),
    "ioprio_of_threads": lambda: threads(ioprio(2, 1), ioprio(3), ioprio(1, 7)),
    "affinity": lambda: os.sched_setaffinity(0, {0}),
    "loginuid": loginuid,
    "thread": lambda: threads(a_bit_of_everything),
    "credentials_of_threads": lambda: threads(mixed_credentials, fsuid, securebits, lambda: None),
    "many_groups": lambda: os.setgroups(range(1000, 1100)),
    "dropped_capabilities": lambda: capset((1 << 10) - 1, (1 << 12) - 1, 1 << 3),
    "mce_kill_early": lambda: prctl(33, 1, 1),
    "mce_kill_late": lambda: prctl(33, 1, 0),
    "mdwe": lambda: prctl(65, 1),
    "memory_merge": lambda: prctl(67, 1),
    "thp_disable_but_advised": lambda: prctl(41, 1, 2),
    "membarrier": lambda: [call(SYS_MEMBARRIER, 1 << bit, 0, 0) for bit in (2, 4, 6)],
    "coredump_filter": lambda: Path("/proc/self/coredump_filter").write_text("0x7f"),
    "filter_that_logs": filtered(2),
    "filters_of_threads": lambda: threads(filtered(), lambda: (filtered()(), filtered(2)())),
    "filter_without_no_new_privs": filtered_with_privileges,
    "autogroup": lambda: Path("/proc/self/autogroup").write_text("7"),
    "numa": numa,
    "process_keyring": new_session_keyring,
}


def body(place):
    CASES[sys.argv[2]]()
    before = state()
    yield
    after = state()
    assert after == before, [
        f"{name}: was {before[name]}, is {after[name]}"
        for name in before if before[name] != after[name]
    ]  # fmt: skip
    AGAIN.set()
    for one in OTHERS:
        one.join()
    for was, now in TOLD:
        assert now == was, f"was {was}\nis  {now}"


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # relative paths: another user could not pass through its parents
    sys.argv[1] = "."
    workload(body)
