# SPDX-License-Identifier: Apache-2.0
"""The C seam with types: the only module that imports `_native`.

Every function raises: Vanished when the task is gone (ESRCH), Denied when a right is
missing (EPERM, EACCES), Timeout, and KernelError with the system call's name otherwise.
All ptrace calls for a task must come from the thread that seized it.
"""

import errno
import os
import signal
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.engine._native import ffi, lib  # noqa: TID251 - this is the one
from torpor.engine.errors import Denied, Error, KernelError, Timeout, Vanished
from torpor.engine.kernel.arch.x86_64 import Regs

PTRACE_CONT, PTRACE_SINGLESTEP, PTRACE_DETACH, PTRACE_SYSCALL = 7, 9, 17, 24
PTRACE_LISTEN = 0x4208
NT_X86_XSTATE = 0x202
XSTATE_ROOM = 16384
SIGINFO_SIZE = 128
SIGINFO_BATCH = 64
FILTER_ROOM = 4096 * 8
SCAN_ROOM = 4096
DEFAULT_TIMEOUT_S = 10.0
UNKNOWN_OPTION = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTCONN)
TEXT_ROOM, TYPICAL_TEXT = 4 << 20, 2 << 10

KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM = range(7)
KCMP_EPOLL_TFD = 7
KCMP_LESS = 1

Address = int
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def error_for(code: int, call: str, subject: str, *, cause: str = "") -> Error:
    """The error for a negative result of the seam."""
    number = -code
    if number == errno.ESRCH:
        return Vanished(f"{call} found no such task", subject=subject, cause=cause)
    if number in (errno.EPERM, errno.EACCES):
        return Denied(
            f"{call} was not permitted",
            subject=subject,
            cause=cause or os.strerror(number),
            remedy="run with CAP_SYS_PTRACE, or as the owner of the task",
        )
    if number == errno.ETIMEDOUT:
        return Timeout(f"{call} did not finish in time", subject=subject, cause=cause)
    return KernelError(f"{call} failed", errno=number, subject=subject, cause=cause)


def _check(result: int, call: str, task: int) -> int:
    if result < 0:
        raise error_for(result, call, f"task {task}")
    return result


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


# ---- ptrace


def seize(tid: int, options: int = 0) -> None:
    """PTRACE_SEIZE. PTRACE_O_TRACESYSGOOD is always added."""
    _check(lib.seam_seize(tid, options), "ptrace(SEIZE)", tid)


def interrupt(tid: int) -> None:
    """PTRACE_INTERRUPT; the stop comes later, see `wait_stop` and `settle`."""
    _check(lib.seam_interrupt(tid), "ptrace(INTERRUPT)", tid)


def kill_traced(tid: int) -> None:
    """End a stopped tracee; needs no right beyond tracing it. A task that is gone is fine."""
    result = lib.seam_kill(tid)
    if result != -errno.ESRCH:
        _check(result, "ptrace(KILL)", tid)


def set_options(tid: int, options: int) -> None:
    """PTRACE_SETOPTIONS of a stopped task. PTRACE_O_TRACESYSGOOD is always added."""
    _check(lib.seam_set_options(tid, options), "ptrace(SETOPTIONS)", tid)


def wait_stop(tid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
    """Wait for any stop; returns the wait status. Raises Vanished when the task ended."""
    status = ffi.new("int *")
    result = lib.seam_wait(tid, _ns(timeout_s), status)
    if result == -errno.ECHILD:
        raise Vanished("waitpid found no such task", subject=f"task {tid}")
    _check(result, "waitpid", tid)
    if not os.WIFSTOPPED(status[0]):
        raise Vanished("ended while it was waited for", subject=f"task {tid}",
                       cause=describe_end(status[0]))  # fmt: skip
    return int(status[0])


def wait_end(tid: int, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
    """Wait until a task ends, letting no stop pass unseen; returns the wait status."""
    status = ffi.new("int *")
    _check(lib.seam_wait(tid, _ns(timeout_s), status), "waitpid", tid)
    return int(status[0])


def describe_end(status: int) -> str:
    """`exit code 3` or `killed by SIGSEGV`."""
    if os.WIFEXITED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"


def settle(tid: int, *, stopped: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Interrupt a seized task and wait until it stands at its event stop.

    Signals that come first are delivered, as they would have been. ``stopped``: it stands
    at another stop now (that of a system call) and runs nothing of its own on the way.
    """
    _check(lib.seam_settle(tid, stopped, _ns(timeout_s)), "ptrace(INTERRUPT)", tid)


def stop_all(
    tids: Sequence[int], options: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[int]:
    """Seize and interrupt all, then wait for all; returns those that vanished (or are zombies).

    A call that gave EINTR only because of the stop is set to be issued again.
    When one cannot be seized or does not stop, those that did are let go again.
    """
    wanted = ffi.new("int[]", list(tids))
    results = ffi.new("int[]", len(tids))
    lib.seam_stop_all(wanted, len(tids), options, _ns(timeout_s), results)
    outcome = list(zip(tids, results, strict=True))
    gone = [tid for tid, result in outcome if result == -errno.ESRCH or _is_dead(tid, result)]
    for tid, result in outcome:
        if result < 0 and tid not in gone:
            for other, stopped in outcome:
                if stopped == 0:
                    lib.seam_resume(PTRACE_DETACH, other, 0)
            raise error_for(result, "ptrace(SEIZE)", f"task {tid}", cause=_why_not_seized(tid))
    return gone


def _is_dead(tid: int, result: int) -> bool:
    """A zombie cannot be seized: the kernel says EPERM."""
    return result == -errno.EPERM and _status_field(tid, "State")[:1] in ("", "Z", "X")


def _why_not_seized(tid: int) -> str:
    tracer = _status_field(tid, "TracerPid")
    if tracer not in ("", "0"):
        return f"it is traced by task {tracer} already"
    return f"state {_status_field(tid, 'State')}"


def _status_field(tid: int, name: str) -> str:
    try:
        text = Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    values = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in values if key == name), "")


def cont(tid: int, sig: int = 0) -> None:
    """PTRACE_CONT."""
    _check(lib.seam_resume(PTRACE_CONT, tid, sig), "ptrace(CONT)", tid)


def cont_to_syscall(tid: int, sig: int = 0) -> None:
    """PTRACE_SYSCALL: run to the next entry or exit of a system call."""
    _check(lib.seam_resume(PTRACE_SYSCALL, tid, sig), "ptrace(SYSCALL)", tid)


def step(tid: int) -> None:
    """PTRACE_SINGLESTEP. Only for tasks that may die with us: see native/seam/remote.c."""
    _check(lib.seam_resume(PTRACE_SINGLESTEP, tid, 0), "ptrace(SINGLESTEP)", tid)


def detach(tid: int, sig: int = 0) -> None:
    """PTRACE_DETACH of a stopped task."""
    _check(lib.seam_resume(PTRACE_DETACH, tid, sig), "ptrace(DETACH)", tid)


def event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG."""
    message = ffi.new("uint64_t *")
    _check(lib.seam_event_message(tid, message), "ptrace(GETEVENTMSG)", tid)
    return int(message[0])


def get_regs(tid: int) -> Regs:
    """General registers."""
    words = ffi.new("uint64_t[]", Regs.WORDS)
    _check(lib.seam_get_regs(tid, words, Regs.WORDS), "ptrace(GETREGS)", tid)
    return Regs.unpack(bytes(ffi.buffer(words)))


def set_regs(tid: int, regs: Regs) -> None:
    """General registers, fs_base and gs_base included."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    _check(lib.seam_set_regs(tid, words, Regs.WORDS), "ptrace(SETREGS)", tid)


def get_xstate(tid: int) -> bytes:
    """NT_X86_XSTATE: floating point and vector registers, in the standard XSAVE format."""
    room = ffi.new("char[]", XSTATE_ROOM)
    size = lib.seam_get_regset(tid, NT_X86_XSTATE, room, XSTATE_ROOM)
    return bytes(ffi.buffer(room, _check(size, "ptrace(GETREGSET)", tid)))


def set_xstate(tid: int, xstate: bytes) -> None:
    """NT_X86_XSTATE."""
    room = ffi.from_buffer(xstate)
    result = lib.seam_set_regset(tid, NT_X86_XSTATE, room, len(xstate))
    _check(result, "ptrace(SETREGSET)", tid)


def get_sigmask(tid: int) -> int:
    """Blocked signals; of a call with a temporary mask (ppoll), the one behind it."""
    mask = ffi.new("uint64_t *")
    _check(lib.seam_get_sigmask(tid, mask), "ptrace(GETSIGMASK)", tid)
    return int(mask[0])


def set_sigmask(tid: int, mask: int) -> None:
    """Blocked signals."""
    _check(lib.seam_set_sigmask(tid, mask), "ptrace(SETSIGMASK)", tid)


def pending_signals(tid: int, shared: bool) -> list[bytes]:
    """Queued siginfos (128 bytes each) of the thread, or of its process; none is consumed."""
    found: list[bytes] = []
    room = ffi.new("char[]", SIGINFO_SIZE * SIGINFO_BATCH)
    while True:
        count = _check(
            lib.seam_pending_signals(tid, shared, len(found), room, SIGINFO_BATCH),
            "ptrace(PEEKSIGINFO)",
            tid,
        )
        raw = bytes(ffi.buffer(room, count * SIGINFO_SIZE))
        found += [raw[i : i + SIGINFO_SIZE] for i in range(0, len(raw), SIGINFO_SIZE)]
        if count < SIGINFO_BATCH:
            return found


def get_siginfo(tid: int) -> bytes:
    """Siginfo of the present stop (128 bytes)."""
    room = ffi.new("char[]", SIGINFO_SIZE)
    _check(lib.seam_get_siginfo(tid, room), "ptrace(GETSIGINFO)", tid)
    return bytes(ffi.buffer(room))


def stop_signal(tid: int) -> int:
    """Of a task at its event stop: the signal of the job control stop it is in, 0 for none."""
    (number,) = struct.unpack_from("<i", get_siginfo(tid))
    return 0 if number == signal.SIGTRAP else int(number)


def rseq_config(tid: int) -> tuple[int, int, int, int]:
    """(address, size, signature, flags) of the restartable sequences area; address 0: none."""
    values = ffi.new("uint64_t[4]")
    _check(lib.seam_rseq_config(tid, values), "ptrace(GET_RSEQ_CONFIGURATION)", tid)
    return values[0], values[1], values[2], values[3]


def user_dispatch(tid: int) -> tuple[int, int, int, int]:
    """(mode, offset, length, selector) of syscall user dispatch. Linux 6.4."""
    values = ffi.new("uint64_t[4]")
    result = lib.seam_user_dispatch(tid, values)
    _check(result, "ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG)", tid)
    return values[0], values[1], values[2], values[3]


def seccomp_filters(tid: int) -> list[tuple[bytes, int]]:
    """(BPF instructions, flags) of each filter, the one installed first comes first.

    Raises Denied without CAP_SYS_ADMIN.
    """
    room = ffi.new("char[]", FILTER_ROOM)
    flags = ffi.new("uint64_t *")
    found: list[tuple[bytes, int]] = []
    while True:
        count = lib.seam_seccomp_filter(tid, len(found), room)
        if count == -errno.ENOENT or (count == -errno.EINVAL and not found):
            return found
        _check(count, "ptrace(SECCOMP_GET_FILTER)", tid)
        result = lib.seam_seccomp_flags(tid, len(found), flags)
        _check(result, "ptrace(SECCOMP_GET_METADATA)", tid)
        found.append((bytes(ffi.buffer(room, count * 8)), flags[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadFacts:
    """What the kernel tells of a stopped thread, without asking the thread itself."""

    tid: int
    regs: Regs
    mask: int
    dispatch: int
    """Mode of syscall user dispatch; 0 before Linux 6.4."""
    rseq: tuple[int, int, int, int]
    """As `rseq_config`; zeros before Linux 5.13."""
    rseq_cs: int
    """Address of the critical section that the rseq area names."""
    robust: tuple[int, int]
    affinity: bytes
    nice: int
    policy: int
    priority: int
    ioprio: int
    code: bytes
    """32 bytes before rip and two behind; empty when they cannot be read."""
    xstate: bytes


def ask_facts(tids: Sequence[int]) -> list[ThreadFacts]:
    """Of many threads in one go."""
    rows = ffi.new("struct seam_facts[]", len(tids))
    rooms = _new_uncleared("char[]", max(XSTATE_ROOM * len(tids), 1))
    for i, (row, tid) in enumerate(zip(rows, tids, strict=True)):
        row.tid, row.xstate, row.xstate_room = tid, rooms + XSTATE_ROOM * i, XSTATE_ROOM
    lib.seam_ask_facts(rows, len(tids))
    return [_facts_of(row) for row in rows]


def _facts_of(row: Any) -> ThreadFacts:  # noqa: ANN401
    _check(row.error, "reading a stopped thread", row.tid)
    rseq, robust = row.rseq, row.robust
    return ThreadFacts(
        tid=row.tid,
        regs=Regs.unpack(ffi.buffer(row.regs)[:]),
        mask=row.mask,
        dispatch=row.dispatch,
        rseq=(rseq[0], rseq[1], rseq[2], rseq[3]),
        rseq_cs=row.rseq_cs,
        robust=(robust[0], robust[1]),
        affinity=ffi.buffer(row.affinity, row.affinity_size)[:],
        nice=row.nice,
        policy=row.policy,
        priority=row.priority,
        ioprio=row.ioprio,
        code=ffi.buffer(row.code, row.code_size)[:],
        xstate=ffi.buffer(row.xstate, row.xstate_size)[:],
    )


def get_regs_of(tids: Sequence[int]) -> list[Regs | None]:
    """General registers of many threads; None for one that has none to show."""
    words = ffi.new("uint64_t[]", max(Regs.WORDS * len(tids), 1))
    results = ffi.new("int[]", max(len(tids), 1))
    lib.seam_get_regs_of(ffi.new("int[]", list(tids)), len(tids), words, results)
    size = 8 * Regs.WORDS
    raw = ffi.buffer(words)[:]
    return [
        None if results[i] < 0 else Regs.unpack(raw[size * i : size * (i + 1)])
        for i in range(len(tids))
    ]


def release(tid: int, regs: Regs | None) -> None:
    """Detach a task at its event stop; with ``regs``, unless a signal is about to be handled."""
    words = ffi.NULL if regs is None else ffi.from_buffer("uint64_t[]", regs.pack())
    _check(lib.seam_release(tid, words), "ptrace(DETACH)", tid)


def read_texts(paths: Sequence[str]) -> list[bytes | int]:
    """Files of /proc, each whole or its -errno, in one go."""
    names = [ffi.from_buffer(path.encode() + b"\0") for path in paths]
    pointers = ffi.new("char *[]", names)
    sizes = ffi.new("int64_t[]", max(len(paths), 1))
    done = ffi.new("size_t *")
    found: list[bytes | int] = []
    room_size = TEXT_ROOM + len(paths) * TYPICAL_TEXT
    while len(found) < len(paths):
        room = _new_uncleared("char[]", room_size)
        lib.seam_read_texts(pointers, len(paths), room, room_size, done, sizes)
        raw, at = memoryview(ffi.buffer(room)), 0
        for size in sizes[len(found) : done[0]]:
            found.append(bytes(raw[at : at + size]) if size >= 0 else size)
            at += max(size, 0)
        room_size *= 2
    return found


def remote_calls(
    tid: int, base: Regs, calls: Sequence[Sequence[int]], timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[int]:
    """Run system calls (number and six arguments each) with ``base`` for all other registers.

    The task must be stopped; it is left at the exit of the last call. Use `kernel.remote`.
    """
    words = array("Q", [value & (1 << 64) - 1 for call in calls for value in call])
    results = ffi.new("int64_t[]", len(calls))
    result = lib.seam_remote_calls(
        tid,
        ffi.from_buffer("uint64_t[]", base.pack()),
        ffi.from_buffer("uint64_t[]", words),
        len(calls),
        _ns(timeout_s),
        results,
    )
    _check(result, "an injected system call", tid)
    return list(results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowing:
    """A stopped task, its net and its calls, for `borrow_all`; see `kernel.remote`."""

    tid: int
    region: Address
    """Where ``content`` is written, and what was there is put back."""
    content: bytes
    armed: Regs
    base: Regs
    original: Regs
    mask: int
    calls: Sequence[Sequence[int]]
    answer_at: Address
    answer_size: int


def arm(tid: int, regs: Regs) -> None:
    """Registers of a net, and all signals blocked; see `kernel.remote`, steps 2 and 3."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    _check(lib.seam_arm(tid, words), "ptrace(SETREGS)", tid)


def disarm(tid: int, mask: int, regs: Regs) -> None:
    """Mask and registers of before; see `kernel.remote`, steps 6 and 7."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    _check(lib.seam_disarm(tid, mask, words), "ptrace(SETREGS)", tid)


def borrow_all(
    tasks: Sequence[Borrowing], timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[tuple[list[int], bytes]]:
    """Run each task's calls, all tasks side by side: (results, bytes at ``answer_at``).

    All of them stand as before at the end, whatever failed; then the first error is raised.
    """
    rows = ffi.new("struct seam_borrow[]", len(tasks))
    keep = [_fill_row(row, task) for row, task in zip(rows, tasks, strict=True)]
    lib.seam_borrow_all(rows, len(tasks), _ns(timeout_s))
    for row in rows:
        _check(row.error, "an injected system call", row.tid)
    return [
        (ffi.unpack(row.results, row.call_count), ffi.buffer(row.answer, row.answer_size)[:])
        for row, _ in zip(rows, keep, strict=True)
    ]


def _fill_row(row: Any, task: Borrowing) -> list[Any]:  # noqa: ANN401
    """Fill a struct seam_borrow; what is returned has to live as long as it."""
    words = array("Q", [value & (1 << 64) - 1 for call in task.calls for value in call])
    size = len(task.content)
    row.tid, row.region, row.size, row.mask = task.tid, task.region, size, task.mask
    row.net = content = ffi.from_buffer(task.content)
    row.saved = saved = ffi.new("char[]", size)
    row.armed = armed = ffi.from_buffer("uint64_t[]", task.armed.pack())
    row.base = base = ffi.from_buffer("uint64_t[]", task.base.pack())
    row.original = original = ffi.from_buffer("uint64_t[]", task.original.pack())
    row.calls = calls = ffi.from_buffer("uint64_t[]", words)
    row.call_count = len(task.calls)
    row.results = results = ffi.new("int64_t[]", max(len(task.calls), 1))
    row.answer_at, row.answer_size = task.answer_at, task.answer_size
    row.answer = answer = ffi.new("char[]", max(task.answer_size, 1))
    return [content, saved, armed, base, original, calls, results, answer]


# ---- questions about another task


def robust_list(tid: int) -> tuple[int, int]:
    """(head, length) of the robust futex list."""
    values = ffi.new("uint64_t[2]")
    _check(lib.seam_robust_list(tid, values, values + 1), "get_robust_list", tid)
    return values[0], values[1]


def ioprio_get(tid: int) -> int:
    """IO priority of a thread (ioprio_get(2))."""
    return _check(lib.seam_ioprio(tid), "ioprio_get", tid)


def pidfd_open(pid: int) -> int:
    """A pidfd, close-on-exec."""
    return _check(lib.seam_pidfd_open(pid), "pidfd_open", pid)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another task's descriptor, close-on-exec."""
    result = lib.seam_pidfd_getfd(pidfd, fd)
    if result < 0:
        raise error_for(result, "pidfd_getfd", f"fd {fd}")
    return result


def kcmp(pid1: int, pid2: int, kind: int, index1: int, index2: int) -> int:
    """Order of two kernel objects: 0 equal, 1 less, 2 greater, 3 not comparable."""
    result = lib.seam_kcmp(pid1, pid2, kind, index1, index2)
    if result < 0:
        raise error_for(result, "kcmp", f"tasks {pid1} and {pid2}")
    return result


def int_options(fd: int, wanted: Sequence[tuple[int, int]], subject: str) -> list[int | None]:
    """Values of a socket's int options, given as (level, option); None for an unknown one."""
    names = ffi.new("int[]", [word for one in wanted for word in one])
    values = ffi.new("int[]", max(len(wanted), 1))
    sizes = ffi.new("int[]", max(len(wanted), 1))
    lib.seam_int_options(fd, names, len(wanted), values, sizes)
    found: list[int | None] = []
    for (level, option), value, size in zip(wanted, values, sizes, strict=False):
        if size < 0 and -size not in UNKNOWN_OPTION:
            raise error_for(size, f"getsockopt({level}, {option})", subject)
        found.append(None if size < 0 else value)
    return found


# ---- memory


def read_memory(pid: int, address: Address, size: int) -> bytes:
    """Memory of a task, whole or KernelError(EFAULT)."""
    room = bytearray(size)
    read_memory_into(pid, address, room)
    return bytes(room)


def read_memory_into(pid: int, address: Address, buffer: bytearray | memoryview) -> None:
    """As `read_memory`, into room of the caller's."""
    target = ffi.from_buffer(buffer, require_writable=True)
    result = lib.seam_read_memory(pid, address, target, len(target))
    if result < 0:
        raise _memory_error(result, "process_vm_readv", pid, address, len(target))


def write_memory(pid: int, address: Address, data: bytes | bytearray | memoryview) -> None:
    """Write memory of a task; what is not writable goes through /proc/PID/mem."""
    source = ffi.from_buffer(data)
    result = lib.seam_write_memory(pid, address, source, len(source))
    if result < 0:
        raise _memory_error(result, "process_vm_writev", pid, address, len(source))


def _memory_error(result: int, call: str, pid: int, address: int, size: int) -> Error:
    return error_for(result, call, f"task {pid}, {size} bytes at {address:#x}")


def scan_pages(  # noqa: PLR0913 - the fields of struct pm_scan_arg
    pagemap_fd: int,
    start: Address,
    end: Address,
    *,
    inverted: int = 0,
    required: int = 0,
    any_of: int = 0,
    returned: int,
    flags: int = 0,
) -> "array[int]":
    """PAGEMAP_SCAN of the whole range: (start, end, categories) triples, flat."""
    position = ffi.new("uint64_t *", start)
    masks = ffi.new("uint64_t[]", [inverted, required, any_of, returned])
    room = _new_uncleared("uint64_t[]", 3 * SCAN_ROOM)
    found = array("Q")
    while position[0] < end:
        count = lib.seam_scan_pages(pagemap_fd, position, end, masks, flags, room, SCAN_ROOM)
        if count < 0:
            raise error_for(count, "ioctl(PAGEMAP_SCAN)", f"{start:#x}-{end:#x}")
        found.frombytes(ffi.buffer(room, count * 24))
    return found


class Buffer:
    """Anonymous room of our own, in huge pages where there are any; freed by `close`."""

    __slots__ = ("_start", "size")

    def __init__(self, size: int) -> None:
        pointer = ffi.new("void **")
        result = lib.seam_buffer_map(size, pointer)
        if result < 0:
            raise error_for(result, "mmap", f"buffer of {size} bytes")
        self._start = pointer[0]
        self.size = size

    def populate(self, start: int, size: int, threads: int = 2) -> None:
        """Have the pages of a part ready."""
        where = ffi.cast("char *", self._start) + start
        result = lib.seam_buffer_populate(where, size, threads)
        if result < 0:
            raise error_for(result, "madvise", f"buffer of {size} bytes")

    def capture_runs(
        self, pid: int, runs: "array[int]", start: int, threads: int = 2, *, forked: bool = False
    ) -> int:
        """Copy memory of a task, (address, length) pairs, to ``start``; returns the bytes.

        ``forked``: pages that are shared copy-on-write stay so; takes twice the time.
        """
        where = ffi.cast("char *", self._start) + start
        words = ffi.from_buffer("uint64_t[]", runs)
        take = lib.seam_capture_forked if forked else lib.seam_capture_runs
        result = take(pid, words, len(runs) // 2, where, threads)
        if result < 0:
            call = "read of mem" if forked else "process_vm_readv"
            raise error_for(result, call, f"task {pid}, {len(runs) // 2} runs")
        return result

    def write_file(self, fd: int, start: int, size: int, offset: int) -> int:
        """Write a part to a file, whole."""
        where = ffi.cast("char *", self._start) + start
        result = lib.seam_write_file(fd, where, size, offset)
        if result < 0:
            raise error_for(result, "pwrite", f"{size} bytes at {offset}")
        return result

    def same_pages(self, fd: int, start: int, runs: "array[int]", same: bytearray) -> None:
        """Set to 1 what of ``same`` stands for a page, from ``start`` on, that a file has.

        ``runs`` are (offset from ``start``, length, offset in the file) triples.
        """
        where = ffi.cast("char *", self._start) + start
        words, marks = ffi.from_buffer("uint64_t[]", runs), ffi.from_buffer(same)
        result = lib.seam_same_pages(where, fd, words, len(runs) // 3, marks)
        if result < 0:
            raise error_for(result, "pread", f"{len(runs) // 3} runs of pages")

    def digest(self, start: int, size: int, threads: int = 2) -> str:
        """Digest of a part; see `digest_file`."""
        return _digest(ffi.cast("char *", self._start) + start, -1, size, threads)

    def view(self, start: int, size: int) -> memoryview:
        """The bytes, not copied; only while the buffer is open."""
        return memoryview(ffi.buffer(ffi.cast("char *", self._start) + start, size))

    def close(self) -> None:
        """Give the room back."""
        if self._start:
            lib.seam_buffer_unmap(self._start, self.size)
        self._start = ffi.NULL
        self.size = 0


def punch(fd: int, offset: int, size: int) -> None:
    """Make a hole in a file that is open for writing; its length stays."""
    result = lib.seam_punch(fd, offset, size)
    if result < 0:
        raise error_for(result, "fallocate", f"{size} bytes at {offset}")


def fill_runs(pid: int, runs: "array[int]", fd: int, threads: int = 2) -> int:
    """Write parts of a file to a task's memory: (address, length, offset) triples."""
    words = ffi.from_buffer("uint64_t[]", runs)
    result = lib.seam_fill_runs(pid, words, len(runs) // 3, fd, threads)
    if result < 0:
        raise error_for(result, "process_vm_writev", f"task {pid}, {len(runs) // 3} runs")
    return result


def fill_checked(pid: int, runs: "array[int]", fd: int, threads: int = 2) -> str:
    """As `fill_runs`, runs by offset; reads the whole file and returns its digest."""
    words = ffi.from_buffer("uint64_t[]", runs)
    digest = ffi.new("uint64_t *")
    size = os.fstat(fd).st_size
    result = lib.seam_fill_checked(pid, words, len(runs) // 3, fd, size, threads, digest)
    if result < 0:
        raise error_for(result, "process_vm_writev", f"task {pid}, {len(runs) // 3} runs")
    return f"{digest[0]:016x}"


def digest_file(fd: int, threads: int = 2) -> str:
    """XXH64 of the XXH64 of each 256 KiB of a file, in hexadecimal."""
    return _digest(ffi.NULL, fd, os.fstat(fd).st_size, threads)


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0."""
    return int(lib.seam_xxh64(ffi.from_buffer(data), len(data)))


def _digest(buffer: Any, fd: int, size: int, threads: int) -> str:  # noqa: ANN401
    digest = ffi.new("uint64_t *")
    result = lib.seam_digest(buffer, fd, size, threads, digest)
    if result < 0:
        raise error_for(result, "pread", f"{size} bytes of descriptor {fd}")
    return f"{digest[0]:016x}"


def compare_runs(pid: int, runs: "array[int]", fd: int) -> "array[int]":
    """Addresses of pages that differ from the file, in the order of the runs (triples)."""
    words = ffi.from_buffer("uint64_t[]", runs)
    pages = sum((size + 4095) // 4096 for size in runs[1::3])
    different = ffi.new("uint64_t[]", max(pages, 1))
    count = lib.seam_compare_runs(pid, words, len(runs) // 3, fd, different, pages)
    if count < 0:
        raise error_for(count, "read of mem", f"task {pid}, {len(runs) // 3} runs")
    found = array("Q")
    found.frombytes(ffi.buffer(different, count * 8))
    return found


# ---- a new tree


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
) -> int:
    """Clone a child (with pid ``set_tid`` if not 0) that executes ``path`` at once.

    Only its standard descriptors stay open, and ``kept`` as 3, 4, ... With ``dies_with_us`` it
    has a parent-death signal.
    Raises KernelError named clone3 or execve.
    """
    keep = [ffi.new("char[]", item) for item in (path, *argv, *env)]
    arguments = ffi.new("char *[]", [*keep[1 : 1 + len(argv)], ffi.NULL])
    environment = ffi.new("char *[]", [*keep[1 + len(argv) :], ffi.NULL])
    spawn = ffi.new("struct seam_spawn *")
    spawn.path, spawn.argv, spawn.envp = keep[0], arguments, environment
    spawn.set_tid, spawn.flags, spawn.new_session = set_tid, flags, new_session
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


# ---- the processor

LAST_COMPONENT = 32
LEGACY_FEATURES = 3


def xstate_components() -> list[tuple[int, int, int]]:
    """(number, offset, size) of every XSAVE component that the kernel has enabled."""
    features = ffi.new("uint64_t *")
    lib.seam_xsave_size(features)
    found: list[tuple[int, int, int]] = []
    offset, size = ffi.new("unsigned int *"), ffi.new("unsigned int *")
    for number in range(2, LAST_COMPONENT):
        if features[0] >> number & 1 and not lib.seam_xsave_component(number, offset, size):
            found.append((number, offset[0], size[0]))  # noqa: PERF401 - three calls in one
    return found


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Registers eax, ebx, ecx, edx of the CPUID instruction; zeros for an unknown leaf."""
    answer = ffi.new("unsigned int[4]")
    lib.seam_cpuid(leaf, subleaf, answer)
    return answer[0], answer[1], answer[2], answer[3]


def xstate_enabled() -> tuple[int, int]:
    """(features that the kernel has enabled, bytes of their XSAVE area)."""
    features = ffi.new("uint64_t *")
    size: int = lib.seam_xsave_size(features)
    return features[0], size


def xstate_template() -> bytes:
    """An NT_X86_XSTATE area of this processor, everything in its initial state."""
    features = ffi.new("uint64_t *")
    area = bytearray(max(lib.seam_xsave_size(features), 576))
    struct.pack_into("<H", area, 0, 0x37F)
    struct.pack_into("<I", area, 24, 0x1F80)
    struct.pack_into("<Q", area, 464, features[0])
    return bytes(area)
