# SPDX-License-Identifier: Apache-2.0
"""x86-64: registers, system call numbers, and the frame that rt_sigreturn takes back.

An `aarch64.py` beside this module would give the same names.
"""

import struct
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

EINTR_WITHOUT_SIGNAL = frozenset(
    NR[name]
    for name in (
        "epoll_wait", "epoll_pwait", "epoll_pwait2", "semop", "semtimedop", "rt_sigtimedwait",
        "io_getevents", "read", "readv", "pread64", "preadv", "preadv2", "write", "writev",
        "recvfrom", "recvmsg", "sendto", "sendmsg", "accept", "accept4", "connect",
    )
)  # fmt: skip
"""Calls that give EINTR although no signal came, because a tracer stopped them (signal(7))."""

_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
    "es", "fs", "gs",
)  # fmt: skip
_REGS = struct.Struct("<27Q")

# arch/x86/include/uapi/asm/sigcontext.h and ucontext.h
FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2 = 0x46505853, 0x46505845
XSAVE_SW_RESERVED, XSAVE_HEADER_END = 464, 576
UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS = 1, 2, 4
SS_INVALID = 4
SIGFRAME_HEAD = struct.Struct("<QQQQiiQ18Q4H4QQ64xQ128x")
SIGFRAME_RSP_OFFSET = 8
"""rsp at rt_sigreturn, counted from the start of the frame."""
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
        for name, value in zip(_NAMES, _REGS.unpack(raw), strict=True):
            setattr(made, name, value)
        return made

    def pack(self) -> bytes:
        """As struct user_regs_struct; values are cut to 64 bits."""
        return _REGS.pack(*(getattr(self, name) & WORD_MASK for name in _NAMES))

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


def restart_registers(regs: Regs, *, signal_pending: bool = False) -> Regs:
    """Registers that make an interrupted call happen again, without the kernel's own help.

    For a frame or an image: orig_rax comes out as -1. A call with a relative timeout starts
    its time anew, because the rest of it lives in a restart block that cannot be read. With
    ``signal_pending`` (a signal is about to be delivered) calls which a handler interrupts
    keep EINTR. Source: arch/x86/kernel/signal.c, arch_do_signal_or_restart (v6.8).
    """
    fresh = regs.copy()
    fresh.orig_rax = WORD_MASK
    if not regs.in_syscall:
        return fresh
    error = -regs.result
    if error in (ERESTARTSYS, ERESTARTNOINTR):
        return _again(fresh, regs)
    if error in (ERESTARTNOHAND, ERESTART_RESTARTBLOCK):
        if not signal_pending:
            return _again(fresh, regs)
        fresh.rax = -EINTR & WORD_MASK
    elif error == EINTR and not signal_pending and regs.orig_rax in EINTR_WITHOUT_SIGNAL:
        return _again(fresh, regs)
    return fresh


def interrupted_by_stop(regs: Regs) -> bool:
    """Whether the result is an EINTR that a program would not have seen without a tracer."""
    return regs.in_syscall and regs.result == -EINTR and regs.orig_rax in EINTR_WITHOUT_SIGNAL


def _again(fresh: Regs, old: Regs) -> Regs:
    fresh.rax = old.orig_rax
    fresh.rip = (old.rip - len(SYSCALL_INSN)) & WORD_MASK
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
