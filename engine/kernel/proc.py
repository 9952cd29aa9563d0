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

READ_SIZE = 1 << 16
ENDED = "ZX"
"""States of a task that only waits for its parent, or for nobody."""
_SIGNAL_MASKS = re.compile(
    rb"^SigPnd:\s*(\w+)\nShdPnd:\s*(\w+)\nSigBlk:\s*(\w+)\nSigIgn:\s*\w+\nSigCgt:\s*(\w+)$",
    re.MULTILINE,
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
        return whole(path)
    except OSError as error:
        raise _error(pid, path, error) from None


def whole(path: str) -> bytes:
    """A text, by hand: a file object takes three times as long. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = [os.read(fd, READ_SIZE)]
        while pieces[-1]:
            pieces.append(os.read(fd, READ_SIZE))
    finally:
        os.close(fd)
    return b"".join(pieces)


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


class Status:
    """/proc/PID/status. Lines are looked for when they are asked for, masks are numbers.

    There are sixty lines in a text, and a text for each task that stands still.
    """

    __slots__ = ("_lines",)

    def __init__(self, text: str) -> None:
        self._lines = f"\n{text}\n"

    def line(self, name: str) -> str | None:
        """What a line says; None when there is none."""
        start = self._lines.find(f"\n{name}:")
        if start < 0:
            return None
        start += len(name) + 2
        return self._lines[start : self._lines.index("\n", start)].strip()

    @property
    def raw(self) -> dict[str, str]:
        """Every line by its name."""
        lines = (line.partition(":") for line in self._lines.split("\n") if line)
        return {name: value.strip() for name, _, value in lines}

    @property
    def name(self) -> str:
        """As it is escaped there."""
        return self.line("Name") or ""

    @property
    def state(self) -> str:
        """A letter."""
        return (self.line("State") or "")[:1]

    @property
    def umask(self) -> int | None:
        """None for a kernel thread or a zombie."""
        found = self.line("Umask")
        return None if found is None else int(found, 8)

    @property
    def seccomp(self) -> int:
        """0 off, 1 strict, 2 filters."""
        return self._number("Seccomp")

    @property
    def thp_enabled(self) -> bool:
        """Not switched off by the task; Linux 5.0."""
        return (self.line("THP_enabled") or "1") == "1"

    @property
    def shadow_stack(self) -> bool:
        """Whether it is in use; Linux 6.6."""
        return "shstk" in (self.line("x86_Thread_features") or "").split()

    @property
    def tgid(self) -> int:
        """Tgid."""
        return self._number("Tgid")

    @property
    def pid(self) -> int:
        """Pid."""
        return self._number("Pid")

    @property
    def ppid(self) -> int:
        """PPid."""
        return self._number("PPid")

    @property
    def tracer_pid(self) -> int:
        """TracerPid."""
        return self._number("TracerPid")

    @property
    def threads(self) -> int:
        """Threads."""
        return self._number("Threads")

    @property
    def no_new_privs(self) -> int:
        """NoNewPrivs."""
        return self._number("NoNewPrivs")

    @property
    def seccomp_filters(self) -> int:
        """Seccomp_filters."""
        return self._number("Seccomp_filters")

    @property
    def sig_pnd(self) -> int:
        """SigPnd, a mask."""
        return self._number("SigPnd", 16)

    @property
    def shd_pnd(self) -> int:
        """ShdPnd, a mask."""
        return self._number("ShdPnd", 16)

    @property
    def sig_blk(self) -> int:
        """SigBlk, a mask."""
        return self._number("SigBlk", 16)

    @property
    def sig_ign(self) -> int:
        """SigIgn, a mask."""
        return self._number("SigIgn", 16)

    @property
    def sig_cgt(self) -> int:
        """SigCgt, a mask."""
        return self._number("SigCgt", 16)

    @property
    def cap_inh(self) -> int:
        """CapInh, a mask."""
        return self._number("CapInh", 16)

    @property
    def cap_prm(self) -> int:
        """CapPrm, a mask."""
        return self._number("CapPrm", 16)

    @property
    def cap_eff(self) -> int:
        """CapEff, a mask."""
        return self._number("CapEff", 16)

    @property
    def cap_bnd(self) -> int:
        """CapBnd, a mask."""
        return self._number("CapBnd", 16)

    @property
    def cap_amb(self) -> int:
        """CapAmb, a mask."""
        return self._number("CapAmb", 16)

    @property
    def uid(self) -> tuple[int, ...]:
        """Real, effective, saved, file system."""
        return self._numbers("Uid")

    @property
    def gid(self) -> tuple[int, ...]:
        """As `uid`."""
        return self._numbers("Gid")

    @property
    def groups(self) -> tuple[int, ...]:
        """Supplementary ones."""
        return self._numbers("Groups")

    @property
    def ns_tgid(self) -> tuple[int, ...]:
        """Ids from the reader's pid namespace to the task's own, which is last."""
        return self._numbers("NStgid")

    @property
    def ns_pid(self) -> tuple[int, ...]:
        """As `ns_tgid`."""
        return self._numbers("NSpid")

    @property
    def ns_pgid(self) -> tuple[int, ...]:
        """As `ns_tgid`."""
        return self._numbers("NSpgid")

    @property
    def ns_sid(self) -> tuple[int, ...]:
        """As `ns_tgid`."""
        return self._numbers("NSsid")

    def _number(self, name: str, base: int = 10) -> int:
        return int(self.line(name) or "0", base)

    def _numbers(self, name: str) -> tuple[int, ...]:
        return tuple(map(int, (self.line(name) or "").split()))


def parse_status(text: str) -> Status:
    """/proc/PID/status."""
    return Status(text)


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
    process = status.find(b"\nNStgid:")
    thread = status.find(b"\nNSpid:", process)
    signals = status.find(b"\nSigPnd:", thread) + 1
    filters = status.find(b"\nSeccomp:", signals) + 1
    if process < 0 or thread < 0 or not signals or not filters:
        return (innermost_tgid(status), innermost_pid(status)), status
    ids = (int(status[process:thread].split()[-1]),
           int(status[thread : status.index(b"\n", thread + 1)].split()[-1]))  # fmt: skip
    told = status[signals : status.index(b"CapInh:", signals)]
    return ids, told + status[filters : status.index(b"\n", filters)]


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
