# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do for the engine, found out by doing it: one function a feature.

Each probe belongs to the lowest rung of the privilege ladder (DESIGN.md, section 4) on which
it is expected to work, and runs in a child with the rights of that rung when ours allow it.
Probes leave nothing behind: what they make dies with the child.
"""

import ctypes
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torpor.engine import blobs, native
from torpor.engine.errors import Denied, Error, Unavailable, Vanished
from torpor.engine.kernel import maps, pagemap, proc, rights
from torpor.engine.kernel.arch.x86_64 import MACHINE, syscall_number
from torpor.engine.kernel.rights import call

CLONE_NEW = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "network": 0x40000000,
}  # fmt: skip
PR_SET_MM, PR_SET_MM_MAP_SIZE = 35, 15
PR_TIMER_CREATE_RESTORE_IDS = 77
UFFDIO_API, UFFD_API, UFFD_FEATURE_WP_ASYNC = 0xC018AA3F, 0xAA, 1 << 15
UFFD_USER_MODE_ONLY = 1
PTRACE_O_SUSPEND_SECCOMP = 0x200000
PAGE_IS_PRESENT = 1 << 3
MS_NODEV, MS_REC_PRIVATE = 4, 0x44000
NETLINK_SOCK_DIAG = 4
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
RIGHTS: dict[int, frozenset[str]] = {
    1: frozenset(), 2: frozenset({"CHECKPOINT_RESTORE", "SYS_PTRACE"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A thing to try. ``needed`` is False when torpor works without it, slower or with less."""

    name: str
    use: str
    rung: int
    probe: Callable[[], None]
    remedy: str
    needed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of it. ``tried_with`` tells the rights that the probe ran with."""

    name: str
    use: str
    rung: int
    needed: bool
    works: bool
    cause: str
    remedy: str
    tried_with: str


# ---- rung 1: no right at all


@contextmanager
def _child() -> Iterator[int]:
    """A child of ours that waits."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _stopped() -> Iterator[int]:
    """A child of ours that is seized and stopped."""
    with _child() as pid:
        native.seize(pid)
        native.settle(pid)
        yield pid


def _machine() -> None:
    if os.uname().machine != MACHINE:
        raise Unavailable("another architecture", cause=os.uname().machine)
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        raise Unavailable("another page size", cause=f"{os.sysconf('SC_PAGE_SIZE')} bytes")


def _programs() -> None:
    for name in (f"executor-{MACHINE}.bin", "torpor-placeholder"):
        if not blobs.program(name).is_file():
            raise Unavailable("not built", subject=name)


def _seize() -> None:
    with _stopped() as pid:
        native.get_regs(pid)
        native.get_xstate(pid)


def _rseq() -> None:
    with _stopped() as pid:
        native.rseq_config(pid)


def _memory() -> None:
    word = ctypes.create_string_buffer(b"torpor")
    with _child() as pid:
        if native.read_memory(pid, ctypes.addressof(word), 6) != b"torpor":
            raise Unavailable("read something else")


def _descriptors() -> None:
    with _child() as pid:
        pidfd = native.pidfd_open(pid)
        try:
            os.close(native.pidfd_getfd(pidfd, 1))
        finally:
            os.close(pidfd)


def _compare() -> None:
    native.kcmp(os.getpid(), os.getpid(), native.KCMP_FILE, 1, 1)


def _scan() -> None:
    fd = pagemap.open_pagemap(os.getpid())
    try:
        area = ctypes.create_string_buffer(8192)
        start = ctypes.addressof(area) & -4096
        native.scan_pages(fd, start, start + 4096, required=PAGE_IS_PRESENT,
                          returned=PAGE_IS_PRESENT)  # fmt: skip
    finally:
        os.close(fd)


def _vdso() -> None:
    names = {area.name for area in maps.parse_maps(proc.read_text("self", "maps"))}
    if "[vdso]" not in names:
        raise Unavailable("this task has no vDSO", cause="booted with vdso=0, or under gVisor")


def _markers() -> None:
    size = ctypes.c_uint()
    call("prctl", PR_SET_MM, PR_SET_MM_MAP_SIZE, ctypes.byref(size), 0, 0)


def _timers() -> None:
    proc.read_bytes("self", "timers")


def _timer_ids() -> None:
    call("prctl", PR_TIMER_CREATE_RESTORE_IDS, 2, 0, 0, 0)


def _sockets() -> None:
    from torpor.engine.kernel import netlink

    fd = netlink.open_socket(NETLINK_SOCK_DIAG)
    try:
        netlink.ask(fd, netlink.unix_diag_request())
        netlink.ask(fd, netlink.inet_diag_request(2, 6))
    finally:
        os.close(fd)


def _write_tracking() -> None:
    fd = call("syscall", syscall_number("userfaultfd"), os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    try:
        fcntl.ioctl(fd, UFFDIO_API, struct.pack("<QQQ", UFFD_API, UFFD_FEATURE_WP_ASYNC, 0))
    finally:
        os.close(fd)


def _unshare(*names: str) -> None:
    """In a child, because there is no way back."""
    flags = sum(CLONE_NEW[name] for name in names)
    rights.in_child(lambda: call("unshare", flags))


def _own_namespace() -> None:
    _unshare("user", "pid")


# ---- rung 2: CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE


def _choose_pid() -> None:
    """clone3 with set_tid: the child gets a free pid that we name."""
    for wanted in range(_pid_max() - 1, 2, -1):
        if not os.path.exists(f"/proc/{wanted}"):
            break
    else:
        raise Unavailable("no pid is free")
    tids = struct.pack("<i", wanted)
    keep = ctypes.create_string_buffer(tids, 4)
    args = struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(keep), 1, 0)
    pid = call("syscall", syscall_number("clone3"), args, len(args))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    if pid != wanted:
        raise Unavailable("got another pid", cause=f"{pid}, not {wanted}")


def _pid_max() -> int:
    return int(proc.read_text("sys", "kernel/pid_max"))


def _other_user() -> None:
    """Look at tasks of other users the way a dump would, until one may be looked at."""
    refused: Error = Unavailable("could not be tried", cause="no task of another user is here")
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                proc.read_bytes(pid, "maps")
                return
        except (Vanished, FileNotFoundError):
            continue
        except Denied as error:
            refused = error
    raise refused


# ---- rung 3: full root


def _mount() -> None:
    def work() -> None:
        call("unshare", CLONE_NEW["mount"])
        call("mount", None, b"/", None, MS_REC_PRIVATE, None)
        call("mount", b"torpor-check", b"/proc/self/fdinfo", b"tmpfs", MS_NODEV, None)

    rights.in_child(work)


def _filters() -> None:
    with _stopped() as pid:
        native.seccomp_filters(pid)


def _suspend_filters() -> None:
    with _stopped() as pid:
        native.set_options(pid, PTRACE_O_SUSPEND_SECCOMP)


def _file_handles() -> None:
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        call("name_to_handle_at", fd, b"", handle, ctypes.byref(mount_id), AT_EMPTY_PATH)
        os.close(call("open_by_handle_at", fd, handle, os.O_RDONLY))
    finally:
        os.close(fd)


def _raise_limit() -> None:
    import resource

    def work() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        lowered = 0 if hard == resource.RLIM_INFINITY else max(hard - 1, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, lowered))
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, lowered + 1))
        except ValueError as error:  # how Python says EPERM here
            raise PermissionError(errno.EPERM, str(error)) from error

    rights.in_child(work)


def _freezer() -> None:
    """Make an empty cgroup, freeze it, take it away."""
    for parent, control, freeze, thaw in (
        ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
        ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
        ("/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"),
    ):
        known = "cgroup.procs" if control != "cgroup.freeze" else "cgroup.controllers"
        if not os.path.exists(f"{parent}/{known}"):
            continue
        place = f"{parent}/torpor-check-{os.getpid()}"
        os.mkdir(place)
        try:
            for word in (freeze, thaw):
                with open(f"{place}/{control}", "w", encoding="ascii") as file:
                    file.write(word)
        finally:
            os.rmdir(place)
        return
    raise Unavailable("no freezer", cause="neither a v1 freezer nor a v2 hierarchy is mounted")


OLD_KERNEL = "use a newer kernel"
CONFIG = "use a kernel with CONFIG_CHECKPOINT_RESTORE"
FEATURES: Sequence[Feature] = (
    Feature(name="architecture", use="registers and programs of this processor", rung=1,
            probe=_machine, remedy="use x86-64 for now"),
    Feature(name="built programs", use="what runs inside a task while it is restored", rung=1,
            probe=_programs, remedy="run `make engine`"),
    Feature(name="ptrace(SEIZE)", use="stop a task, read its registers", rung=1, probe=_seize,
            remedy="allow ptrace: kernel.yama.ptrace_scope, seccomp profile of this container"),
    Feature(name="process_vm_readv", use="read memory", rung=1, probe=_memory,
            remedy="allow process_vm_readv in the seccomp profile of this container"),
    Feature(name="pidfd_getfd", use="reach the descriptors of a task", rung=1,
            probe=_descriptors, remedy="Linux 5.6, and allowed by the seccomp profile"),
    Feature(name="kcmp", use="find out what tasks share", rung=1, probe=_compare,
            remedy="use a kernel with CONFIG_KCMP, and allow it in the seccomp profile"),
    Feature(name="sock_diag", use="state of sockets", rung=1, probe=_sockets,
            remedy="use a kernel with CONFIG_UNIX_DIAG and CONFIG_INET_DIAG"),
    Feature(name="vDSO", use="recognise the kernel's code in a task", rung=1, probe=_vdso,
            remedy="boot with a vDSO"),
    Feature(name="PR_SET_MM_MAP", use="set brk, stack and argument areas", rung=1,
            probe=_markers, remedy=CONFIG),
    Feature(name="/proc/PID/timers", use="POSIX timers", rung=1, probe=_timers, remedy=CONFIG),
    Feature(name="rseq configuration", use="restartable sequences (every glibc since 2.35)",
            rung=1, probe=_rseq, remedy="Linux 5.13 with CONFIG_RSEQ"),
    Feature(name="PAGEMAP_SCAN", use="find the pages to save", rung=1, probe=_scan,
            remedy="use Linux 6.7 or newer"),
    Feature(name="userfaultfd write tracking", use="save memory in rounds while a task runs",
            rung=1, probe=_write_tracking, remedy="Linux 6.7 with CONFIG_USERFAULTFD",
            needed=False),
    Feature(name="ids of POSIX timers", use="give a timer its old id at once", rung=1,
            probe=_timer_ids, remedy="Linux 6.15; before, ids are counted up to", needed=False),
    Feature(name="user namespace", use="old pids without any right", rung=1,
            probe=_own_namespace, remedy="allow user namespaces: user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, AppArmor", needed=False),
    Feature(name="tasks of other users", use="dump them", rung=2, probe=_other_user,
            remedy="add CAP_SYS_PTRACE"),
    Feature(name="clone3 with set_tid", use="give a task its old pid", rung=2,
            probe=_choose_pid, remedy="add CAP_CHECKPOINT_RESTORE; Linux 5.9"),
    Feature(name="namespaces", use="create them anew", rung=3, remedy="add CAP_SYS_ADMIN",
            probe=lambda: _unshare("mount", "uts", "ipc", "network", "pid")),
    Feature(name="mount", use="mount namespaces", rung=3, probe=_mount,
            remedy="add CAP_SYS_ADMIN"),
    Feature(name="cgroup freezer", use="cut several tasks at one instant", rung=3,
            probe=_freezer, remedy="run as root, with the cgroup hierarchy writable"),
    Feature(name="seccomp filters", use="save and restore a task's own filters", rung=3,
            probe=_filters, remedy="add CAP_SYS_ADMIN, and run without a filter yourself"),
    Feature(name="seccomp suspended", use="restore into a container with a strict filter",
            rung=3, probe=_suspend_filters,
            remedy="add CAP_SYS_ADMIN, and run without a filter yourself"),
    Feature(name="file handles", use="what inotify watches", rung=3, probe=_file_handles,
            remedy="add CAP_DAC_READ_SEARCH; before, directories are searched", needed=False),
    Feature(name="raising hard limits", use="rlimits above ours, low oom_score_adj", rung=3,
            probe=_raise_limit, remedy="add CAP_SYS_RESOURCE", needed=False),
)  # fmt: skip


def probe_all(features: Sequence[Feature] = FEATURES) -> list[Finding]:
    """Try everything, each with the rights of its rung or, lacking them, with ours."""
    found: list[Finding] = []
    for rung in sorted({f.rung for f in features}):
        mine = [f for f in features if f.rung == rung]
        wanted = RIGHTS.get(rung)
        if wanted is not None and may_drop_to(wanted):
            names = " and ".join(f"CAP_{name}" for name in sorted(wanted)) or "no capability"
            tried = f"as uid {rights.NOBODY} with {names}"
            answers = rights.in_child(partial(_try_all, mine), partial(rights.keep_only, wanted))
        else:
            tried = "with the rights that torpor has now"
            answers = rights.in_child(partial(_try_all, mine))
        found += [
            Finding(name=f.name, use=f.use, rung=rung, needed=f.needed, works=cause is None,
                    cause=cause or "", remedy="" if cause is None else f.remedy, tried_with=tried)
            for f, cause in zip(mine, answers, strict=True)
        ]  # fmt: skip
    return found


def may_drop_to(wanted: frozenset[str]) -> bool:
    """Whether we can become nobody with these capabilities."""
    return rights.effective() >= wanted | {"SETUID", "SETGID"}


def _try_all(features: Sequence[Feature]) -> list[str | None]:
    return [_try(feature) for feature in features]


def _try(feature: Feature) -> str | None:
    """None when it works, otherwise why not."""
    try:
        feature.probe()
    except Error as error:
        return ": ".join(part for part in (error.what, error.cause) if part)
    except OSError as error:
        number = error.errno or errno.EIO
        return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
    return None
