# SPDX-License-Identifier: Apache-2.0
"""/proc: thin readers, and the parsers of stat and status; `maps` and `proctexts` have others.

Parsers take text and tolerate fields that a kernel between 5.10 and 6.18 lacks: numbers
that are not there are 0, flags and lists are empty. Names are decoded with surrogateescape.
Source: proc_pid_*(5), Documentation/filesystems/proc.rst (v6.18).
"""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import Denied, Error, KernelError, Vanished

ENDED = "ZX"
"""States of a task that only waits for its parent, or for nobody."""
_SIGNAL_MASKS = re.compile(
    rb"^SigPnd:\s*(\w+)\nShdPnd:\s*(\w+)\nSigBlk:\s*(\w+)\nSigIgn:\s*\w+\nSigCgt:\s*(\w+)$",
    re.MULTILINE,
)
_TOLD = re.compile(
    rb"^NStgid:.*?(\d+)\nNSpid:.*?(\d+)\n.*?"
    rb"^(SigPnd:.*?)^CapInh:.*?^(Seccomp:\s*\d+)$",
    re.MULTILINE | re.DOTALL,
)
_NAME = re.compile(rb"^Name:\t(.*)$", re.MULTILINE)
_NS_TGID = re.compile(rb"^NStgid:.*?(\d+)$", re.MULTILINE)
_NS_PID = re.compile(rb"^NSpid:.*?(\d+)$", re.MULTILINE)
_SECCOMP_FILTERS = re.compile(rb"^Seccomp_filters:\s*(\d+)$", re.MULTILINE)
_SECCOMP = re.compile(rb"^Seccomp:\s*(\d+)$", re.MULTILINE)
_TGID = re.compile(rb"^Tgid:\s*(\d+)$", re.MULTILINE)
_NAME_ESCAPE = re.compile(rb"\\([n\\])")


# ---- reading


def read_bytes(pid: int | str, name: str) -> bytes:
    """/proc/PID/NAME whole. Raises Vanished, Denied, KernelError."""
    path = f"/proc/{pid}/{name}"
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise _error(pid, path, error) from None


def read_many(names: Sequence[tuple[int, str]]) -> list[bytes | Error]:
    """/proc/PID/NAME of many (pid, name) in one go: what `read_bytes` gives or raises."""
    paths = [f"/proc/{pid}/{name}" for pid, name in names]
    return [
        found if isinstance(found, bytes) else _error(pid, path, OSError(-found, ""))
        for (pid, _), path, found in zip(names, paths, native.read_texts(paths), strict=True)
    ]


def read_text(pid: int | str, name: str) -> str:
    """As `read_bytes`, decoded."""
    return read_bytes(pid, name).decode("utf-8", "surrogateescape")


def write_text(pid: int, name: str, text: str) -> None:
    """Write to /proc/PID/NAME."""
    path = f"/proc/{pid}/{name}"
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        raise _error(pid, path, error) from None


def read_link(pid: int | str, name: str) -> str:
    """Text of the link /proc/PID/NAME.

    A namespace of a task that is gone may not be read (EACCES; fs/proc/namespaces.c,
    proc_ns_readlink).
    """
    path = f"/proc/{pid}/{name}"
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError):
        raise Vanished("is gone", subject=f"task {pid}", cause=f"no {path}") from None
    except PermissionError as error:
        if not os.path.exists(f"/proc/{pid}"):
            raise Vanished("is gone", subject=f"task {pid}") from None
        raise _denied(path, error) from None
    except OSError as error:
        raise _failed("readlink", path, error) from None


def list_numbers(pid: int | str, name: str) -> list[int]:
    """Entries of a directory under /proc/PID (fd, task) as sorted numbers."""
    return sorted(map(int, list_names(pid, name)))


def list_names(pid: int | str, name: str) -> list[str]:
    """Entries of a directory under /proc/PID."""
    path = f"/proc/{pid}/{name}"
    try:
        return os.listdir(path)
    except (FileNotFoundError, ProcessLookupError):
        raise Vanished("is gone", subject=f"task {pid}", cause=f"no {path}") from None
    except PermissionError as error:
        raise _denied(path, error) from None


def threads(pid: int) -> list[int]:
    """Thread ids of a process, as seen from here."""
    return list_numbers(pid, "task")


def process(pid: int) -> int:
    """The pid of the process that a thread is one of, both as seen from here."""
    found = _TGID.search(read_bytes(pid, "status"))
    return int(found[1]) if found else pid


def face(pid: int) -> int:
    """A thread that shows what a process has: its main one, or the first that lives on.

    A main thread that has ended has given up memory, descriptors, directories and namespaces, and
    waits for the others to end (kernel/exit.c, do_exit, delay_group_leader; v6.18). The pid of a
    thread leads to a folder in /proc like that of its process.
    """
    if state_of(read_bytes(pid, "stat")) not in ENDED:
        return pid
    for tid in threads(pid):
        with suppress(Vanished):
            if state_of(read_bytes(pid, f"task/{tid}/stat")) not in ENDED:
                return tid
    return pid


def children(pid: int) -> list[int]:
    """Children of all threads of a process. A stopped tree's list is exact (proc_pid_task(5))."""
    return children_of({pid: threads(pid)})[pid]


def children_of(tids: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Children of processes whose threads these are, sorted."""
    found: dict[int, list[int]] = {pid: [] for pid in tids}
    names = [(pid, f"task/{tid}/children") for pid, mine in tids.items() for tid in mine]
    for (pid, _), text in zip(names, read_many(names), strict=True):
        if isinstance(text, bytes):
            found[pid] += map(int, text.split())
        elif not isinstance(text, Vanished):  # children of a thread that ended are its siblings'
            raise text
    for mine in found.values():
        mine.sort()
    return found


def state_of(stat: bytes) -> str:
    """The letter, from a text of stat."""
    return chr(stat[stat.rindex(b")") + 2])


def processor_flags() -> frozenset[str]:
    """Features of the processor, as /proc/cpuinfo names them."""
    flags = re.search(r"^flags\s*:(.*)$", read_text("", "cpuinfo"), re.MULTILINE)
    return frozenset(flags[1].split()) if flags else frozenset()


def affinity(tid: int) -> bytes:
    """Processors that a thread may use, as a mask of whole 64-bit words."""
    mask = sum(1 << cpu for cpu in os.sched_getaffinity(tid))
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")


def _error(pid: int | str, path: str, error: OSError) -> Error:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return Vanished("is gone", subject=f"task {pid}", cause=f"no {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(path, error)
    return _failed("read", path, error)


def _denied(path: str, error: OSError) -> Denied:
    return Denied(
        f"{path} may not be read",
        cause=os.strerror(error.errno or 0),
        remedy="run with CAP_SYS_PTRACE (and CAP_DAC_READ_SEARCH for another user's task)",
    )


def _failed(call: str, path: str, error: OSError) -> KernelError:
    return KernelError(f"{call} failed", errno=error.errno or 0, subject=path)


# ---- stat and status


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """/proc/PID/stat: what is used of it, under proc_pid_stat(5)'s names."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty_nr: int
    tpgid: int
    flags: int
    priority: int
    nice: int
    num_threads: int
    starttime: int
    startcode: int
    endcode: int
    startstack: int
    exit_signal: int
    rt_priority: int
    policy: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int


_STAT_FIELDS = {
    "ppid": 4, "pgrp": 5, "session": 6, "tty_nr": 7, "tpgid": 8, "flags": 9, "priority": 18,
    "nice": 19, "num_threads": 20, "starttime": 22, "startcode": 26, "endcode": 27,
    "startstack": 28, "exit_signal": 38, "rt_priority": 40, "policy": 41, "start_data": 45,
    "end_data": 46, "start_brk": 47, "arg_start": 48, "arg_end": 49, "env_start": 50,
    "env_end": 51, "exit_code": 52,
}  # fmt: skip


def parse_stat(text: str) -> Stat:
    """/proc/PID/stat. The name may hold anything, a bracket too."""
    head, _, tail = text.rpartition(")")
    pid, _, comm = head.partition("(")
    words = tail.split()
    numbers = {
        name: int(words[index - 3]) if index - 3 < len(words) else 0
        for name, index in _STAT_FIELDS.items()
    }
    return Stat(pid=int(pid), comm=comm, state=words[0], **numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """/proc/PID/status. ``raw`` has every line by its name; masks are numbers."""

    raw: dict[str, str]
    name: str
    state: str
    umask: int | None
    """None for a kernel thread or a zombie."""
    tgid: int
    pid: int
    ppid: int
    tracer_pid: int
    uid: tuple[int, ...]
    """Real, effective, saved, file system."""
    gid: tuple[int, ...]
    groups: tuple[int, ...]
    ns_tgid: tuple[int, ...]
    """Ids from the reader's pid namespace to the task's own, which is last."""
    ns_pid: tuple[int, ...]
    ns_pgid: tuple[int, ...]
    ns_sid: tuple[int, ...]
    threads: int
    sig_pnd: int
    shd_pnd: int
    sig_blk: int
    sig_ign: int
    sig_cgt: int
    cap_inh: int
    cap_prm: int
    cap_eff: int
    cap_bnd: int
    cap_amb: int
    no_new_privs: int
    seccomp: int
    """0 off, 1 strict, 2 filters."""
    seccomp_filters: int
    thp_enabled: bool
    shadow_stack: bool


def parse_status(text: str) -> Status:
    """/proc/PID/status."""
    raw = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        raw[name] = value.strip()

    def number(name: str, base: int = 10) -> int:
        return int(raw.get(name) or "0", base)

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(int(word) for word in raw.get(name, "").split())

    return Status(
        raw=raw,
        name=raw.get("Name", ""),
        state=raw.get("State", "")[:1],
        umask=int(raw["Umask"], 8) if "Umask" in raw else None,
        tgid=number("Tgid"),
        pid=number("Pid"),
        ppid=number("PPid"),
        tracer_pid=number("TracerPid"),
        uid=numbers("Uid"),
        gid=numbers("Gid"),
        groups=numbers("Groups"),
        ns_tgid=numbers("NStgid"),
        ns_pid=numbers("NSpid"),
        ns_pgid=numbers("NSpgid"),
        ns_sid=numbers("NSsid"),
        threads=number("Threads"),
        sig_pnd=number("SigPnd", 16),
        shd_pnd=number("ShdPnd", 16),
        sig_blk=number("SigBlk", 16),
        sig_ign=number("SigIgn", 16),
        sig_cgt=number("SigCgt", 16),
        cap_inh=number("CapInh", 16),
        cap_prm=number("CapPrm", 16),
        cap_eff=number("CapEff", 16),
        cap_bnd=number("CapBnd", 16),
        cap_amb=number("CapAmb", 16),
        no_new_privs=number("NoNewPrivs"),
        seccomp=number("Seccomp"),
        seccomp_filters=number("Seccomp_filters"),
        thp_enabled=raw.get("THP_enabled", "1") == "1",
        shadow_stack="shstk" in raw.get("x86_Thread_features", "").split(),
    )


def deliverable_signals(status: bytes) -> int:
    """Mask of signals which are pending and not blocked, from a status text."""
    pending, blocked, _ = signal_masks(status)
    return pending & ~blocked


def signal_masks(status: bytes) -> tuple[int, int, int]:
    """Masks of signals which are pending, blocked, and caught, from a status text."""
    found = _SIGNAL_MASKS.search(status)
    if found is None:
        return 0, 0, 0
    private, shared, blocked, caught = (int(mask, 16) for mask in found.groups())
    return private | shared, blocked, caught


def thread_name(status: bytes) -> bytes:
    """The name of the thread, from a status text (proc_task_name escapes newline and backslash)."""
    found = _NAME.search(status)
    return _NAME_ESCAPE.sub(lambda m: b"\n" if m[1] == b"n" else b"\\", found[1] if found else b"")


def ids_and_signals(status: bytes) -> tuple[tuple[int, int], bytes]:
    """Last numbers of NStgid and NSpid, and lines that tell of signals and filters (or all)."""
    found = _TOLD.search(status)
    if found is None:
        return (innermost_tgid(status), innermost_pid(status)), status
    process, thread, signals, filters = found.groups()
    return (int(process), int(thread)), signals + filters


def innermost_tgid(status: bytes) -> int:
    """Last number of NStgid, from a status text; 0 on kernels without that line."""
    found = _NS_TGID.search(status)
    return int(found[1]) if found else 0


def innermost_pid(status: bytes) -> int:
    """Last number of NSpid, from a status text; 0 on kernels without that line."""
    found = _NS_PID.search(status)
    return int(found[1]) if found else 0


def seccomp_mode(status: bytes) -> int:
    """0 off, 1 strict, 2 filters, from a status text."""
    found = _SECCOMP.search(status)
    return int(found[1]) if found else 0


def seccomp_count(status: bytes) -> int:
    """How many filters, from a status text; 0 before Linux 5.9 too."""
    found = _SECCOMP_FILTERS.search(status)
    return int(found[1]) if found else 0


def private_signals(status: bytes) -> int:
    """Mask of signals that wait for this thread alone, from a status text."""
    found = _SIGNAL_MASKS.search(status)
    return int(found[1], 16) if found else 0
