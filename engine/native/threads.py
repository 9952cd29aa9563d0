# SPDX-License-Identifier: Apache-2.0
"""State of a stopped thread, as its tracer reads and sets it."""

import errno
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torpor.engine.kernel.arch.x86_64 import Regs
from torpor.engine.native.seam import address_of, check, ffi, lib, new_uncleared

NT_X86_XSTATE = 0x202
XSTATE_ROOM = 16384
SIGINFO_SIZE = 128
SIGINFO_BATCH = 64
FILTER_ROOM = 4096 * 8
# struct seam_facts
ROW = struct.Struct("<2i 56xQ16xQ16xQ8x3Q8xQ56x 8xQ32xQ16x1024x 8xi8xi34s2x 4xi12x")
TID, ROOM, ROOM_AT = struct.Struct("<i"), struct.Struct("<2i4xQ"), 1380
RIP = 16
FACTS_BYTES = ROW.size


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


class Stand(NamedTuple):
    """What of `ThreadFacts` tells how to go on with a thread; ``code`` is never shorter."""

    tid: int
    error: int
    r10: int
    rax: int
    rsi: int
    orig_rax: int
    rip: int
    cs: int
    rsp: int
    dispatch: int
    rseq_cs: int
    policy: int
    code_size: int
    code: bytes
    xstate_size: int


class FactRows:
    """Facts of many threads, as C has them. Nothing is unpacked that is not asked for."""

    def __init__(self, tids: Sequence[int]) -> None:
        self.tids, self.count = tids, len(tids)
        self._rows = ffi.new("struct seam_facts[]", max(self.count, 1))
        self._rooms = new_uncleared("char[]", max(XSTATE_ROOM * self.count, 1))
        room = address_of(self._rooms)
        raw = memoryview(ffi.buffer(self._rows))
        for i, tid in enumerate(tids):
            at = ROW.size * i
            TID.pack_into(raw, at, tid)
            ROOM.pack_into(raw, at + ROOM_AT, XSTATE_ROOM, 0, room + XSTATE_ROOM * i)
        self._raw = raw[: ROW.size * self.count]
        lib.seam_ask_facts(self._rows, self.count)
        self.address = address_of(self._rows)
        """Of the first; they are ``ROW.size`` bytes apart."""

    def stands(self) -> "list[Stand]":
        """What has to be known of each to go on. Raises for one that could not be asked."""
        found = list(map(Stand._make, ROW.iter_unpack(self._raw)))
        for one in found:
            check(one.error, "reading a stopped thread", one.tid)
        return found

    def move(self, number: int, rip: int) -> None:
        """Let a thread stand elsewhere: in what is known of it here."""
        self._rows[number].regs[RIP] = rip

    def facts(self, number: int) -> ThreadFacts:
        """All of one thread."""
        return _facts_of(self._rows[number])


def ask_facts(tids: Sequence[int]) -> list[ThreadFacts]:
    """Of many threads in one go."""
    rows = FactRows(tids)
    return [rows.facts(i) for i in range(rows.count)]


def get_regs(tid: int) -> Regs:
    """General registers."""
    words = ffi.new("uint64_t[]", Regs.WORDS)
    check(lib.seam_get_regs(tid, words, Regs.WORDS), "ptrace(GETREGS)", tid)
    return Regs.unpack(bytes(ffi.buffer(words)))


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


def set_regs(tid: int, regs: Regs) -> None:
    """General registers, fs_base and gs_base included."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    check(lib.seam_set_regs(tid, words, Regs.WORDS), "ptrace(SETREGS)", tid)


def get_xstate(tid: int) -> bytes:
    """NT_X86_XSTATE: floating point and vector registers, in the standard XSAVE format."""
    room = ffi.new("char[]", XSTATE_ROOM)
    size = lib.seam_get_regset(tid, NT_X86_XSTATE, room, XSTATE_ROOM)
    return bytes(ffi.buffer(room, check(size, "ptrace(GETREGSET)", tid)))


def set_xstate(tid: int, xstate: bytes) -> None:
    """NT_X86_XSTATE."""
    room = ffi.from_buffer(xstate)
    result = lib.seam_set_regset(tid, NT_X86_XSTATE, room, len(xstate))
    check(result, "ptrace(SETREGSET)", tid)


def get_sigmask(tid: int) -> int:
    """Blocked signals; of a call with a temporary mask (ppoll), the one behind it."""
    mask = ffi.new("uint64_t *")
    check(lib.seam_get_sigmask(tid, mask), "ptrace(GETSIGMASK)", tid)
    return int(mask[0])


def set_sigmask(tid: int, mask: int) -> None:
    """Blocked signals."""
    check(lib.seam_set_sigmask(tid, mask), "ptrace(SETSIGMASK)", tid)


def pending_signals(tid: int, shared: bool) -> list[bytes]:
    """Queued siginfos (128 bytes each) of the thread, or of its process; none is consumed."""
    found: list[bytes] = []
    room = ffi.new("char[]", SIGINFO_SIZE * SIGINFO_BATCH)
    while True:
        count = check(
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
    check(lib.seam_get_siginfo(tid, room), "ptrace(GETSIGINFO)", tid)
    return bytes(ffi.buffer(room))


def stop_signal(tid: int) -> int:
    """Of a task at its event stop: the signal of the job control stop it is in, 0 for none."""
    (number,) = struct.unpack_from("<i", get_siginfo(tid))
    return 0 if number == signal.SIGTRAP else int(number)


def rseq_config(tid: int) -> tuple[int, int, int, int]:
    """(address, size, signature, flags) of the restartable sequences area; address 0: none."""
    values = ffi.new("uint64_t[4]")
    check(lib.seam_rseq_config(tid, values), "ptrace(GET_RSEQ_CONFIGURATION)", tid)
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
        check(count, "ptrace(SECCOMP_GET_FILTER)", tid)
        result = lib.seam_seccomp_flags(tid, len(found), flags)
        check(result, "ptrace(SECCOMP_GET_METADATA)", tid)
        found.append((bytes(ffi.buffer(room, count * 8)), flags[0]))


def robust_list(tid: int) -> tuple[int, int]:
    """(head, length) of the robust futex list."""
    values = ffi.new("uint64_t[2]")
    check(lib.seam_robust_list(tid, values, values + 1), "get_robust_list", tid)
    return values[0], values[1]


def ioprio_get(tid: int) -> int:
    """IO priority of a thread (ioprio_get(2))."""
    return check(lib.seam_ioprio(tid), "ioprio_get", tid)


def _facts_of(row: Any) -> ThreadFacts:  # noqa: ANN401
    check(row.error, "reading a stopped thread", row.tid)
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
