# SPDX-License-Identifier: Apache-2.0
"""The arena: where the executor and its programs lie in a task while it is restored.

One mapping in a hole that is free in the old layout and in the new one: the executor's code
(readable and executable, written through /proc/PID/mem), then room for a program, for parked
special areas, and a small stack. Threads of a task use it one after another. It is unmapped
as the last thing before the task gets its own registers.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from signal import SIGTRAP

from torpor.engine import blobs, native
from torpor.engine.errors import Bug, Error, KernelError, Refused
from torpor.engine.kernel.arch.x86_64 import MACHINE, SYSCALL_INSN, Regs, syscall_number
from torpor.engine.kernel.remote import Remote
from torpor.engine.memory.areas import TASK_SIZE
from torpor.engine.program import encode as encoder
from torpor.engine.program.ops import Arg, Data, Expect, Made, Op, Program, Slot

PAGE = 4096
CODE_BYTES = PAGE
PARK_BYTES = 64 * PAGE
STACK_BYTES = 4 * PAGE
SCRATCH_BYTES = 4 * PAGE
PROGRAM_BYTES = 1 << 20
OPS_PER_RUN = 4096
MOST_OF_AN_OP = encoder.OP.size + 6 * 8
"""Bytes, without the content of data; some of that is aligned."""
LONGEST_RUN_S = 120.0
NO_HELPERS: Mapping[int, int] = {}
LOWEST = 0x10000000
PROT_RX, PROT_RW = 5, 3
MAP_ARENA = 0x22 | 0x100000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
MASK64 = (1 << 64) - 1
RESULT = Slot("result")
EVENT_STOP = 128


@cache
def executor_code() -> bytes:
    """The executor's bytes, built by native/build.py."""
    return blobs.program(f"executor-{MACHINE}.bin").read_bytes()


def find_hole(used: Sequence[tuple[int, int]], size_bytes: int) -> int:
    """Lowest 2 MiB aligned address with that much room between the used ranges."""
    base = LOWEST
    for start, end in sorted(used):
        if start >= base + size_bytes:
            break
        if end > base:
            base = (end + 0x1FFFFF) & ~0x1FFFFF
    if base + size_bytes > TASK_SIZE:
        raise Refused(
            "there is no room left in the address space for the restore program",
            remedy="report it with the image's memory map (`torpor show`)",
        )
    return base


def step_syscall(tid: int, address: int, name: str, *args: int) -> int:
    """One system call in a stopped task of ours, by single step; result or -errno.

    ``address`` is that of a `syscall` instruction. Fork and exec events are left to the caller:
    use `spawn` for those calls.
    """
    regs = native.get_regs(tid).copy()
    _set_call(regs, address, name, args)
    native.set_regs(tid, regs)
    native.step(tid)
    status = native.wait_stop(tid)
    if status >> 8 != SIGTRAP:
        raise Bug(f"{name} ended in stop {status:#x}", subject=f"pid {tid}")
    return _signed(native.get_regs(tid).rax)


def _set_call(regs: Regs, address: int, name: str, args: Sequence[int]) -> None:
    regs.rip, regs.rax, regs.orig_rax = address, syscall_number(name), MASK64
    padded = [a & MASK64 for a in args] + [0] * (6 - len(args))
    regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = padded


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def check(result: int, name: str, subject: str, remedy: str = "") -> int:
    """Raise for a negative result."""
    if result < 0:
        raise KernelError(f"{name} failed", errno=-result, subject=subject, remedy=remedy)
    return result


def find_syscall(tid: int, start: int, end: int) -> int:
    """Address of a `syscall` instruction in a range of a task's memory."""
    at = native.read_memory(tid, start, end - start).find(SYSCALL_INSN)
    if at < 0:
        raise Bug("the vDSO holds no system call instruction", subject=f"pid {tid}")
    return start + at


@dataclass(slots=True, kw_only=True)
class Arena:
    """The mapping in one address space."""

    base: int
    program_bytes: int = PROGRAM_BYTES
    made: Made = field(default_factory=Made)

    @property
    def size_bytes(self) -> int:
        """Whole length."""
        return CODE_BYTES + self.program_bytes + PARK_BYTES + STACK_BYTES

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.base + self.size_bytes

    @property
    def park(self) -> int:
        """Room for the kernel's special areas while the rest is unmapped."""
        return self.base + CODE_BYTES + self.program_bytes

    @property
    def scratch(self) -> int:
        """Room for the arguments of a single call, behind any program."""
        return self.park - SCRATCH_BYTES

    def map_into(self, tid: int, syscall_address: int, subject: str) -> None:
        """Map it and write the executor."""
        for start, size, prot in (
            (self.base, CODE_BYTES, PROT_RX),
            (self.base + CODE_BYTES, self.size_bytes - CODE_BYTES, PROT_RW),
        ):
            result = step_syscall(
                tid, syscall_address, "mmap", start, size, prot, MAP_ARENA, MASK64, 0
            )
            check(result, "mmap of the arena", subject)
            if result != start:
                raise Bug("the arena is not where it was asked for", subject=subject)
        native.write_memory(tid, self.base, executor_code())

    def call(self, tid: int, name: str, *args: int, undo: tuple[Op, ...] = ()) -> int:
        """One system call by the executor; result (for ``undo`` in the slot RESULT) or -errno."""
        op = Op(call=name, args=args, expect=Expect.ANY, yields=RESULT, undo=undo, subject=name)
        program = Program(name, [op])
        values: dict[str, int] = {}
        self._encoded(tid, program, "", values).run()
        return _signed(values[RESULT.name])

    def take_back(self, tid: int) -> None:
        """Undo what has been made outside of the task; what cannot be undone stays."""
        for ops, values in self.made.undo():
            with suppress(Error):
                self._encoded(tid, Program("undo", ops), "", dict(values)).run()

    def run(
        self, tid: int, program: Program, subject: str, helpers: Mapping[int, int] = NO_HELPERS
    ) -> None:
        """Run a program to its end, in pieces when it is long.

        ``helpers`` (pid inside → pid as seen from here) are forks that run what is theirs.

        Raises:
            KernelError: an operation failed; the message names it.
        """
        for running in self.pieces(tid, program, subject, helpers):
            running.run()

    def pieces(
        self, tid: int, program: Program, subject: str, helpers: Mapping[int, int] = NO_HELPERS
    ) -> Iterator["Running"]:
        """The parts of what `run` does, to be run in their order; a part waits for the last one."""
        values: dict[str, int] = {}
        last: Running | None = None
        for piece in self._cut(program):
            if last is not None:
                last.finish()
            by = helpers.get(piece.ops[0].by, tid)
            last = self._encoded(by, piece, subject, values)
            yield last

    def _cut(self, program: Program) -> Iterator[Program]:
        """Parts that have room here, each run by one task. None of a program without operations."""
        if self._is_one_piece(program):
            yield program
            return
        piece: list[Op] = []
        known: set[Data] = set()
        size = 0
        for op in program.ops:
            data = [arg for arg in op.args if isinstance(arg, Data)]
            need = sum(len(one.content) for one in data) + MOST_OF_AN_OP
            full = len(piece) >= OPS_PER_RUN or size + need > self.program_bytes // 2
            # What a call has filled in is read by the next ones.
            full &= known.isdisjoint(data)
            if piece and (full or piece[0].by != op.by):
                yield Program(program.name, piece)
                piece, size, known = [], 0, set()
            piece.append(op)
            known.update(data)
            size += need
        if piece:
            yield Program(program.name, piece)

    def _is_one_piece(self, program: Program) -> bool:
        """As nearly all are."""
        ops = program.ops
        if not 0 < len(ops) <= OPS_PER_RUN or any(op.by for op in ops):
            return False
        data = sum([len(arg.content) for op in ops for arg in op.args if type(arg) is Data])
        return data + MOST_OF_AN_OP * len(ops) <= self.program_bytes // 2

    def _encoded(
        self, tid: int, program: Program, subject: str, values: dict[str, int]
    ) -> "Running":
        encoded = encoder.encode(program, self.base + CODE_BYTES, tuple(values))
        size = len(encoded.content)
        if size > self.program_bytes - SCRATCH_BYTES:
            raise Refused(
                "an object is too large for the restore program",
                subject=subject,
                cause=f"{size} bytes in one operation",
            )
        return Running(arena=self, tid=tid, encoded=encoded, subject=subject, values=values)

    def leave(self, tid: int, syscall_address: int, subject: str, calls: Sequence[Op]) -> None:
        """Take it away again, after some last calls."""
        gone = Op(call="munmap", args=(self.base, self.size_bytes), subject="restore program")
        self.without_traps(tid, syscall_address, subject, [*calls, gone])

    def without_traps(
        self, tid: int, syscall_address: int, subject: str, calls: Sequence[Op]
    ) -> None:
        """System calls with all signals blocked, by stops that leave SIGTRAP alone.

        The forced SIGTRAP of a step, or of the executor's end, takes one that is pending with it,
        and resets an action that ignores it. At most one argument of each call is data.
        """
        with Remote.plain(tid, syscall_address, self.scratch, SCRATCH_BYTES) as remote:
            for op in calls:
                placed = [self._placed(remote, arg) for arg in op.args]
                check(remote.try_call(op.call, *placed), f"{op.call} at the end", subject)

    def _placed(self, remote: Remote, arg: Arg) -> int:
        if isinstance(arg, Slot):
            raise Bug("a last call cannot have the result of another")
        if isinstance(arg, int):
            return arg
        remote.write(self.scratch, arg.content)
        return self.scratch


@dataclass(slots=True, kw_only=True)
class Running:
    """A piece of a program; `start` and `finish`, or both by `run`."""

    arena: Arena
    tid: int
    encoded: encoder.Encoded
    subject: str
    values: dict[str, int]
    """Slots of the pieces before it, and, when it has run, its own."""
    is_under_way: bool = False

    def run(self) -> None:
        """To its end. Raises as `finish`."""
        self.start()
        self.finish()

    def start(self) -> None:
        """The thread runs, as long as it takes."""
        base, header = self.arena.base, self.arena.base + CODE_BYTES
        content = self.encoded.content
        if self.values:
            filled, slots = bytearray(content), self.encoded.slots
            for name, value in self.values.items():
                at = encoder.HEADER.size + 8 * slots[name]
                struct.pack_into("<Q", filled, at, value & MASK64)
            content = bytes(filled)
        native.write_memory(self.tid, header, content)
        regs = native.get_regs(self.tid).copy()
        regs.rip, regs.rdi, regs.rsp = base, header, self.arena.end - 64
        regs.orig_rax = MASK64
        native.set_regs(self.tid, regs)
        native.cont(self.tid)
        self.is_under_way = True

    def finish(self) -> None:
        """Wait for its end, and read its slots; nothing when that has been done.

        Raises:
            KernelError: an operation failed; the message names it.
        """
        if not self.is_under_way:
            return
        self.is_under_way = False
        status = native.wait_stop(self.tid, LONGEST_RUN_S)
        while status >> 8 == SIGTRAP | EVENT_STOP << 8:  # somebody has sent SIGCONT
            native.cont(self.tid)
            status = native.wait_stop(self.tid, LONGEST_RUN_S)
        program, slots = self.encoded.program, self.encoded.slots
        if status >> 8 != SIGTRAP:
            raise _stopped(status, self.subject, program.name)
        size = encoder.HEADER.size + 8 * len(slots)
        raw = native.read_memory(self.tid, self.arena.base + CODE_BYTES, size)
        index, result = encoder.outcome(raw)
        for name, at in slots.items():
            (self.values[name],) = struct.unpack_from("<Q", raw, encoder.HEADER.size + 8 * at)
        self.arena.made.note(program.ops[: index if index >= 0 else None], self.values)
        if index >= 0:
            raise self.encoded.failure(index, result, self.subject)


def _stopped(status: int, subject: str, name: str) -> Error:
    signal = status >> 8 & 0xFF
    cause = f"signal {signal}"
    if signal == 31:
        cause = "seccomp forbids one of its system calls (SIGSYS)"
    return KernelError(
        f"program {name} was stopped",
        errno=0,
        subject=subject,
        cause=cause,
        remedy="report it with `torpor plan`",
    )
