# SPDX-License-Identifier: Apache-2.0
"""x86-64: registers, system call numbers, and the frame that rt_sigreturn takes back.

An `aarch64.py` beside this module would give the same names.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter
from typing import ClassVar

from torpor.engine.errors import Bug
from torpor.engine.kernel.arch.nr_x86_64 import NR

__all__ = ["NR", "Regs", "restart_registers", "sigframe", "syscall_number", "xstate_for_sigframe"]

MACHINE = "x86_64"
SYSCALL_INSN = b"\x0f\x05"
SIGRETURN_SEQUENCES = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",  # mov $15,%rax; syscall
    b"\xb8\x0f\x00\x00\x00\x0f\x05",  # mov $15,%eax; syscall
)
USER_CS_64 = 0x33
WORD_MASK = (1 << 64) - 1

# include/linux/errno.h: results which never reach a program
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
EINTR = 4
TIMER_ABSTIME = 1

RESTART_BLOCK_CALLS = frozenset(
    NR[name] for name in ("nanosleep", "clock_nanosleep", "poll", "futex")
)
"""Calls that the kernel restarts as restart_syscall, which hides their number."""
LOAD_NUMBER = b"\xb8"  # mov $imm32,%eax
CODE_BEFORE, CODE_AFTER = 32, 2
CALL_MASK = (1 << 32) - 1
"""A system call takes its number from the lower half of rax."""

_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
    "es", "fs", "gs",
)  # fmt: skip
R10, RAX, RDX, RSI, RDI, ORIG_RAX, RIP = map(
    _NAMES.index, ("r10", "rax", "rdx", "rsi", "rdi", "orig_rax", "rip")
)
RegEdit = tuple[int, int, int]
_REGS = struct.Struct("<27Q")
_values_of = attrgetter(*_NAMES)

# arch/x86/include/uapi/asm/sigcontext.h and ucontext.h
FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2 = 0x46505853, 0x46505845
XSAVE_SW_RESERVED, XSAVE_HEADER_END = 464, 576
UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS = 1, 2, 4
SS_INVALID = 4
SIGFRAME_HEAD = struct.Struct("<QQQQiiQ18Q4H4QQ64xQ128x")
SIGFRAME_RSP_OFFSET = 8
"""rsp at rt_sigreturn, counted from the start of the frame."""
FRAME_REGISTERS = (
    *((_NAMES.index(name), 40 + 8 * i, 8) for i, name in enumerate((
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx",
        "rax", "rcx", "rsp", "rip", "eflags",
    ), 1)),
    (_NAMES.index("cs"), 192, 2),
    (_NAMES.index("ss"), 198, 2),
)  # fmt: skip
"""Register, where it is in a frame, and how many bytes of it."""
FRAME_MASK_AT = 304
FPSTATE_ALIGN = 64


class Regs:
    """General registers, in the order of struct user_regs_struct. Unsigned 64-bit values."""

    __slots__ = _NAMES
    WORDS: ClassVar[int] = 27

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def __init__(self, **values: int) -> None:
        for name in _NAMES:
            setattr(self, name, values.pop(name, 0))
        if values:
            raise TypeError(f"no such registers: {', '.join(values)}")

    @classmethod
    def unpack(cls, raw: bytes) -> "Regs":
        """From the bytes of struct user_regs_struct."""
        made = cls.__new__(cls)
        (
            made.r15, made.r14, made.r13, made.r12, made.rbp, made.rbx, made.r11, made.r10,
            made.r9, made.r8, made.rax, made.rcx, made.rdx, made.rsi, made.rdi, made.orig_rax,
            made.rip, made.cs, made.eflags, made.rsp, made.ss, made.fs_base, made.gs_base,
            made.ds, made.es, made.fs, made.gs,
        ) = _REGS.unpack(raw)  # fmt: skip
        return made

    def pack(self) -> bytes:
        """As struct user_regs_struct; values are cut to 64 bits."""
        values = _values_of(self)
        try:
            return _REGS.pack(*values)
        except struct.error:  # a negative or longer value
            return _REGS.pack(*(value & WORD_MASK for value in values))

    def copy(self) -> "Regs":
        """An independent copy."""
        return Regs.unpack(self.pack())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regs) and self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Regs(" + ", ".join(f"{n}={getattr(self, n):#x}" for n in _NAMES) + ")"

    @property
    def result(self) -> int:
        """Rax as a system call's result: negative is -errno."""
        return signed(self.rax)

    @property
    def in_syscall(self) -> bool:
        """Whether the task stopped inside (or at the end of) a system call."""
        return signed(self.orig_rax) >= 0


def signed(word: int) -> int:
    """A 64-bit word read as a signed number."""
    return word - (1 << 64) if word >> 63 else word


def syscall_number(name: str) -> int:
    """Number of a system call. Raises Bug for a name that x86-64 does not have."""
    try:
        return NR[name]
    except KeyError:
        raise Bug(f"no system call named {name}") from None


def syscall_name(number: int) -> str:
    """Name of a system call, for messages."""
    return next((name for name, one in NR.items() if one == number), f"call {number}")


def restart_registers(regs: Regs, *, signal_pending: bool = False, code: bytes = b"") -> Regs:
    """Registers that make an interrupted call happen again, without the kernel's own help.

    For a frame or an image: orig_rax comes out as -1. A call with a relative timeout starts
    its time anew, because the rest of it lives in a restart block that cannot be read; but a sleep
    that wants to know the rest has been told it, and goes on with that (kernel/time/hrtimer.c,
    nanosleep_copyout). With
    ``signal_pending`` (a signal is about to be delivered) calls which a handler interrupts
    give EINTR. ``code`` is what stands from CODE_BEFORE bytes before rip to CODE_AFTER behind;
    a restarted call whose number cannot be known gives EINTR.
    Source: arch/x86/kernel/signal.c, arch_do_signal_or_restart (v6.8).
    """
    edits = restart_edits(
        regs.rax, regs.orig_rax, regs.rsi, regs.r10, signal_pending=signal_pending, code=code
    )
    return _edited(regs, edits)


def restart_edits(
    rax: int, orig_rax: int, rsi: int, r10: int, *, signal_pending: bool, code: bytes
) -> tuple[RegEdit, ...]:
    """What `restart_registers` does with registers that have these values.

    Each is a number in struct user_regs_struct, that of the register which it is taken from (or
    -1) and a word to add.
    """
    sleep = bool(rsi), bool(r10 and not rsi & TIMER_ABSTIME)
    return _restart_edits(rax, orig_rax, sleep, signal_pending, code)


@lru_cache(maxsize=256)
def _restart_edits(
    rax: int, orig_rax: int, sleep: tuple[bool, bool], signal_pending: bool, code: bytes
) -> tuple[RegEdit, ...]:
    before, after = code[:CODE_BEFORE], code[CODE_BEFORE:]
    error, back = -signed(rax), WORD_MASK - len(SYSCALL_INSN) + 1
    left: tuple[RegEdit, ...] = ((ORIG_RAX, -1, WORD_MASK),)
    if rax & CALL_MASK == NR["restart_syscall"] and after == SYSCALL_INSN:
        number = _number_behind_restart(rax, orig_rax, before + after)
        return left + _start_over(number, 0, sleep)
    if signed(orig_rax) >= 0 and error in (ERESTARTSYS, ERESTARTNOINTR):
        return left + _start_over(original_call(orig_rax, before), back, sleep)
    if signed(orig_rax) >= 0 and error in (ERESTARTNOHAND, ERESTART_RESTARTBLOCK):
        number = None if signal_pending else original_call(orig_rax, before)
        return left + _start_over(number, back, sleep)
    return left


def _start_over(number: int | None, offset: int, sleep: tuple[bool, bool]) -> tuple[RegEdit, ...]:
    """Make the call at rip + ``offset`` happen again, or end with EINTR: its number is not known.

    ``sleep``: whether nanosleep, or clock_nanosleep, was told the rest.
    """
    if number is None:
        end = offset + len(SYSCALL_INSN) & WORD_MASK
        return (RAX, -1, -EINTR & WORD_MASK), (RIP, RIP, end)
    again = (RAX, -1, number), (RIP, RIP, offset)
    if number == NR["nanosleep"] and sleep[0]:
        return (*again, (RDI, RSI, 0))
    if number == NR["clock_nanosleep"] and sleep[1]:
        return (*again, (RDX, R10, 0))
    return again


def _number_behind_restart(rax: int, orig_rax: int, code: bytes) -> int | None:
    """Of a task that is about to issue restart_syscall."""
    in_syscall = signed(orig_rax) >= 0
    if in_syscall and orig_rax & CALL_MASK != NR["restart_syscall"]:
        return orig_rax & CALL_MASK  # the kernel has just changed rax, not orig_rax
    kept = (orig_rax if in_syscall else rax) >> 32
    return kept if kept in RESTART_BLOCK_CALLS else _loaded_number(code)


def original_call(orig_rax: int, code: bytes = b"") -> int | None:
    """Number of the call that a task stopped in; None when it cannot be known.

    A call that was restarted by its restart block runs as restart_syscall. Its own number is
    where `resume_registers` left it, or in the `mov` before the `syscall` instruction with
    which ``code`` ends.
    """
    number = orig_rax & CALL_MASK
    if number != NR["restart_syscall"]:
        return number
    kept = orig_rax >> 32
    return kept if kept in RESTART_BLOCK_CALLS else _loaded_number(code)


def _loaded_number(code: bytes) -> int | None:
    at = code.rfind(LOAD_NUMBER, 0, len(code) - len(SYSCALL_INSN) - 4)
    if at < 0 or not code.endswith(SYSCALL_INSN):
        return None
    (loaded,) = struct.unpack_from("<I", code, at + 1)
    return loaded if loaded in RESTART_BLOCK_CALLS else None


def resume_registers(regs: Regs) -> Regs:
    """Registers to let a task go on with, when no signal is pending: as if never stopped.

    Mostly the same: the kernel restarts the call. One with a restart block goes on by it, as
    the kernel would do, but its number is kept in the upper half of rax, which a system call
    ignores and leaves in orig_rax: so the next stop can tell which call it is.
    """
    edits = resume_edits(regs.rax, regs.orig_rax)
    return _edited(regs, edits) if edits else regs


@lru_cache(maxsize=256)
def resume_edits(rax: int, orig_rax: int) -> tuple[RegEdit, ...]:
    """What `resume_registers` does with registers that have these values, as `restart_edits`."""
    if signed(orig_rax) < 0 or signed(rax) != -ERESTART_RESTARTBLOCK:
        return ()
    number = orig_rax & CALL_MASK
    if number == NR["restart_syscall"]:
        number = orig_rax >> 32
    if number not in RESTART_BLOCK_CALLS:
        return ()
    again = NR["restart_syscall"] | number << 32
    back = WORD_MASK - len(SYSCALL_INSN) + 1
    return (ORIG_RAX, -1, WORD_MASK), (RAX, -1, again), (RIP, RIP, back)


def _edited(regs: Regs, edits: Iterable[RegEdit]) -> Regs:
    fresh = regs.copy()
    for to, source, plus in edits:
        value = getattr(regs, _NAMES[source]) if source >= 0 else 0
        setattr(fresh, _NAMES[to], value + plus & WORD_MASK)
    return fresh


def xstate_for_sigframe(xstate: bytes) -> bytes:
    """NT_X86_XSTATE bytes as rt_sigreturn wants them: sw_reserved words set, magic behind.

    Source: arch/x86/kernel/fpu/signal.c, check_xstate_in_sigframe (v6.8).
    """
    if len(xstate) < XSAVE_HEADER_END:
        return xstate
    (features,) = struct.unpack_from("<Q", xstate, XSAVE_SW_RESERVED)
    words = struct.pack(
        "<IIQI28x", FP_XSTATE_MAGIC1, len(xstate) + 4, features, len(xstate)
    )  # fmt: skip
    head, tail = xstate[:XSAVE_SW_RESERVED], xstate[XSAVE_SW_RESERVED + len(words) :]
    return head + words + tail + struct.pack("<I", FP_XSTATE_MAGIC2)


def xstate_pieces(size: int) -> list[tuple[int, int, int]]:
    """What of NT_X86_XSTATE is where in `xstate_for_sigframe`, the same for all: from, to, size."""
    if size < XSAVE_HEADER_END:
        return [(0, 0, size)]
    behind = XSAVE_SW_RESERVED + 48
    return [
        (0, 0, XSAVE_SW_RESERVED),
        (XSAVE_SW_RESERVED, XSAVE_SW_RESERVED + 8, 8),
        (behind, behind, size - behind),
    ]


def sigframe(
    regs: Regs,
    sigmask: int,
    altstack: tuple[int, int, int] | None,
    xstate: bytes,
    address: int,
    *,
    return_address: int = 0,
) -> bytes:
    """A struct rt_sigframe whose first byte will be at ``address`` (16-aligned).

    rt_sigreturn must be entered with rsp = address + SIGFRAME_RSP_OFFSET; the word at
    ``address`` itself is ``return_address``, where a `ret` would find it. ``altstack`` is
    (sp, flags, size); None leaves the task's own as it is: the kernel drops the error that
    invalid flags give (kernel/signal.c, restore_altstack). ``xstate`` are plain
    NT_X86_XSTATE bytes. fs_base and gs_base are not part of a frame.
    """
    if address % 16:
        raise Bug("a signal frame must be 16-aligned")
    extended = xstate_for_sigframe(xstate)
    end = address + SIGFRAME_HEAD.size
    fpstate = (end + FPSTATE_ALIGN - 1) // FPSTATE_ALIGN * FPSTATE_ALIGN
    sp, flags, size = altstack or (0, SS_INVALID, 0)
    r = regs
    flag_bits = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
    if len(extended) != len(xstate):
        flag_bits |= UC_FP_XSTATE
    head = SIGFRAME_HEAD.pack(
        return_address, flag_bits, 0, sp, flags, 0, size,
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
        r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags,
        r.cs & 0xFFFF, 0, 0, r.ss & 0xFFFF, 0, 0, 0, 0, fpstate if xstate else 0,
        sigmask,
    )  # fmt: skip
    return head + bytes(fpstate - end) + extended if xstate else head
